"""What the routes are carried out with: one of each for a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ApiError, NoLeaseError, SupervisorError
from agentvm_kernel.server.errors import (
    ForeignKernelError,
    KernelGoneError,
    NoKernelError,
    NotRunningError,
    SlowError,
)
from agentvm_kernel.server.kernels import Kernel, Kernels, talking, unless_it_ends
from agentvm_kernel.server.news import Herald
from agentvm_kernel.server.supervision import Supervision
from agentvm_kernel.server.typist import Typist
from agentvm_kernel.server.views import MOST_TEXT, Machine
from agentvm_kernel.server.watch import Watch

_PATIENCE: Final = 10.0
_REMEDY: Final = "Run %vm restart, or restart the kernel: that starts one."


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
            with suppress(NoKernelError, ForeignKernelError, NotRunningError):
                found.append(self.kernels.find(one))
        self.watch.look(found)

    async def machine(self, kernel: Kernel) -> Machine:
        """Return the VM under a notebook, or why there is none.

        Args:
            kernel: Its kernel.

        Raises:
            ApiError: the supervisor failed.
        """
        try:
            return await self.supervision.machine(kernel)
        except SupervisorError as error:
            if isinstance(error, ApiError) and error.code != NoLeaseError.code:
                raise
            return await self._condition(kernel, error)

    async def _condition(self, kernel: Kernel, error: SupervisorError) -> Machine:
        """Return how the VM is that the supervisor does not know: the kernel process, not its guest, says that."""
        if self.kernels.is_ending(kernel):
            return Machine(state="restarting")
        try:
            told = await unless_it_ends(kernel, _told(kernel), _PATIENCE)
        except KernelGoneError as gone:
            self.kernels.find(kernel.id)  # it may be known no more
            if self.kernels.comes_again(kernel):
                return Machine(state="restarting")
            return Machine(state="ended", text=f"{gone.message} {gone.hint}")
        except SlowError:
            return Machine(state="starting", text="The kernel's process does not answer yet.")
        state = told.get("state")
        text = " ".join(_sentence(str(told[name])) for name in ("text", "hint") if told.get(name))[:MOST_TEXT]
        if error.code != NoLeaseError.code and state != "starting":
            # Why none could be started says more than that there is none; of its end the kernel may not know yet.
            why = text if state == "ended" and text else error.message
            return Machine(state="none", text=f"{why} {_REMEDY}")
        # It may have got one meanwhile; then pages are told, and ask again.
        return Machine(state="ended" if state == "ended" else "starting", text=text)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "\N{HORIZONTAL ELLIPSIS}")) else f"{text}."


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
