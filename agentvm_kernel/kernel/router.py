"""Routes between Jupyter's clients, the host's own doings and the guest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import AgentVMError, LinkError, VMEndedError
from agentvm_kernel.kernel.anomaly import noticed
from agentvm_kernel.kernel.answers import Answers
from agentvm_kernel.kernel.chronicle import Chronicle
from agentvm_kernel.kernel.deadline import Watchdog
from agentvm_kernel.kernel.debugging import Debugging
from agentvm_kernel.kernel.directive import is_directed
from agentvm_kernel.kernel.executions import Executions
from agentvm_kernel.kernel.facts import CellFacts, Facts
from agentvm_kernel.kernel.fence import Lane, Lanes, Way
from agentvm_kernel.kernel.guest import Guest
from agentvm_kernel.kernel.hostcomms import HostComms
from agentvm_kernel.kernel.hostside import HostSide
from agentvm_kernel.kernel.info import Usage, condition, kernel_info
from agentvm_kernel.kernel.jsoncheck import parse_object
from agentvm_kernel.kernel.machine import Machine, State
from agentvm_kernel.kernel.magic import Magic, Magics
from agentvm_kernel.kernel.network import cell_of
from agentvm_kernel.kernel.output import OutputGate
from agentvm_kernel.kernel.progress import ProgressDisplay
from agentvm_kernel.kernel.requests import NO_REPLY, Request, RequestTable
from agentvm_kernel.kernel.sockets import Sockets
from agentvm_kernel.kernel.succession import Succession
from agentvm_kernel.kernel.timeline import Timeline
from agentvm_kernel.kernel.wire import ClientMessage, encode
from agentvm_kernel.supervisor.messages import Blocked, Noticed

log = logging.getLogger("agentvm.router")

_SHUTDOWN_DEADLINE: Final = 3.0
_SHUT_DOWN: Final = VMEndedError("The kernel was shut down.")


class Router:
    """The kernel, as its clients see it.

    Args:
        sockets: Where the clients are.
        machine: The VM under the notebook.
        magics: Recognises host magics.
        shows_facts: Cells show what they cost, until `%vm facts off`.
    """

    def __init__(self, sockets: Sockets, machine: Machine, magics: Magics, *, shows_facts: bool = False) -> None:
        self._sockets = sockets
        self._machine = machine
        self._magics = magics
        self._timeline = Timeline()
        self._chronicle = Chronicle()
        self._answers = Answers(sockets, self._place)
        self._progress = ProgressDisplay(self._answers, machine)
        self._table = RequestTable(lambda: str(sockets.wire.session.msg_id))
        self._host_comms = HostComms(self._answers, lambda: bool(self._table.current()))
        self._usage = Usage()
        self._debugging = Debugging()
        self._gate = OutputGate(machine.limits)
        self._facts = Facts(machine.moved, lambda: self._timeline.snapshot, shown=shows_facts)
        self._executions = Executions(machine.network.report, self._facts)
        self._answers.on_idle = self._executions.shown
        self._watchdog = Watchdog(self._table, machine, self._answers, self._debugging, lambda: self._timeline.snapshot)
        self._host_side = HostSide(
            machine, self._answers, self._progress, self._table, self._timeline, self._chronicle, self._host_comms,
            self._usage, self._facts, self.forward,
        )  # fmt: skip
        self._lanes = Lanes(self)
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        machine.watcher = Succession(
            sockets, machine, self._table, self._answers, self._timeline, self._chronicle, self._debugging, self._gate,
            self._host_comms, self._executions, self._watchdog, self._lanes, self._replied,
        )  # fmt: skip
        machine.network.on_blocked = self._blocked
        machine.firewall.is_host_code = lambda code: magics.find(code) is not None or is_directed(code)
        machine.on_noticed = self._noticed
        self._gate.on_output = machine.network.put_out

    def revive(self, notebook: Path) -> None:
        """Let live again what a notebook shows of an earlier kernel process.

        Args:
            notebook: Its file, if there is one.
        """
        self._magics.revive(notebook, self._machine, self._chronicle, self._host_comms)

    async def run(self) -> None:
        """Serve until a shutdown request was answered, or `stop` was called."""
        self._machine.start()
        loops = [
            asyncio.create_task(self._serve("shell")),
            asyncio.create_task(self._serve("control")),
            asyncio.create_task(self._serve_stdin()),
            asyncio.create_task(self._sockets.welcome_subscribers()),
            asyncio.create_task(self._over.wait()),
        ]
        await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        await self._watchdog.close()
        await self._machine.close(_SHUT_DOWN)
        self._lanes.close()
        for task in (*loops, *self._tasks):
            task.cancel()
        results = await asyncio.gather(*loops, *self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def stop(self) -> None:
        """Make `run` give the VM back and return."""
        self._over.set()

    # What clients ask

    async def _serve(self, channel: str) -> None:
        """Take the requests of shell or control, in order."""
        async for message in self._sockets.messages(channel):
            try:
                request = Request.of(channel, message)
            except ValueError as error:
                log.warning("dropped a message on %s: %s", channel, error)
                continue
            await self._take(request)

    async def _take(self, request: Request) -> None:
        """Answer a request here, or put it on its lane."""
        if (content := self._host_comms.owned(request)) is not None:
            self._spawn(self._host_comms.take(request, content))
            return
        magic = request.magic = self._magics.find(request.code) if request.is_execute else None
        match request.message.msg_type:
            case "kernel_info_request" if self._machine.state is not State.READY:
                await self._answers.answer(request, kernel_info())
            case "interrupt_request":
                self._spawn(self._interrupt(request))
            case "shutdown_request":
                self._spawn(self._shutdown(request))
            case "usage_request":
                guest = self._machine.guest
                content = self._usage.reply(guest.granted if guest else None)
                await self._answers.answer(request, content | {"agentvm": condition(self._machine)})
            case "connect_request":
                ports = {f"{name}_port": port for name, port in self._sockets.addresses.ports.items()}
                await self._answers.answer(request, {"status": "ok", **ports})
            case "execute_request" if magic and self._is_at_once(request, magic):
                self._spawn(self._perform_at_once(request, magic))
            case _:
                await self._lanes.of(request).submit(request)

    def _is_at_once(self, request: Request, magic: Magic) -> bool:
        """Whether a magic is carried out on arrival: in the middle of a cell, or of a wait that no cell shares."""
        if self._machine.guest:
            return magic.at_once
        return magic.ends_waiting and not self._machine.held and self._lanes.of(request).first_execute() is None

    async def _serve_stdin(self) -> None:
        async for message in self._sockets.messages("stdin"):
            if message.msg_type == "input_reply":
                await self._input_reply(message)

    async def _input_reply(self, message: ClientMessage) -> None:
        """Lead the user's input to the guest, if it asked this client for it."""
        guest = self._machine.guest
        for request in list(self._table.unfinished()):
            if guest and request.inputs and request.message.idents == message.idents:
                _, guest_header = request.inputs.popitem()
                request.inputs.clear()
                parts = [message.raw_header, guest_header, message.metadata, message.content]
                await self._send(guest, "stdin", parts)
                return
        log.warning("dropped an input reply that nobody waits for")

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _interrupt(self, request: Request) -> None:
        """Interrupt a host magic, a wait for the VM, or else what the guest runs."""
        content: dict[str, object] = {"status": "ok"}
        await self._answers.busy(request)
        interrupted = await self._lanes.interrupt()
        if not interrupted:
            await self._machine.unheld()
        guest = self._machine.guest
        if guest and not interrupted:
            for running in self._table.current():
                running.inputs.clear()  # it does not wait for the user any more
            try:
                await guest.agent.interrupt()
            except LinkError as error:
                content = {"status": "error", "ename": type(error).__name__, "evalue": str(error), "traceback": []}
        await self._answers.answer(request, content)

    async def _shutdown(self, request: Request) -> None:
        """Give the VM back, answer, and end this process (Jupyter starts another for a restart)."""
        await self._answers.busy(request)
        await self._host_comms.close()
        try:
            async with asyncio.timeout(_SHUTDOWN_DEADLINE):
                await self._machine.close(_SHUT_DOWN)
        except TimeoutError:
            log.warning("the VM was not given back within %s s; it ends with this process", _SHUTDOWN_DEADLINE)
        try:
            restart = bool(parse_object(request.message.content).get("restart", False))
        except ValueError:
            restart = False
        content: dict[str, object] = {"status": "ok", "restart": restart}
        await self._answers.publish("shutdown_reply", content, request)
        await self._answers.answer(request, content)
        self._over.set()

    # LaneHost

    def has_guest(self) -> bool:
        """Whether there is a VM to which requests may be forwarded now."""
        return self._machine.state is State.READY and not self._machine.held

    async def settled(self, lane: Lane) -> None:
        """Return when requests may be forwarded, or there will be no VM; meanwhile show progress."""
        if self._machine.held or self._machine.state is State.STARTING:
            async with self._progress.shown(lane.first_execute):
                await self._machine.settled()

    def way(self, request: Request) -> Way:
        """How a request is carried out."""
        if not request.is_execute:
            return Way.GUEST
        if request.magic is not None:
            return Way.HOST
        return Way.ALONE if self._is_recorded(request) or is_directed(request.code) else Way.GUEST

    def _is_recorded(self, request: Request) -> bool:
        """Whether time travel takes a snapshot after it."""
        return self._timeline.travelling and request.lane == "shell" and not request.silent

    def discards(self, request: Request) -> bool:
        """Whether a request throws the VM away."""
        return request.magic is not None and request.magic.discards

    async def forward(self, request: Request) -> None:
        """Give a request to the guest, or refuse it when there is none."""
        guest = self._machine.guest
        if guest is None:
            await self._refuse(request)
            return
        self._table.add(request)
        request.forwarded = True
        if request.is_execute:
            request.run = request.run or self._timeline.next_run()
            request.shows_facts = self._facts.shown and not (request.silent or request.magic)
            self._watchdog.wake()
            self._gate.begin()
            self._tell_running()
        message = request.message
        content = message.content
        parts = [self._guest_header(request), message.parent, message.metadata, content, *message.buffers]
        message.content, message.buffers = b"", []
        await self._send(guest, request.channel, parts)
        self._note(message.msg_type, content)

    def _guest_header(self, request: Request) -> bytes:
        """Return the header under which the guest gets a request; the main shell serves for subshells that are gone."""
        message = request.message
        gone = self._timeline.comms.is_gone(message.header.get("subshell_id"))
        if request.guest_id == message.msg_id and not gone:
            return message.raw_header
        header = message.header | {"msg_id": request.guest_id}
        if gone:
            del header["subshell_id"]
        return encode(header)

    def _note(self, msg_type: str, content: bytes) -> None:
        """Take note of what a client asked, where the host has to know."""
        try:
            if msg_type in NO_REPLY:
                value = parse_object(content)
                self._timeline.comms.note(msg_type, value)
                if msg_type == "comm_open":
                    self._machine.firewall.opened_by_client(value)
            elif msg_type == "debug_request":
                self._debugging.asked(content)
        except ValueError as error:
            log.warning("a client's %s is no JSON object: %s", msg_type, error)

    async def _send(self, guest: Guest, channel: str, parts: list[bytes]) -> None:
        try:
            await guest.send(channel, parts)
        except LinkError as error:
            log.info("not sent, the link is gone: %s", error)  # the machine tells every pending request why

    async def _refuse(self, request: Request) -> None:
        error = self._machine.error or VMEndedError("There is no VM.")
        if request.message.msg_type == "comm_info_request":
            await self._answers.answer(request, {"status": "ok", "comms": self._host_comms.told(request.target)})
            return
        if request.is_execute:
            await self._answers.busy(request)
            await self._answers.show_input(request)
        await self._answers.fail(request, error)
        if request.is_execute and request.stop_on_error:
            await self._lanes.of(request).fail_fast()

    async def interrupted(self, request: Request) -> None:
        """Answer a request that an interrupt ended."""
        await self._answers.fail(request, KeyboardInterrupt(), remedy=False)

    async def broken(self, request: Request, failure: BaseException) -> None:
        """Answer a request whose host magic failed on something that was not foreseen."""
        log.error("a host magic failed", exc_info=failure)
        error = AgentVMError(f"The magic failed on something that was not foreseen ({type(failure).__name__}).")
        await self._answers.fail(request, error, remedy=False)

    async def abort(self, request: Request) -> None:
        """Answer a request that is not carried out because an earlier one failed."""
        await self._answers.abort(request)

    async def run_alone(self, request: Request) -> None:
        """Give a cell to the guest, with what its directives ask for, and take a snapshot when it is done."""
        done = await self._host_side.run_alone(request, recorded=self._is_recorded(request))
        if not done and request.stop_on_error:
            await self._lanes.of(request).fail_fast()

    async def perform(self, request: Request) -> bool:
        """Carry out a host magic."""
        magic = self._magics.find(request.code)
        assert magic is not None
        return await self._host_side.perform(request, magic)

    async def _perform_at_once(self, request: Request, magic: Magic) -> None:
        await self._host_side.perform_at_once(request, magic)

    # What the guest has done

    async def _replied(self, request: Request, content: dict[str, object]) -> CellFacts | None:
        """Note that the guest is done with a cell, and goes on to the next; return what it cost."""
        ended = self._executions.replied(request, content)
        self._chronicle.ends(request.run, failed=content["status"] != "ok")
        self._tell_running()
        self._spawn(self._host_comms.say_idle())
        return None if ended is None else await self._facts.complete(ended)

    def _tell_running(self) -> None:
        """Tell the supervisor which cell the guest runs, if it runs one."""
        current = self._table.current()
        for request in current:
            self._executions.runs(request, self._machine.guest)
            self._chronicle.begins(request.run, request.code)
        if current:
            self._machine.network.running(cell_of(current[0]))

    def _blocked(self, event: Blocked) -> None:
        """Tell a cell that a connection was refused: at its end, or now if it has ended."""
        request = self._table.of_run(event.run)
        if request is not None:
            request.blocked.append(event)
            if request.idle:
                self._spawn(self._answers.tell_blocked(request))

    def _noticed(self, event: Noticed) -> None:
        """Tell a cell of an anomaly, at once; without one that is known, it is in the audit log alone."""
        request = self._table.of_run(event.run)
        if request is not None and not request.silent:
            content: dict[str, object] = {"name": "stderr", "text": noticed(event)}
            self._spawn(self._answers.publish("stream", content, request))

    def _place(self) -> dict[str, str]:
        guest = self._machine.guest
        return {"vm": guest.granted.vm, "snapshot": self._timeline.snapshot} if guest else {}
