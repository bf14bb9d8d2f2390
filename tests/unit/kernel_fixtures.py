"""Fixtures of the tests that run the kernel process over the fake supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def kernel_environment() -> Iterator[Mapping[str, str]]:
    """The environment of a kernel process whose supervisor is a fake one."""
    with tempfile.TemporaryDirectory(prefix="avm-") as folder:
        environment = {"AGENTVM_STATE_DIR": folder, "AGENTVM_IMAGE": "minimal"}
        command = [sys.executable, str(Path(__file__).parent / "fake_supervisor.py")]
        with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE) as supervisor:
            assert supervisor.stdout
            assert supervisor.stdout.read(1) == b"1"
            yield environment
            supervisor.terminate()
