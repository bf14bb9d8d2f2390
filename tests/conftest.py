"""A supervisor of the tests' own, with real VMs: its state is a temporary folder, images come from the user's cache."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from vms import qemus, shut_down

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import SupervisorError

CONFIG = """\
image = "minimal"
profile = "test"
idle_exit = 120

[profiles.test]
vcpus = 1
memory_mib = 512
disk_gb = 4
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here / "vm") or item.path.is_relative_to(here / "security"):
            item.add_marker(pytest.mark.vm)


@pytest.fixture(scope="session")
def vm_paths() -> Iterator[Paths]:
    """Folders of the tests' supervisor, which ends with them and must leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="avm-"))
    # Root's QEMUs run as another user, who has to pass through.
    folder.chmod(0o711)
    (folder / "config.toml").write_text(CONFIG)
    patch = pytest.MonkeyPatch()
    patch.setenv("AGENTVM_STATE_DIR", str(folder / "s"))
    patch.setenv("AGENTVM_CONFIG", str(folder / "config.toml"))
    paths = Paths.of_user()
    patch.undo()
    yield paths
    try:
        asyncio.run(shut_down(paths))
    except SupervisorError as error:
        assert "not running" in str(error)  # noqa: PT017 - an idle supervisor has left by itself
    assert qemus(paths.tag) == []
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def vm_environment(vm_paths: Paths) -> dict[str, str]:
    """Environment for kernel processes of the tests."""
    return {
        "AGENTVM_STATE_DIR": str(vm_paths.state),
        "AGENTVM_CONFIG": str(vm_paths.config),
        "AGENTVM_IMAGE": "minimal",
        "AGENTVM_PROFILE": "test",
    }
