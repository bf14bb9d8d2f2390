"""The kernel process over the fake supervisor and real guest agents on this host."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.register_assert_rewrite("kernel_behaviour")

from kernel_behaviour import *  # noqa: E402, F403
from kernel_client import Notebook, notebook  # noqa: E402


@pytest.fixture(scope="module")
def kernel_environment() -> Iterator[Mapping[str, str]]:
    with tempfile.TemporaryDirectory(prefix="avm-") as folder:
        environment = {"AGENTVM_STATE_DIR": folder, "AGENTVM_IMAGE": "minimal"}
        command = [sys.executable, str(Path(__file__).parent / "fake_supervisor.py")]
        with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE) as supervisor:
            assert supervisor.stdout
            assert supervisor.stdout.read(1) == b"1"
            yield environment
            supervisor.terminate()


@pytest.fixture(scope="module")
def nb(kernel_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(kernel_environment) as running:
        yield running
