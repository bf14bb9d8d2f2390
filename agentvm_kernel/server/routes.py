"""All that pages can ask the server extension for: one table.

What changes the machine under a notebook is typed into its kernel as the magic that a user would type, so that it is
done in one place and in order with the cells. What only reads, or concerns the store alone, is asked of the supervisor.
A path names a kernel of this server; which VM that has is looked up, so nobody can name another one's.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, get_type_hints

from pydantic import BaseModel

from agentvm_kernel.compare.comparison import Comparison
from agentvm_kernel.errors import ApiError, RequestError
from agentvm_kernel.server import lines
from agentvm_kernel.server.bodies import (
    AdoptBody,
    ForkBody,
    LabelBody,
    LimitsBody,
    NetworkBody,
    PruneBody,
    SnapshotBody,
    ToBody,
    TravelBody,
    VMBody,
    WatchBody,
)
from agentvm_kernel.server.errors import ForeignKernelError, NotRunningError
from agentvm_kernel.server.kernels import Kernel
from agentvm_kernel.server.services import Services
from agentvm_kernel.server.views import (
    Anomalies,
    Blocked,
    Connections,
    Done,
    Freed,
    Host,
    Machine,
    Plan,
    Provenance,
    View,
)
from agentvm_kernel.supervisor.operator_messages import Resumed
from agentvm_kernel.supervisor.snapshot_messages import Removed, SnapshotInfo, SnapshotTree

_NEWEST: Final = 200
_PRESENT: Final = "present"
_SNAPSHOT: Final = re.compile(r"[0-9a-f]{12}", re.ASCII)


class Nothing(View):
    """There is nothing to answer."""


@dataclass(frozen=True)
class Call:
    """A request.

    Attributes:
        services: What it is carried out with.
        parameters: What stands in the path.
        query: What stands behind it.
    """

    services: Services
    parameters: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def kernel(self) -> Kernel:
        """The kernel that the path names.

        Raises:
            NoKernelError: this server has none of that id.
            ForeignKernelError: it is not AgentVM's.
            NotRunningError: it is about to be started.
        """
        return self.services.kernels.find(self.parameters["kernel"])

    def snapshot(self, name: str = "snapshot") -> str:
        """Return the id of the snapshot that the path names.

        Args:
            name: Of the parameter.

        Raises:
            RequestError: it is no id.
        """
        text = self.parameters[name]
        if not _SNAPSHOT.fullmatch(text):
            raise RequestError(f"{text[:32]!a} is no snapshot's id.", "An id has twelve hexadecimal digits.")
        return text

    async def lease(self) -> str:
        """Return the id of the lease of the kernel that the path names.

        Raises:
            AgentVMError: it has none.
        """
        return (await self.services.supervision.lease(self.kernel)).lease

    async def type(self, *magics: str) -> Done:
        """Type magics into the kernel that the path names, up to the first that fails.

        Args:
            magics: Which.
        """
        kernel = self.kernel
        done = Done(status="ok")
        try:
            for magic in magics:
                done = await self.services.typist.type(kernel, magic)
                if done.error is not None:
                    break
        finally:
            self.services.herald.tell(kernel.id, "machine")
        return done


async def get_host(call: Call) -> Host:
    """Tell of the host; with ``?examine=1``, what keeps notebooks from running."""
    return await call.services.supervision.host(examine=call.query.get("examine") == "1")


async def get_machine(call: Call) -> Machine:
    """Tell how the VM under a notebook is, or why there is none."""
    try:
        return await call.services.machine(call.kernel)
    except ForeignKernelError as error:
        return Machine(state="foreign", text=f"{error.message} {error.hint}")
    except NotRunningError as error:
        return Machine(state="starting", text=error.message)


async def get_provenance(call: Call) -> Provenance:
    """Tell what a notebook keeps of the VM in which its cells run."""
    return await call.services.supervision.provenance(call.kernel)


async def list_snapshots(call: Call) -> SnapshotTree:
    """List the snapshots of a notebook."""
    lease = await call.lease()
    return await (await call.services.supervision.client()).snapshots(lease)


async def take_snapshot(call: Call, body: SnapshotBody) -> Done:
    """Take a snapshot."""
    return await call.type(lines.snapshot(body))


async def relabel(call: Call, body: LabelBody) -> SnapshotInfo:
    """Name a snapshot."""
    snapshot, lease = call.snapshot(), await call.lease()
    return await (await call.services.supervision.client()).relabel(lease, snapshot, body.label)


async def remove(call: Call) -> Freed:
    """Remove a snapshot; what descends from it stays."""
    snapshot, lease = call.snapshot(), await call.lease()
    removed = await (await call.services.supervision.client()).remove(lease, snapshot)
    return Freed(freed=removed.freed)


async def prune(call: Call, body: PruneBody) -> Removed:
    """Remove the oldest snapshots that have no label."""
    lease = await call.lease()
    return await (await call.services.supervision.client()).prune(lease, body.keep)


async def compare(call: Call) -> Comparison:
    """Tell what differs between two snapshots, as their guests claim; for the present, one is taken."""
    one = call.snapshot("one")
    if call.parameters["other"] != _PRESENT:
        other = call.snapshot("other")
    else:
        taken = await call.type(lines.snapshot(SnapshotBody(text="Compared with")))
        if taken.error is not None:
            raise ApiError(taken.error.code, taken.error.message, taken.error.hint)
        other = taken.snapshot
    return await call.services.supervision.compare(await call.lease(), one, other)


async def plan_rollback(call: Call, body: ToBody) -> Plan:
    """Tell what a rollback would do."""
    lease = await call.lease()
    return Plan.of(await (await call.services.supervision.client()).plan_rollback(lease, body.to))


async def roll_back(call: Call, body: ToBody) -> Done:
    """Go back to a snapshot."""
    return await call.type(lines.rollback(body))


async def fork(call: Call, body: ForkBody) -> Done:
    """Run code in clones of the VM."""
    return await call.type(lines.fork(body))


async def adopt(call: Call, body: AdoptBody) -> Done:
    """Go on in a fork."""
    return await call.type(lines.adopt(body))


async def list_connections(call: Call) -> Connections:
    """List the newest connections of a notebook's VM."""
    found = await call.services.supervision.connections(await call.lease(), _NEWEST)
    return Connections(connections=found)


async def set_network(call: Call, body: NetworkBody) -> Done:
    """Deny hosts, and allow hosts."""
    return await call.type(*lines.network(body))


async def set_limits(call: Call, body: LimitsBody) -> Done:
    """Change limits; their names are those of the machine's limits."""
    return await call.type(lines.limits(body))


async def set_timetravel(call: Call, body: TravelBody) -> Done:
    """Switch time travel."""
    return await call.type(lines.travel(body))


async def do_with_vm(call: Call, body: VMBody) -> Done:
    """Throw the VM away and start a fresh one, or give it back."""
    return await call.type(lines.machine(body))


async def list_blocked(call: Call) -> Blocked:
    """List the output that was not let through."""
    return await call.services.supervision.blocked(await call.lease())


async def list_anomalies(call: Call) -> Anomalies:
    """List what was unusual."""
    return await call.services.supervision.anomalies(await call.lease())


async def resume(call: Call) -> Resumed:
    """Let the VM run on that was slowed down or stopped because of an anomaly, also while a cell runs."""
    return await call.services.supervision.resume(call.kernel)


async def watch(call: Call, body: WatchBody) -> Nothing:
    """Tell of these kernels for a minute; those that are not AgentVM's, or unknown, are left out."""
    call.services.look(body.kernels)
    return Nothing()


@dataclass(frozen=True)
class Route:
    """One route.

    Attributes:
        verb: The HTTP method.
        path: The path, with parameters in braces.
        handler: Carries it out: gets the call, and what was sent if it takes that.
        is_work: To ask for it counts as work of the user's, which keeps an idle server from ending; who may only
            read may not.
    """

    verb: str
    path: str
    handler: Callable[..., Awaitable[BaseModel]]
    is_work: bool = True

    @cached_property
    def body(self) -> type[BaseModel] | None:
        """What has to be sent; None for nothing."""
        found: dict[str, Any] = get_type_hints(self.handler)
        return found.get("body")


_KERNEL: Final = "/kernels/{kernel}"

# Of two paths that fit, the first is meant.
ROUTES: Final = (
    Route("GET", "/host", get_host, is_work=False),
    Route("GET", _KERNEL, get_machine, is_work=False),
    Route("GET", f"{_KERNEL}/provenance", get_provenance, is_work=False),
    Route("GET", f"{_KERNEL}/snapshots", list_snapshots, is_work=False),
    Route("POST", f"{_KERNEL}/snapshots", take_snapshot),
    Route("POST", f"{_KERNEL}/snapshots/prune", prune),
    Route("PATCH", f"{_KERNEL}/snapshots/{{snapshot}}", relabel),
    Route("DELETE", f"{_KERNEL}/snapshots/{{snapshot}}", remove),
    Route("GET", f"{_KERNEL}/snapshots/{{one}}/compare/{{other}}", compare),
    Route("POST", f"{_KERNEL}/rollback/plan", plan_rollback),
    Route("POST", f"{_KERNEL}/rollback", roll_back),
    Route("POST", f"{_KERNEL}/fork", fork),
    Route("POST", f"{_KERNEL}/adopt", adopt),
    Route("GET", f"{_KERNEL}/connections", list_connections, is_work=False),
    Route("PUT", f"{_KERNEL}/network", set_network),
    Route("PUT", f"{_KERNEL}/limits", set_limits),
    Route("PUT", f"{_KERNEL}/timetravel", set_timetravel),
    Route("POST", f"{_KERNEL}/vm", do_with_vm),
    Route("POST", f"{_KERNEL}/resume", resume),
    Route("GET", f"{_KERNEL}/blocked", list_blocked, is_work=False),
    Route("GET", f"{_KERNEL}/anomalies", list_anomalies, is_work=False),
    Route("POST", "/watch", watch, is_work=False),
)
