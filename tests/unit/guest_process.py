"""A process with a private view of a memory file, as QEMU has one, and machines whose memory is such a view."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fake_hypervisor import FakeHypervisor, FakeMachine

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm.delta import PAGE
from agentvm_kernel.vm.spec import DomainSpec

_CHILD = """
import mmap, os, sys
path, count = sys.argv[1], int(sys.argv[2])
size = os.path.getsize(path) // count
with open(path, "rb") as file:
    parts = [
        mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=number * size)
        for number in range(count)
    ]
print("ready", flush=True)
while line := sys.stdin.readline():
    op, place, *content = line.split()
    part, start = parts[int(place) // size], int(place) % size
    if op == "spin":
        while True:
            part[start] = 1
    data = bytes.fromhex("".join(content))
    part[start : start + len(data)] = data
    print("written", flush=True)
"""


class GuestProcess:
    """A child process that maps a file privately, and writes where it is told to.

    Args:
        backing: The file.
        parts: In how many pieces it is mapped, from high addresses to low ones.
    """

    def __init__(self, backing: Path, parts: int = 1) -> None:
        command = [sys.executable, "-I", "-S", "-c", _CHILD, str(backing), str(parts)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        if not self._hears():
            self.end()
            raise HypervisorError(f"QEMU could not be started over {backing}")
        self.wait_blocked()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _hears(self) -> bool:
        assert self._process.stdout is not None
        return bool(self._process.stdout.readline())

    def wait_blocked(self) -> None:
        """Wait until it waits for its standard input, as QEMU's main thread waits for events (proc(5), syscall)."""
        while not Path(f"/proc/{self.pid}/syscall").read_text().startswith("0 0x0 "):
            os.sched_yield()

    def write(self, place: int, content: bytes) -> None:
        self._say(f"write {place} {content.hex()}")
        assert self._hears()

    def touch(self, *pages: int, value: int = 7) -> None:
        """Write one byte into each of some pages."""
        for page in pages:
            self.write(page * PAGE + page % PAGE, bytes([value]))

    def spin(self, place: int) -> None:
        """Let it write 1 there for ever, without a system call."""
        self._say(f"spin {place}")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class MemoryMachine(FakeMachine):
    """A fake machine with a memory, a disk that can have been written, and steps that fail when told to."""

    def __init__(self, spec: DomainSpec, pid: int) -> None:
        super().__init__(spec, pid)
        self.faults: set[str] = set()
        self.common_faults: set[str] = set()
        self.process: GuestProcess | None = None
        if spec.boot is None:
            self.process = GuestProcess(spec.memory)
            self.pid = self.process.pid
            self.ended.add_done_callback(lambda _: self.process and self.process.end())

    @property
    def guest(self) -> GuestProcess:
        assert self.process is not None
        return self.process

    def _step(self, name: str) -> None:
        for faults in (self.faults, self.common_faults):
            if name not in faults:
                continue
            faults.remove(name)
            self.calls.append(f"{name} failed")
            raise HypervisorError(f"QEMU refused to {name}")

    async def pause(self) -> None:
        self._step("pause")
        await super().pause()

    async def save(self, device_state: Path) -> None:
        self._step("save")
        await super().save(device_state)

    async def dump(self, path: Path) -> None:
        self._step("dump")
        await super().dump(path)

    async def load(self, device_state: Path, *, is_dump: bool = False) -> None:
        self._step("load")
        await super().load(device_state, is_dump=is_dump)

    async def prepare_overlay(self, overlay: Path) -> None:
        self._step("prepare")
        await super().prepare_overlay(overlay)

    async def freeze_disk(self) -> None:
        self._step("freeze")
        await super().freeze_disk()

    async def merge_layers(self, count: int) -> None:
        self._step("merge")
        await super().merge_layers(count)


class MemoryHypervisor(FakeHypervisor):
    """Starts machines that have a memory.

    Attributes:
        faults: Steps that fail in whichever machine takes them next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: set[str] = set()

    def make_machine(self, spec: DomainSpec, pid: int) -> MemoryMachine:
        machine = MemoryMachine(spec, pid)
        machine.common_faults = self.faults
        return machine

    def of(self, pid: int) -> MemoryMachine:
        """Return the machine of a process."""
        machine = next(machine for machine in self.machines if machine.pid == pid)
        assert isinstance(machine, MemoryMachine)
        return machine
