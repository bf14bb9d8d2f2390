"""What the server extension asks the supervisor: about the leases of this server's kernels, and of no others."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final, Literal

from agentvm_kernel import __version__
from agentvm_kernel.compare.comparer import Comparer
from agentvm_kernel.compare.comparison import Comparison
from agentvm_kernel.config import Paths
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import HostError, NoLeaseError, SupervisorError
from agentvm_kernel.observe.chain import Record
from agentvm_kernel.observe.events.execution import OutputBlocked
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.run.provenance import of_notebook
from agentvm_kernel.server.anomalies import read_anomalies
from agentvm_kernel.server.kernels import Kernel
from agentvm_kernel.server.reasons import WORDS
from agentvm_kernel.server.views import (
    Anomalies,
    Blocked,
    BlockedOutput,
    Finding,
    Host,
    Machine,
    Network,
    Provenance,
    Stats,
)
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.operator_messages import Resumed
from agentvm_kernel.supervisor.status import LeaseInfo, Status

_RECORDS: Final = 999
_Kind = Literal["blocked", "anomalies"]
_EVENTS: Final[dict[_Kind, tuple[str, ...]]] = {
    "blocked": ("output_blocked",),
    "anomalies": ("anomaly_detected", "anomaly_response"),
}
"""What is read of the audit log."""
_EXAMINATION: Final = 60.0


class Supervision:
    """Asks the user's supervisor, if one runs; starts none.

    Args:
        paths: The user's folders.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._client: SupervisorClient | None = None
        self._comparer: Comparer | None = None
        self._known: dict[tuple[str, _Kind], tuple[Record, ...]] | None = None
        self._reading = asyncio.Lock()

    async def client(self) -> SupervisorClient:
        """Return the one client; it connects anew to each supervisor."""
        if self._client is None:
            self._client = await SupervisorClient(self._paths, start=False).__aenter__()
        return self._client

    async def close(self) -> None:
        """Close the client; whoever follows something is told that it is over."""
        client, self._client, self._comparer = self._client, None, None
        if client is not None:
            await client.__aexit__(None, None, None)

    async def lease(self, kernel: Kernel) -> LeaseInfo:
        """Return a kernel's lease.

        Args:
            kernel: The kernel.

        Raises:
            NoLeaseError: it has none.
            SupervisorError: no supervisor runs.
        """
        return _lease(await (await self.client()).status(), kernel)

    async def machine(self, kernel: Kernel) -> Machine:
        """Return the VM under a notebook.

        Args:
            kernel: Its kernel.

        Raises:
            NoLeaseError: it has none.
            SupervisorError: no supervisor runs.
        """
        client = await self.client()
        status = await client.status()
        lease = _lease(status, kernel)
        vms, network, limits, blocked, anomalies, stats = await asyncio.gather(
            client.vms(), client.network(lease.lease), client.limits(lease.lease), self.blocked(lease.lease),
            self.anomalies(lease.lease), self._stats(lease),
        )  # fmt: skip
        vm = next((one for one in vms.vms if one.id == lease.vm), None)
        return Machine(
            state="running", vm=lease.vm, profile=lease.profile, image=lease.flavour, digest=lease.image,
            accelerator=status.accelerator, age=vm.age if vm else 0.0, vcpus=lease.vcpus, memory_mib=lease.memory_mib,
            disk_gb=lease.disk_gb, executing=bool(vm and vm.executing), snapshot=vm.snapshot if vm else lease.snapshot,
            travelling=vm.travelling if vm else None, held=vm.held if vm else "", network=Network.of(network),
            limits=limits, blocked=blocked.count, anomalies=anomalies.count, stats=stats,
        )  # fmt: skip

    async def provenance(self, kernel: Kernel) -> Provenance:
        """Return what a notebook keeps of the VM in which its cells run.

        Args:
            kernel: Its kernel.

        Raises:
            NoLeaseError: it has none.
            SupervisorError: no supervisor runs.
        """
        status = await (await self.client()).status()
        return Provenance(kept=await asyncio.to_thread(of_notebook, status, _lease(status, kernel)))

    async def _stats(self, lease: LeaseInfo) -> Stats | None:
        newest: Stats | None = None
        async with (await self.client()).stats(lease.lease) as events:
            async for one in events:
                if one.vm == lease.vm:
                    newest = Stats.of(one)
        return newest

    async def connections(self, lease: str, most: int) -> tuple[Connection, ...]:
        """Return the newest connections of a lease, newest last.

        Args:
            lease: The lease's id.
            most: How many at most.
        """
        async with (await self.client()).connections(lease) as events:
            return tuple([one async for one in events][-most:])

    async def resume(self, kernel: Kernel) -> Resumed:
        """Take back that a kernel's VM is slowed down or stopped.

        Args:
            kernel: The kernel.

        Raises:
            NoLeaseError: it has no VM.
            SupervisorError: no supervisor runs, or the VM cannot run on.
        """
        return await (await self.client()).resume((await self.lease(kernel)).vm)

    def remember(self) -> None:
        """Remember from now on what the audit log says, and nothing of before; whoever says so tells what happens.

        To read it takes the supervisor some 50 ms.
        """
        self._known = {}

    def happened(self, event: Event) -> None:
        """Forget what was remembered of a kind of which there is more now.

        Args:
            event: What happened.
        """
        if self._known is not None and (changed := {kind for kind, events in _EVENTS.items() if event.event in events}):
            # Who is reading puts what was read into the old one.
            self._known = {key: records for key, records in self._known.items() if key[1] not in changed}

    def forget(self) -> None:
        """Remember nothing: nobody would say when it changes."""
        self._known = None

    async def blocked(self, lease: str) -> Blocked:
        """Return the output of a lease that was not let through, as far as the newest records tell it.

        Args:
            lease: The lease's id.
        """
        return Blocked(
            blocked=tuple(
                BlockedOutput(
                    time=one.time, reason=one.event.reason.value, detail=WORDS[one.event.reason],
                    count=one.event.count, cell=one.event.run,
                )
                for one in await self._records(lease, "blocked")
                if isinstance(one.event, OutputBlocked) and one.event.lease == lease
            )
        )  # fmt: skip

    async def anomalies(self, lease: str) -> Anomalies:
        """Return what was unusual in the VMs of a lease, as far as the newest records tell it.

        Args:
            lease: The lease's id.
        """
        return read_anomalies(await self._records(lease, "anomalies"), lease)

    async def _records(self, lease: str, kind: _Kind) -> tuple[Record, ...]:
        """Return the newest records of a kind; each kind has room of its own, so that none can push out another."""
        known, key = self._known, (lease, kind)
        if known is None:
            return await self._read(lease, kind)
        async with self._reading:
            if key not in known:
                known[key] = await self._read(lease, kind)
        return known[key]

    async def _read(self, lease: str, kind: _Kind) -> tuple[Record, ...]:
        return (await (await self.client()).audit(lease, _RECORDS, _EVENTS[kind])).records

    async def compare(self, lease: str, one: str, other: str) -> Comparison:
        """Return what differs between two snapshots, as their guests claim; what they hold is remembered.

        Args:
            lease: The lease's id.
            one: Id of the one.
            other: Id of the other.
        """
        if self._comparer is None:
            self._comparer = Comparer(await self.client())
        return await self._comparer.compare(lease, one, other)

    async def host(self, *, examine: bool) -> Host:
        """Return what is known of the host.

        Args:
            examine: Have it examined, which takes seconds.
        """
        findings = await _examined() if examine else ()
        try:
            status = await (await self.client()).status()
        except SupervisorError:
            return Host(version=__version__, supervisor="absent", findings=findings)
        return Host(version=__version__, supervisor="running", accelerator=status.accelerator, findings=findings)


def _lease(status: Status, kernel: Kernel) -> LeaseInfo:
    # The newest, where an earlier kernel process of that id is still on its way out.
    for lease in reversed(status.leases):
        if lease.owner == kernel.owner:
            return lease
    raise NoLeaseError("There is no VM under this notebook.", "Run %vm restart, or restart the kernel.")


async def _examined() -> tuple[Finding, ...]:
    """Have `agentvm doctor` examine the host: in a process of its own, since it opens a hypervisor."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", "from agentvm_kernel.cli import main; main()", "doctor", "--json",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_EXAMINATION):
            said, _ = await process.communicate()
        found = json.loads(said)
    except (TimeoutError, ValueError) as error:
        raise HostError("This host cannot be examined.", "Run `agentvm doctor` in a terminal.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return tuple(
        Finding(title=one["name"], ok=one["status"] != "failure", detail=one["detail"], remedy=one["remedy"])
        for one in found
        if one["status"] != "ok"
    )
