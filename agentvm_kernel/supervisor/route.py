"""What a route of the API is: its handler, what goes in and out, how it can be refused. Server and document use it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, get_type_hints

from pydantic import TypeAdapter

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.messages import Message
from agentvm_kernel.supervisor.operator import Operator

PARAMETERS: Final = {
    "lease": ("[^/]+", "Id of the lease, from its grant."),
    "fork": ("[0-9]{1,9}", "Number of the fork, from 1."),
    "snapshot": ("[0-9a-f]{12}", "Id of the snapshot."),
    "vm": ("[^/]+", "Id of the VM."),
}
"""What may stand in braces in a path: a regular expression and what it means."""

QUERY: Final = {
    "follow": ("[01]?", "1 to go on with what comes, until the connection is closed."),
    "since": ("[0-9]{1,12}(\\.[0-9]{1,9})?", "Seconds on the host's monotonic clock."),
    "last": ("[1-9][0-9]{0,2}", "How many of the newest; 20 by default."),
    "events": ("[a-z_]{1,40}(,[a-z_]{1,40}){0,9}", "Names of events, with commas between them; all by default."),
}
"""What may stand behind a path: as above."""

STATUS: Final = {
    "request": 400,
    "config": 400,
    "limit": 400,
    "name": 400,
    "forbidden": 403,
    "network_locked": 403,
    "no_route": 404,
    "no_lease": 404,
    "no_vm": 404,
    "no_snapshot": 404,
    "no_fork": 404,
    "method": 405,
    "snapshot": 409,
    "share": 409,
    "stopped": 409,
    "label_taken": 409,
    "no_network": 409,
    "cassette": 409,
    "vm_ended": 409,
    "too_large": 413,
    "host": 503,
    "leaving": 503,
    "quota": 507,
    "disk_full": 507,
}
"""HTTP status by the code of the error; 500 for all others."""


def status_of(code: str) -> int:
    """Return the HTTP status of an error.

    Args:
        code: The error's code.
    """
    return STATUS.get(code, 500)


@dataclass(frozen=True)
class Call:
    """A request.

    Attributes:
        supervisor: Who is asked.
        stop: Set to let it leave.
        parameters: What stands in the path.
        query: What stands behind it.
    """

    supervisor: Supervisor
    stop: asyncio.Event
    parameters: Mapping[str, str]
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def lease(self) -> Lease:
        """The lease that the path names.

        Raises:
            NoLeaseError: there is none of that id.
        """
        return self.supervisor.lease(self.parameters["lease"])

    @property
    def operator(self) -> Operator:
        """What an administrator can see and do."""
        return Operator(self.supervisor)

    @property
    def fork(self) -> int:
        """The number of the fork that the path names."""
        return int(self.parameters["fork"])


@dataclass(frozen=True)
class Route:
    """One route.

    Its handler gets the call, what was sent if that is annotated as ``wanted``, and, if it has events, ``emit``. Its
    name, its docstring's first line and its annotations are what the document says.

    Attributes:
        method: The HTTP method.
        path: The path, with parameters in braces.
        handler: Does it.
        refusals: Errors that it may end in, besides those that any route can.
        events: Reads one event, if the answer is a stream of them.
        query: Names of what may stand behind the path.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    refusals: tuple[type[AgentVMError], ...] = ()
    events: TypeAdapter[Any] | None = field(default=None)
    query: tuple[str, ...] = ()

    @cached_property
    def request(self) -> type[Message] | None:
        """What has to be sent."""
        found: type[Message] | None = self._hints.get("wanted")
        return found

    @property
    def answer(self) -> Any:
        """What is answered; None if that is nothing but that it has been done."""
        found = self._hints["return"]
        return None if found is type(None) else found

    @property
    def summary(self) -> str:
        """What it does."""
        return (inspect.getdoc(self.handler) or "").partition("\n")[0]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what stands in braces."""
        return tuple(name for name in PARAMETERS if f"{{{name}}}" in self.path)

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return get_type_hints(self.handler)
