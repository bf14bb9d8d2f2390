"""A hypervisor without VMs: its machines answer on the owner's channel as the guest agent would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm.hypervisor import DiskTraffic, Hypervisor, Machine
from agentvm_kernel.vm.nat import Card
from agentvm_kernel.vm.spec import DomainSpec

OUTCOMES = {"mount": {"outcome": "mounted"}, "unmount": {"outcome": "unmounted"}}


class FakeMachine(Machine):
    """A machine that is only a Unix socket."""

    def __init__(self, spec: DomainSpec, pid: int) -> None:
        self.spec = spec
        self.pid = pid
        self.vsock = None
        self.ended = asyncio.get_running_loop().create_future()
        self.calls: list[str] = []
        self.ops: list[dict[str, object]] = []
        self.is_mute = False
        self.clings = False
        self.unshareable = False
        self.weakness = ""
        self.asked = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()
        self.traffic = DiskTraffic()
        self.lies: dict[str, object] = {}
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._top = self._spare = Path()

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.spec.control_socket))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.ended.done():
            writer.close()
            return
        self._writers.append(writer)
        async for line in reader:
            if not line.strip():
                continue
            request = json.loads(line)
            self.ops.append(request)
            self.asked.set()
            if self.is_mute:
                continue
            answer = {"ok": True, **OUTCOMES.get(request["op"], {}), **request, **self.lies}
            writer.write(json.dumps(answer).encode() + b"\n")

    def say(self, event: dict[str, object]) -> None:
        for writer in self._writers:
            writer.write(json.dumps(event).encode() + b"\n")

    async def flush(self) -> None:
        for writer in self._writers:
            await writer.drain()
        # What was said has arrived once the other end has answered something said later.
        for _ in range(10):
            await asyncio.sleep(0)

    async def resume(self) -> None:
        self.calls.append("resume")

    async def pause(self) -> None:
        self.calls.append("pause")

    async def load(self, device_state: Path, *, is_dump: bool = False) -> None:
        self.calls.append(f"load {device_state.name}")

    async def dump(self, path: Path) -> None:
        self.calls.append("dump")
        path.write_text("dump")

    async def save(self, device_state: Path) -> None:
        self.calls.append("save")
        device_state.write_text("device state")

    async def attach_disk(self, chain: tuple[Path, ...]) -> None:
        self.calls.append(f"attach {chain[0].name}")
        self._top = chain[0]

    def write_disk(self) -> None:
        """Let the guest write something to its disk."""
        with self._top.open("ab") as file:
            file.write(b"written")

    async def prepare_overlay(self, overlay: Path) -> None:
        self.calls.append(f"prepare {overlay.name}")
        self._spare = overlay

    async def freeze_disk(self) -> None:
        self.calls.append("freeze")
        self._top = self._spare

    async def merge_layers(self, count: int) -> None:
        self.calls.append(f"merge {count}")
        self.write_disk()

    async def copy_disk(self, target: Path, begun: Callable[[], Awaitable[None]]) -> None:
        self.calls.append(f"copy disk after {self.ops[-1]['op']}")
        await begun()
        self.calls.append(f"copied after {self.ops[-1]['op']}")
        target.write_bytes(b"the disk")

    async def throttle_disk(self, megabytes: int | None, operations: int | None) -> None:
        self.calls.append(f"throttle {megabytes} {operations}")

    async def disk_traffic(self) -> DiskTraffic:
        await self.answering.wait()
        return self.traffic

    async def limit_process(self, cores: float | None, memory: int) -> None:
        self.calls.append(f"limit {cores} {memory >> 20}")

    async def give_way(self, gives_way: bool) -> None:
        if self.ended.done():
            raise HypervisorError("QEMU is gone.")
        self.calls.append("give way" if gives_way else "take turns")

    async def plug(self) -> Card:
        self.calls.append("plug")
        return Card(f"52:54:00:00:{self.pid >> 8:02x}:{self.pid & 255:02x}", "10.213.0.9", 22, "10.213.0.1", "avc")

    async def cut(self) -> None:
        self.calls.append("cut")

    async def unplug(self) -> None:
        self.calls.append("unplug")
        if self.clings:
            raise HypervisorError("The guest does not let go of its network card.")

    async def plug_folder(self, folder: Path, *, writable: bool) -> str:
        self.calls.append(f"plug {folder.name}{' rw' if writable else ''}")
        if self.unshareable or not folder.is_dir():
            raise HypervisorError("QEMU: device_add: cannot open it")
        return self.weakness

    async def unplug_folder(self) -> None:
        self.calls.append("unplug folder")
        if self.clings:
            raise HypervisorError("The guest does not let go of the shared folder.")

    async def end(self) -> None:
        self.die("was ended")
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.close()
                await writer.wait_closed()

    def die(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)


class FakeHypervisor(Hypervisor):
    """Starts fake machines and remembers them."""

    def __init__(self) -> None:
        self.machines: list[FakeMachine] = []
        self.failures: list[str] = []
        self.lies: dict[str, object] = {}
        self.is_mute = False
        self.started = asyncio.Event()

    @property
    def owner(self) -> tuple[int, int] | None:
        return None

    @property
    def running(self) -> list[FakeMachine]:
        return [machine for machine in self.machines if not machine.ended.done()]

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def version(self) -> str:
        return "fake 1"

    def domain_name(self, vm: str) -> str:
        return f"fake-{vm}"

    def make_machine(self, spec: DomainSpec, pid: int) -> FakeMachine:
        return FakeMachine(spec, pid)

    async def start(self, spec: DomainSpec) -> FakeMachine:
        if self.failures:
            raise HypervisorError(self.failures.pop(0))
        machine = self.make_machine(spec, 1000 + len(self.machines))
        machine.lies = self.lies
        machine.is_mute = self.is_mute
        await machine.listen()
        self.machines.append(machine)
        self.started.set()
        return machine

    async def end_leftovers(self) -> list[str]:
        return []
