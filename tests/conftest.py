"""A supervisor of the tests' own, with real VMs: its state is a temporary folder, images come from the user's cache."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from vms import environment_of, own_supervisor

from agentvm_kernel.config import Paths


def pytest_configure() -> None:
    """Let programs be interrupted even where a shell has started the tests with ``&``, which has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where screenshots lie, for a human to look at; the processes that run the tests inherit it.
    os.environ.setdefault("AGENTVM_GALLERY", str(Path(tempfile.gettempdir(), f"avm-gallery-{os.getpid()}")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if Path(os.environ["AGENTVM_GALLERY"]).is_dir():
        terminalreporter.write_line(f"Screenshots of what the tests saw lie in {os.environ['AGENTVM_GALLERY']}.")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here / "vm") or item.path.is_relative_to(here / "security"):
            item.add_marker(pytest.mark.vm)


@pytest.fixture(scope="session")
def vm_paths() -> Iterator[Paths]:
    """Folders of the tests' supervisor, which ends with them and must leave nothing behind."""
    with own_supervisor() as paths:
        yield paths


@pytest.fixture(scope="session")
def vm_environment(vm_paths: Paths) -> dict[str, str]:
    """Environment for kernel processes of the tests."""
    return environment_of(vm_paths)
