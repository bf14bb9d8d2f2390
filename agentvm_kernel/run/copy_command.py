"""``agentvm cp``: files into the VM of a running notebook and out of it.

The link to a notebook's VM is its kernel process's own. So this command types ``%push`` and ``%pull`` there, as any
client of the kernel can whose user may read its connection file; the kernel orders them among the notebook's cells.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from queue import Empty
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from agentvm_kernel.errors import SupervisorError, TransferError
from agentvm_kernel.kernel.answers import OF_HOST, OF_PROGRESS
from agentvm_kernel.run.places import granted
from agentvm_kernel.supervisor.operator_messages import VMInfo
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient
from agentvm_kernel.terminal import plain

if TYPE_CHECKING:
    from jupyter_client.asynchronous.client import AsyncKernelClient

_OWNER: Final = re.compile(r"kernel-[A-Za-z0-9-]{1,100}")
_INTERRUPTED: Final = 130
_SUBSCRIBED: Final = 60.0
_POLL: Final = 1.0
_MAX_SHOWN: Final = 4000
_USAGE: Final = "It is `agentvm cp LOCAL VM:PATH` or `agentvm cp VM:PATH LOCAL`; see `agentvm cp --help`."

_out = Console()
_err = Console(stderr=True)


@dataclass(frozen=True)
class Place:
    """Where something is to be copied from or to.

    Attributes:
        vm: What the user calls the VM; empty for this computer.
        path: The path there.
    """

    vm: str
    path: str

    @classmethod
    def of(cls, text: str) -> Place:
        """Read a place; one that begins with ``/``, ``.`` or ``~`` is here, whatever colons it has."""
        vm, colon, path = text.partition(":")
        if not colon or not vm or text[0] in "/.~":
            return cls("", text)
        return cls(vm, path)


def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file or folder here, or VM:PATH.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="What it becomes, here or as VM:PATH.")],
    limit: Annotated[str, typer.Option(metavar="SIZE", help="How much may be copied, such as 10GiB.")] = "",
) -> None:
    """Copy files and folders into the VM of a running notebook and out of it.

    VM is an id or its beginning, the notebook's path or the end of it, or the kernel's id; `agentvm vm list` has them.
    Relative paths there begin in the VM's home folder. What is copied to a folder that is there is put into it. It
    waits for the notebook's running cells; Ctrl-C ends it, and the same command goes on where it stopped.
    """
    code, wanted, here = _magic(Place.of(source), Place.of(target), limit)
    with SyncSupervisorClient(start=False) as client:
        vm = find(client.vms().vms, wanted)
    try:
        with granted(here):
            status = asyncio.run(_typed(code, _connection_file(vm)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        status = _INTERRUPTED
    raise typer.Exit(status)


def find(vms: tuple[VMInfo, ...], wanted: str) -> VMInfo:
    """Return the notebook's VM that is meant.

    Args:
        vms: All there are.
        wanted: See `cp`.

    Raises:
        SupervisorError: it is none, several, or one without a kernel.
    """
    leased = [vm for vm in vms if vm.state == "leased"]
    exact = [vm for vm in leased if wanted in (vm.id, vm.notebook, vm.owner, vm.owner.removeprefix("kernel-"))]
    found = exact or [vm for vm in leased if vm.id.startswith(wanted) or vm.notebook.endswith(f"/{wanted}")]
    if len(found) != 1:
        which = "No VM that is out is called" if not found else f"{len(found)} VMs are called"
        raise SupervisorError(f"{which} {wanted!a:.60}.", "See `agentvm vm list`.")
    if not _OWNER.fullmatch(found[0].owner):
        raise SupervisorError(
            f"The VM {found[0].id!a:.40} is not that of a notebook in Jupyter, so nothing can be typed there.",
            "Sessions have put() and get(), and `agentvm run` has --in and --out.",
        )
    return found[0]


def _magic(source: Place, target: Place, limit: str) -> tuple[str, str, str]:
    """Return what is to be typed, what the user calls the VM, and which path here it is about."""
    if bool(source.vm) == bool(target.vm):
        raise TransferError("One of the two has to be in a VM, and one here.", _USAGE)
    here = _here(target, source) if source.vm else _here(source)
    words = [_inside(source), here] if source.vm else [here, _inside(target), "--into"]
    words += ["--limit", limit] if limit else []
    for word in words:
        if not word.isprintable():
            raise TransferError(f"{word!a:.80} cannot be typed in a cell.", "Give it another name.")
    name = "%pull" if source.vm else "%push"
    return " ".join([name, *map(shlex.quote, words)]), source.vm or target.vm, here


def _inside(place: Place) -> str:
    return f"./{place.path}" if place.path.startswith("-") or not place.path else place.path


def _here(place: Place, source: Place | None = None) -> str:
    path = Path(place.path).expanduser().absolute()
    if source is not None and (path.is_dir() or place.path.endswith("/")):
        name = PurePosixPath(source.path).name
        if name in ("", ".."):
            raise TransferError(f"{source.path!a:.80} has no name that it could keep here.", _USAGE)
        path /= name
    return str(path)


def _connection_file(vm: VMInfo) -> str:
    from jupyter_client.connect import find_connection_file  # noqa: PLC0415 - other commands need not wait for it

    try:
        return find_connection_file(f"{vm.owner}.json")
    except OSError:
        raise TransferError(
            f"The kernel of the VM {vm.id!a:.40} cannot be reached: its connection file {vm.owner}.json is not in "
            "Jupyter's runtime folder.",
            "Is its Jupyter another user's, or in a container? Use %push and %pull in the notebook.",
        ) from None


async def _typed(code: str, connection_file: str) -> int:
    """Type a magic and show what comes of it; returns the exit code."""
    from jupyter_client.asynchronous.client import AsyncKernelClient  # noqa: PLC0415

    client = AsyncKernelClient(connection_file=connection_file)
    client.load_connection_file()
    client.start_channels(stdin=False)
    try:
        await _subscribed(client)
        msg_id = client.execute(code, store_history=False, stop_on_error=False, allow_stdin=False)
        with Status("waiting for the notebook", console=_err) as status, _Interruption(client) as interruption:
            reply, shown = await _ended(client, msg_id, status, interruption)
    finally:
        client.stop_channels()
        client.context.term()
    if reply["status"] == "ok":
        _out.print(Text(plain(shown[:_MAX_SHOWN], keep="\n")), soft_wrap=True)
        return 0
    if reply.get("ename") == "KeyboardInterrupt":
        return _INTERRUPTED
    raise TransferError(str(reply.get("evalue") or "A cell before it failed.")[:_MAX_SHOWN])


async def _subscribed(client: AsyncKernelClient) -> None:
    """Wait until the kernel publishes to us, too: until it is heard of something that was asked beside the cells."""
    asked: set[str] = set()
    try:
        async with asyncio.timeout(_SUBSCRIBED):
            while True:
                message = client.session.msg("kernel_info_request", {})
                asked.add(message["header"]["msg_id"])
                client.control_channel.send(message)
                with suppress(Empty):
                    while (await client.get_iopub_msg(timeout=_POLL))["parent_header"].get("msg_id") not in asked:
                        pass
                    return
    except TimeoutError:
        raise TransferError(
            "The notebook's kernel does not answer.", "Is it still there? See `agentvm vm list`."
        ) from None


async def _ended(
    client: AsyncKernelClient, msg_id: str, status: Status, interruption: _Interruption
) -> tuple[dict[str, Any], str]:
    """Return the reply to what was typed, and its result; progress is shown.

    What the guest shows meanwhile is left out, for it would pass for the host's.
    """
    shown = ""
    reply: dict[str, Any] | None = None
    while True:
        try:
            message = await client.get_iopub_msg(timeout=_POLL)
        except Empty:
            if not await client.is_alive():
                raise TransferError("The notebook's kernel has ended.") from None
            interruption.tell_waiting()
            continue
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        interruption.began()
        content = message["content"]
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            break
        by = {"agentvm": message["metadata"].get("agentvm")}
        if by == OF_PROGRESS and "data" in content:
            status.update(Text(plain(str(content["data"]["text/plain"])[:_MAX_SHOWN])))
        elif by == OF_HOST:
            shown = str(content["data"].get("text/plain", ""))
    while reply is None:
        answer = await client.get_shell_msg(timeout=_SUBSCRIBED)
        reply = answer["content"] if answer["parent_header"].get("msg_id") == msg_id else None
    return reply, shown


class _Interruption:
    """Lets Ctrl-C interrupt what was typed once it has begun, for a cell of the user's is not to be ended by it.

    A second one leaves at once.

    Args:
        client: Of the kernel.
    """

    def __init__(self, client: AsyncKernelClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._begun = self._wanted = self._told = False

    def __enter__(self) -> Self:
        self._loop.add_signal_handler(signal.SIGINT, self._pressed)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_signal_handler(signal.SIGINT)

    def began(self) -> None:
        """Note that it has begun."""
        begun, self._begun = self._begun, True
        if self._wanted and not begun:
            self._interrupt()

    def tell_waiting(self) -> None:
        """Say, where no terminal shows it, that it has not begun."""
        if not (self._begun or self._told or _err.is_terminal):
            self._told = True
            _err.print("Waiting for the cell that runs.")

    def _pressed(self) -> None:
        if self._wanted and self._task is not None:
            self._task.cancel()
        elif self._begun:
            self._interrupt()
        else:
            _err.print("It is ended as soon as it begins; the cell that runs now goes on. Ctrl-C leaves.")
        self._wanted = True

    def _interrupt(self) -> None:
        self._client.control_channel.send(self._client.session.msg("interrupt_request", {}))
