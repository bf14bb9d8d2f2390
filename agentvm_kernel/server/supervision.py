"""What the server extension asks the supervisor: about the leases of this server's kernels, and of no others."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final

from agentvm_kernel import __version__
from agentvm_kernel.compare.comparer import Comparer
from agentvm_kernel.compare.comparison import Comparison
from agentvm_kernel.config import Paths
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import HostError, NoLeaseError, SupervisorError
from agentvm_kernel.observe.events.execution import OutputBlocked
from agentvm_kernel.server.kernels import Kernel
from agentvm_kernel.server.reasons import WORDS
from agentvm_kernel.server.views import Blocked, BlockedOutput, Finding, Host, Machine, Network, Stats
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.status import LeaseInfo, Status

_RECORDS: Final = 999
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
        self._known: dict[str, Blocked] | None = None

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
        vms, network, limits, blocked, stats = await asyncio.gather(
            client.vms(), client.network(lease.lease), client.limits(lease.lease), self.blocked(lease.lease),
            self._stats(lease),
        )  # fmt: skip
        vm = next((one for one in vms.vms if one.id == lease.vm), None)
        return Machine(
            state="running", vm=lease.vm, profile=lease.profile, image=lease.flavour, digest=lease.image,
            accelerator=status.accelerator, age=vm.age if vm else 0.0, vcpus=lease.vcpus, memory_mib=lease.memory_mib,
            disk_gb=lease.disk_gb, executing=bool(vm and vm.executing), snapshot=vm.snapshot if vm else lease.snapshot,
            travelling=vm.travelling if vm else None, network=Network.of(network), limits=limits,
            blocked=blocked.count, stats=stats,
        )  # fmt: skip

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

    def remember(self) -> None:
        """Remember from now on what was blocked, and nothing of before; whoever says so says it again when more is.

        To read it takes the supervisor some 50 ms.
        """
        self._known = {}

    def forget(self) -> None:
        """Remember nothing: nobody would say when it changes."""
        self._known = None

    async def blocked(self, lease: str) -> Blocked:
        """Return the output of a lease that was not let through, as far as the newest records tell it.

        Args:
            lease: The lease's id.
        """
        known = self._known
        if known is None:
            return await self._read_blocked(lease)
        if lease not in known:
            # Where it changes meanwhile, these are given up for others.
            known[lease] = await self._read_blocked(lease)
        return known[lease]

    async def _read_blocked(self, lease: str) -> Blocked:
        records = (await (await self.client()).audit(lease, _RECORDS)).records
        return Blocked(
            blocked=tuple(
                BlockedOutput(
                    time=one.time, reason=one.event.reason.value, detail=WORDS[one.event.reason],
                    count=one.event.count, cell=one.event.run,
                )
                for one in records
                if isinstance(one.event, OutputBlocked) and one.event.lease == lease
            )
        )  # fmt: skip

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
