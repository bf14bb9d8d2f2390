"""Speaks 9P to a virtio-9p device as root in a guest can: without a driver, so that any message may be sent.

There is no guest: QEMU is paused, its memory is a file, and its monitor writes to the device's ports.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from qemu.qmp import QMPClient

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm.accelerator import QEMU

_MEMORY: Final = 16 << 20
_PORTS: Final = 0xC000
_RINGS, _REQUEST, _ANSWER = 0x80000, 0x90000, 0xA0000
_USED: Final = _RINGS + 4096
# Of a virtio device as it was before version 1: features, queue's page, queue, notification, status
_FEATURES, _QUEUE_PAGE, _QUEUE, _NOTIFY, _STATUS = 4, 8, 14, 16, 18
_ERROR: Final = 7

VERSION, ATTACH, WALK, OPEN, CREATE, WRITE, REMOVE, WSTAT = 100, 104, 110, 112, 114, 118, 122, 126
LOPEN, LCREATE, SETATTR, MKDIR, UNLINKAT = 12, 14, 26, 72, 76
NO_FID: Final = 0xFFFFFFFF


def text(one: str) -> bytes:
    return struct.pack("<H", len(one.encode())) + one.encode()


class PausedMachine:
    """A QEMU without a guest, as far as a `FolderDevice` needs a machine.

    Args:
        monitor: Its monitor.
        memory: The guest's.
        spec: Where it finds the folder.
    """

    def __init__(self, monitor: QMPClient, memory: mmap.mmap, spec: Any) -> None:
        self.spec, self.ended = spec, asyncio.get_running_loop().create_future()
        self._monitor, self._memory, self._asked = monitor, memory, 0

    async def execute(self, command: str, arguments: dict[str, object]) -> object:
        try:
            return await self._monitor.execute(command, arguments)
        except Exception as error:
            raise HypervisorError(str(error)) from error

    async def start_device(self, slot: int) -> None:
        """Do what a driver does first."""
        await self._configure(slot, 0x10, _PORTS | 1)
        await self._configure(slot, 0x04, 7)
        for size, register, value in (
            ("b", _STATUS, 0), ("b", _STATUS, 3), ("w", _FEATURES, 0), ("h", _QUEUE, 0),
            ("w", _QUEUE_PAGE, _RINGS >> 12), ("b", _STATUS, 7),
        ):  # fmt: skip
            await self._out(size, _PORTS + register, value)

    async def ask(self, kind: int, body: bytes) -> tuple[bool, bytes]:
        """Send a message; return whether it was answered and not refused, and the answer."""
        message = struct.pack("<IBH", 7 + len(body), kind, 1) + body
        self._memory[_REQUEST : _REQUEST + len(message)] = message
        descriptors = struct.pack("<QIHHQIHH", _REQUEST, len(message), 1, 1, _ANSWER, 0x4000, 2, 0)
        self._memory[_RINGS : _RINGS + len(descriptors)] = descriptors
        self._asked += 1
        available = struct.pack("<HH", 0, self._asked) + bytes(2 * 128)
        self._memory[_RINGS + 2048 : _RINGS + 2048 + len(available)] = available
        await self._out("h", _PORTS + _NOTIFY, 0)
        while struct.unpack_from("<H", self._memory, _USED + 2)[0] != self._asked:  # noqa: ASYNC110 - memory says nothing
            await asyncio.sleep(0.002)
        size, answer, _ = struct.unpack_from("<IBH", self._memory, _ANSWER)
        return answer == kind + 1, self._memory[_ANSWER + 7 : _ANSWER + size]

    async def _configure(self, slot: int, register: int, value: int) -> None:
        await self._out("w", 0xCF8, 0x80000000 | slot << 11 | register)
        await self._out("w", 0xCFC, value)

    async def _out(self, size: str, port: int, value: int) -> None:
        said = await self._monitor.execute("human-monitor-command", {"command-line": f"o /{size} {port:#x} {value:#x}"})
        assert said == "", said


@asynccontextmanager
async def paused_machine(
    folder: Path, spec: Any, fsdevs: Sequence[str]
) -> AsyncIterator[tuple[PausedMachine, QMPClient]]:
    """Run a QEMU with the folders that it is told of on its command line."""
    memory, socket = folder / "memory", folder / "qmp.sock"
    with memory.open("wb") as file:
        file.truncate(_MEMORY)
    monitor = QMPClient("test")
    await monitor.start_server(str(socket))
    backend = f"memory-backend-file,id=m,size={_MEMORY},share=on,mem-path={memory}"
    process = await asyncio.create_subprocess_exec(
        QEMU, "-S", "-machine", "pc,memory-backend=m", "-accel", "tcg", "-m", "16", "-object", backend, "-nodefaults",
        "-display", "none", "-qmp", f"unix:{socket}", *fsdevs,
    )  # fmt: skip
    try:
        await monitor.accept()
        with memory.open("r+b") as file, mmap.mmap(file.fileno(), _MEMORY) as mapped:
            yield PausedMachine(monitor, mapped, spec), monitor
    finally:
        process.kill()
        await process.wait()
        with suppress(EOFError):  # it went away without saying goodbye
            await monitor.disconnect()
