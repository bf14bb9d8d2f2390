"""What the routes are carried out with: one of each for a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.server.errors import ForeignKernelError, NoKernelError
from agentvm_kernel.server.kernels import Kernel, Kernels, talking, unless_it_ends
from agentvm_kernel.server.news import Herald
from agentvm_kernel.server.supervision import Supervision
from agentvm_kernel.server.typist import Typist
from agentvm_kernel.server.views import MOST_TEXT, Machine
from agentvm_kernel.server.watch import Watch

_PATIENCE: Final = 10.0


class Services:
    """Everything that the routes need.

    Args:
        manager: The server's manager of kernels.
        paths: The user's folders.
        emit: Sends pages an event's data.

    Attributes:
        kernels: Finds kernels.
        typist: Types into them.
        supervision: Asks the supervisor.
        herald: Tells pages.
        watch: Has them told.
    """

    def __init__(self, manager: Any, paths: Paths, emit: Callable[[dict[str, object]], object]) -> None:
        self.kernels = Kernels(manager)
        self.typist = Typist()
        self.supervision = Supervision(paths)
        self.herald = Herald(emit)
        self.watch = Watch(self.supervision, self.herald)

    async def close(self) -> None:
        """Leave nothing behind."""
        await self.watch.close()
        await self.supervision.close()

    def look(self, kernels: Iterable[str]) -> None:
        """Have pages told of kernels for a while.

        Args:
            kernels: Their ids; those that this server does not have, or that are not AgentVM's, are left out.
        """
        found: list[Kernel] = []
        for one in kernels:
            with suppress(NoKernelError, ForeignKernelError):
                found.append(self.kernels.find(one))
        self.watch.look(found)

    async def condition(self, kernel: Kernel) -> Machine:
        """Return how the VM is that a kernel does not have: its kernel process knows.

        Args:
            kernel: The kernel.
        """
        try:
            told = await unless_it_ends(kernel, _told(kernel), _PATIENCE)
        except AgentVMError as error:
            return Machine(state="ended", text=f"{error.message} {error.hint}")
        text = " ".join(filter(None, (str(told.get("text", "")), str(told.get("hint", "")))))
        # It may have got one meanwhile; then pages are told, and ask again.
        return Machine(state="ended" if told.get("state") == "ended" else "starting", text=text[:MOST_TEXT])


async def _told(kernel: Kernel) -> dict[str, Any]:
    """Ask a kernel process, not its guest, how its VM is."""
    async with talking(kernel) as client:
        message = client.session.msg("usage_request", {})
        client.control_channel.send(message)
        while True:
            answer = await client.get_control_msg(timeout=None)
            if answer["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                told: dict[str, Any] = answer["content"].get("agentvm", {})
                return told
