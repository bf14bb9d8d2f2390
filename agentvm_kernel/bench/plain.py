"""Domains started by virsh, as the pool's baseline: the same machine, without anything of this project around it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from agentvm_kernel.bench.bed import Bed
from agentvm_kernel.errors import HypervisorError, VMError
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.vm.blank import prepare_blank
from agentvm_kernel.vm.domain import domain_xml
from agentvm_kernel.vm.libvirt_connection import EMBED, prepare_root, qemu_owner
from agentvm_kernel.vm.snapshot import Snapshot

_ANSWER_SECONDS: Final = 120.0


class PlainStarts:
    """One virsh with one connection, which starts and destroys domains.

    Args:
        ours: Tells what they are to be like; its golden snapshot is there.
    """

    def __init__(self, ours: Bed) -> None:
        self._ours = ours
        self._folder = ours.paths.state.parent / "p"
        self._names: list[str] = []

    async def __aenter__(self) -> Self:
        """Start virsh, and let libvirt get to know QEMU."""
        self._folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)
        uri = self._ours.settings.uri
        self._owner = qemu_owner(uri)
        if uri == EMBED:
            root = self._folder / "l"
            prepare_root(root)
            uri = f"qemu:///embed?root={root}"
        self._base = await self._golden()
        self._virsh = await asyncio.create_subprocess_exec(
            "stdbuf", "-oL", "virsh", "--connect", uri, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        await self.start(1)
        await self.end()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the domains and virsh."""
        await self.end()
        await self._virsh.communicate(b"quit\n")

    async def start(self, count: int) -> float:
        """Start domains, one after the other, and return the seconds that it took."""
        files = [await self._prepare(f"{self._ours.paths.tag}-{number}") for number in range(count)]
        began = time.perf_counter()
        for file in files:
            await self._ask(f"create {file} --paused", "created")
        return time.perf_counter() - began

    async def end(self) -> None:
        """Destroy the domains."""
        while self._names:
            await self._ask(f"destroy {self._names.pop()}", "destroyed")

    async def _prepare(self, name: str) -> Path:
        folder = self._folder / f"{name}-{time.monotonic_ns()}"
        folder.mkdir(mode=0o700)
        spec, _ = await prepare_blank(self._owner, self._base, folder, f"agentvm-plain-{name}")
        self._names.append(spec.name)
        file = folder.with_suffix(".xml")
        file.write_text(domain_xml(spec))
        return file

    async def _ask(self, command: str, answer: str) -> None:
        stdin, stdout = self._virsh.stdin, self._virsh.stdout
        assert stdin is not None  # nosec B101 - it is a pipe
        assert stdout is not None  # nosec B101 - it is a pipe
        stdin.write(command.encode() + b"\n")
        async with asyncio.timeout(_ANSWER_SECONDS):
            async for line in stdout:
                if b"error:" in line:
                    raise HypervisorError(f"virsh {command}: {line.decode(errors='replace').strip()}")
                if answer.encode() in line:
                    return
        raise HypervisorError(f"virsh ended at {command}.")

    async def _golden(self) -> Snapshot:
        async with SupervisorClient(self._ours.paths, start=False) as client:
            stocks = (await client.pool()).stocks
        folder = self._ours.paths.cache / "golden"
        found = next((Snapshot.load(folder / one.snapshot) for one in stocks), None)
        if found is None:
            raise VMError("The benchmark's supervisor has no golden snapshot.")
        return found
