"""The tests' own supervisors: their folders, their processes, their end."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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

[files]
folders = ["/tmp"]
"""


@contextmanager
def own_supervisor(
    config: str = "", disk: Callable[[Path], AbstractContextManager[None]] = lambda _: nullcontext()
) -> Iterator[Paths]:
    """Folders of a supervisor that ends with the context and must leave nothing behind; images are the user's.

    Args:
        config: What its configuration has besides the tests' own.
        disk: Puts a file system under its state folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="avm-"))
    # Root's QEMUs run as another user, who has to pass through.
    folder.chmod(0o711)
    (folder / "config.toml").write_text(CONFIG + config)
    (folder / "s").mkdir(mode=0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTVM_STATE_DIR", str(folder / "s"))
        patch.setenv("AGENTVM_CONFIG", str(folder / "config.toml"))
        paths = Paths.of_user()
    with disk(paths.state):
        try:
            yield paths
        finally:
            try:
                asyncio.run(shut_down(paths))
            except SupervisorError as error:
                assert "not running" in str(error)  # noqa: PT017 - an idle supervisor has left by itself
            assert qemus(paths.tag) == []
    shutil.rmtree(folder)


def environment_of(paths: Paths) -> dict[str, str]:
    """The environment of kernel processes that use a supervisor."""
    return {
        "AGENTVM_STATE_DIR": str(paths.state),
        "AGENTVM_CONFIG": str(paths.config),
        "AGENTVM_IMAGE": "minimal",
        "AGENTVM_PROFILE": "test",
    }


def qemus(tag: str) -> list[int]:
    """Return the pids of the QEMUs whose domain name begins with a supervisor's tag, or a tag and a VM's id."""
    wanted = re.compile(rb"guest=agentvm-" + tag.encode() + rb"[-,]")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted.search((entry / "cmdline").read_bytes()):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def supervisor_pid(paths: Paths) -> int:
    """Return the pid of the supervisor of a state folder, from itself: what it forks looks like it for a moment."""

    async def ask() -> int:
        async with SupervisorClient(paths, start=False) as client:
            return (await client.status()).pid

    return asyncio.run(ask())


def anonymous_kib(pid: int) -> int:
    """Return the memory that a process has written, KiB (proc(5), smaps_rollup).

    Not its private memory: while it starts another process, the two share all pages for a moment.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


async def shut_down(paths: Paths) -> None:
    """End the supervisor and wait until it is gone: it holds its lock to the end."""
    async with SupervisorClient(paths, start=False) as client:
        pid = (await client.status()).pid
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
