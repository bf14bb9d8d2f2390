"""The kernels of this server: which there are, which have a VM of ours, and how they are talked to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any, Final, TypeVar

import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import KernelConnectionInfo

from agentvm_kernel.kernel_command import is_kernel
from agentvm_kernel.server.errors import (
    ForeignKernelError,
    KernelGoneError,
    NoKernelError,
    NotRunningError,
    SlowError,
)

_T = TypeVar("_T")
_AGAIN: Final = 0.2
"""Seconds after which a kernel is asked again whose answer was published before this end had subscribed."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of ours.

    Attributes:
        id: Its id.
        owner: What its lease is for.
        pid: Its process.
        connection: Where its sockets are, and the key to them.
    """

    id: str
    owner: str
    pid: int
    connection: KernelConnectionInfo


class Kernels:
    """Finds kernels.

    Args:
        manager: The server's manager of kernels.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __contains__(self, kernel: str) -> bool:
        return kernel in self._manager.list_kernel_ids()

    def find(self, kernel: str) -> Kernel:
        """Return a kernel of ours.

        Args:
            kernel: Its id.

        Raises:
            NoKernelError: this server has none of that id.
            ForeignKernelError: it is another kernel than AgentVM's.
            NotRunningError: it has no process now.
        """
        if kernel not in self:
            raise NoKernelError("This server has no such kernel.", "Start the notebook's kernel, or restart it.")
        found = self._manager.get_kernel(kernel)
        if not hasattr(found, "provisioner") or not is_kernel(found.kernel_spec.argv):
            raise ForeignKernelError(
                "This notebook's kernel is not AgentVM: its cells run on this host, without a VM.",
                "Choose Python (AgentVM) from the menu Kernel, Change Kernel.",
            )
        pid = getattr(found.provisioner, "pid", None)
        if pid is None:
            raise NotRunningError("The kernel is about to be started.", "Try again in a moment.")
        owner = Path(found.connection_file).stem[:200]
        return Kernel(kernel, owner, pid, found.get_connection_info(session=False))

    def is_ending(self, kernel: Kernel) -> bool:
        """Whether the manager has a kernel's process end, to start another one or not.

        Args:
            kernel: The kernel.
        """
        return kernel.id in self and bool(self._manager.get_kernel(kernel.id).shutting_down)

    def comes_again(self, kernel: Kernel) -> bool:
        """Whether the manager starts another process in place of one that has ended.

        Args:
            kernel: The kernel.
        """
        return self.is_ending(kernel) or (kernel.id in self and bool(self._manager.get_kernel(kernel.id).autorestart))


@asynccontextmanager
async def talking(kernel: Kernel) -> AsyncIterator[AsyncKernelClient]:
    """Open a client of a kernel that hears what the kernel publishes from now on.

    Args:
        kernel: The kernel.
    """
    # A context of its own would have to be ended, which waits for what a dead kernel never takes.
    client = AsyncKernelClient(context=zmq.asyncio.Context.instance())
    client.load_connection_info(kernel.connection)
    client.start_channels(stdin=False, hb=False)
    try:
        while True:
            # Answered by the kernel process itself, whatever the guest does.
            client.control_channel.send(client.session.msg("connect_request", {}))
            try:
                await client.get_iopub_msg(timeout=_AGAIN)
                break
            except Empty:
                continue
        yield client
    finally:
        client.stop_channels()


async def unless_it_ends(kernel: Kernel, work: Coroutine[Any, Any, _T], seconds: float) -> _T:
    """Do something with a kernel for as long as its process lives.

    Args:
        kernel: The kernel.
        work: What is done.
        seconds: How long that may take.

    Raises:
        KernelGoneError: its process has ended; what it was asked to do may have been done.
        SlowError: it took too long.
    """
    task = asyncio.ensure_future(work)
    try:
        with _death(kernel.pid) as death:
            both: set[asyncio.Future[Any]] = {task, death}
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if death.done():
            raise KernelGoneError("The kernel ended before it had answered.", "Restart the kernel.")
        raise SlowError(
            "The kernel has not answered yet; it still does what was asked for once it can.",
            "A cell may be running: interrupt it, or wait.",
        )
    finally:
        task.cancel()
        await asyncio.wait([task])


def _settle(death: asyncio.Future[None]) -> None:
    if not death.done():
        death.set_result(None)


@contextmanager
def _death(pid: int) -> Iterator[asyncio.Future[None]]:
    """Return a future that is done once a process has ended, reaped or not (``pidfd_open(2)``)."""
    loop = asyncio.get_running_loop()
    death = loop.create_future()
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        death.set_result(None)
        yield death
        return
    loop.add_reader(process, _settle, death)
    try:
        yield death
    finally:
        loop.remove_reader(process)
        os.close(process)
