"""Fixtures for tests without a VM."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from local_guest import PARSED_VARIABLE

# Of a terminal that commands under test do not have; pytest-xdist sets it.
os.environ.pop("COLUMNS", None)

# How long an example takes is not tested.
settings.register_profile("agentvm", deadline=None)
settings.load_profile("agentvm")


def pytest_configure(config: pytest.Config) -> None:
    """Have one place, for all processes of the tests, where local guests keep what their ipykernels have parsed."""
    if PARSED_VARIABLE not in os.environ:
        os.environ[PARSED_VARIABLE] = folder = tempfile.mkdtemp(prefix="avm-parsed-")
        config.add_cleanup(lambda: shutil.rmtree(folder))


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder whose path leaves room for a Unix socket's name (107 bytes in all)."""
    folder = Path(tempfile.mkdtemp(prefix="avm-"))
    yield folder
    shutil.rmtree(folder)
