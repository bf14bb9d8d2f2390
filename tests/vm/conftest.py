"""A supervisor of the tests' own, with real VMs: its state is a temporary folder, images come from the user's cache."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import SupervisorError
from agentvm_kernel.supervisor.client import SupervisorClient

CONFIG = """\
image = "minimal"
profile = "test"
idle_exit = 120

[profiles.test]
vcpus = 1
memory_mib = 512
disk_gb = 4
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.vm)


def qemus(tag: str) -> list[int]:
    """Return the pids of the QEMUs whose domain name has a tag."""
    wanted = re.compile(rb"guest=agentvm-" + tag.encode() + rb"-")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted.search((entry / "cmdline").read_bytes()):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@pytest.fixture(scope="session")
def vm_paths() -> Iterator[Paths]:
    """Folders of the tests' supervisor, which ends with them and must leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="avm-"))
    folder.chmod(0o711)
    (folder / "config.toml").write_text(CONFIG)
    os.environ["AGENTVM_STATE_DIR"] = str(folder / "s")
    os.environ["AGENTVM_CONFIG"] = str(folder / "config.toml")
    paths = Paths.of_user()
    yield paths
    try:
        asyncio.run(shut_down(paths))
    except SupervisorError as error:
        assert "not running" in str(error)  # noqa: PT017 - an idle supervisor has left by itself
    assert qemus(paths.tag) == []
    shutil.rmtree(folder, )


async def shut_down(paths: Paths) -> None:
    """End the supervisor and wait until it is gone: it holds its lock to the end."""
    async with SupervisorClient(paths, start=False) as client:
        pid = int(str((await client.status())["pid"]))
        process = os.pidfd_open(pid)
        await client.shutdown()
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(process, gone.set)
    try:
        await asyncio.wait_for(gone.wait(), 30)
    finally:
        loop.remove_reader(process)
        os.close(process)


@pytest.fixture(scope="session")
def vm_environment(vm_paths: Paths) -> dict[str, str]:
    """Environment for kernel processes of the tests."""
    return {
        "AGENTVM_STATE_DIR": str(vm_paths.state),
        "AGENTVM_CONFIG": str(vm_paths.config),
        "AGENTVM_IMAGE": "minimal",
        "AGENTVM_PROFILE": "test",
    }
