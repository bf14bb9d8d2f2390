"""The guest agent: one process and one loop that serve the owner's control port, the link and ipykernel.

It writes nothing to the disk and its memory is bounded, so that it works on when the user's code has filled either.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agentvm_guest.control import ControlPort, Reply
from agentvm_guest.forwarding import Forwarding
from agentvm_guest.identity import Identity
from agentvm_guest.kernel import Death, KernelProcess
from agentvm_guest.limits import REHEARSED, START
from agentvm_guest.link import LinkServer
from agentvm_guest.loop import Loop
from agentvm_guest.operations import Operations
from agentvm_guest.ports import Port, accept, listen_unix, listen_vsock, open_virtio_port
from agentvm_guest.processes import SERVICE as EXEC
from agentvm_guest.processes import Processes
from agentvm_guest.questions import SERVICE as ASK
from agentvm_guest.questions import Questions
from agentvm_guest.relay import SERVICES, Relay
from agentvm_guest.system import RecordingSystem, System
from agentvm_kernel.errors import ProtocolError
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import GuestHandshake, HostHandshake
from agentvm_kernel.link.stream import SessionStream

CONTROL_PORT = "agentvm.control"
LINK_PORT = "agentvm.link"
KERNEL_PYTHON = "/opt/agentvm/venv/bin/python"
# A busy cell, which a snapshot may have frozen, can hold the interpreter's lock for long.
_CONFIRM_SECONDS = 20.0
_SETTLE_SECONDS = 60.0
_REFUSAL_PAUSE = 1.0


class Agent:
    """Puts the parts together.

    Args:
        system: The privileged operations.
        python: The user's Python.
        folder: Where ipykernel's sockets lie.
        confirm_seconds: How long ipykernel may take to renew its generators.
        limits: Bounds of the link.
        forwarder: What the forwarder is started with; None for no forwarder.
    """

    def __init__(
        self,
        system: System,
        *,
        python: str,
        folder: Path,
        confirm_seconds: float = _CONFIRM_SECONDS,
        limits: Limits | None = None,
        forwarder: list[str] | None = None,
    ) -> None:
        # The host has proven itself: it may send as many pings as it likes.
        limits = limits or Limits(idle_frames=1 << 62)
        self.loop = Loop()
        self.link = LinkServer(self.loop, self, limits)
        self.kernel = KernelProcess(
            self.loop,
            system,
            python=python,
            folder=folder,
            max_message=limits.max_message,
            max_parts=limits.max_parts - 8,
        )
        self._system = system
        self._confirm_seconds = confirm_seconds
        self._relay = Relay(self.loop.set_writing, self._on_broken)
        self._processes = Processes(self.loop, system, python=python, then_pump=self._then_pump)
        self._forwarding = None if forwarder is None else Forwarding(self.loop, forwarder, self._set_environment)
        self._operations = Operations(self.loop, system, self.kernel, self.link, self._forwarding, confirm_seconds)
        self._questions = Questions(self.loop, self.kernel, system, self.link.pump)
        self._control: ControlPort | None = None
        self._refusals = 0
        self._last_refusal = ""
        self.kernel.on_ready = self._on_ready
        self.kernel.on_death = self._on_death

    def serve_control(self, port: Port) -> None:
        """Take the control port; a later connection replaces an earlier one."""
        if self._control is not None:
            self._control.close()
        self._control = ControlPort(self.loop, port, self._operations.take, self._forget_control)

    def run(self) -> None:
        """Start ipykernel and serve until SIGTERM."""
        signal.signal(signal.SIGTERM, lambda *_: self.loop.stop())
        signal.set_wakeup_fd(self._make_wakeup())
        try:
            self.kernel.start()
            if self._forwarding is not None:
                self._forwarding.start()
            # After the start: a child would begin its life with all of its memory locked.
            self._system.protect()
            self.loop.run()
        finally:
            self._processes.detach()
            self.kernel.stop()
            if self._forwarding is not None:
                self._forwarding.stop()

    # The link's services.

    def accept(self, service: str) -> bool:
        """Return whether there is such a service."""
        return service in SERVICES or service in (ASK, EXEC)

    def changed(self, stream: SessionStream) -> None:
        """Take a stream on which something happened."""
        if stream.ended:
            self._relay.detach(stream)
            self._processes.detach(stream)
            stream.close()
        elif stream.closed:
            return
        elif stream.service == EXEC:
            self._processes.from_host(stream)
        elif stream.service == ASK:
            self._questions.serve(stream)
        elif self._relay.attach(stream):
            self._relay.from_host(stream)
        else:
            stream.close()

    def produce(self) -> bool:
        """Send what ipykernel and the processes have."""
        more = self._relay.to_host()
        return self._processes.to_host() or more

    def detached(self) -> None:
        """Forget all streams."""
        self._relay.detach()
        self._processes.detach()
        self._questions.detach()

    def refused(self, reason: str) -> None:
        """Report refused connections to the owner, at most one report a second: anybody on the host may dial."""
        self._refusals += 1
        self._last_refusal = reason
        if self._refusals == 1:
            self._report_refusals()

    def _report_refusals(self) -> None:
        count, self._refusals = self._refusals, 0
        if count:
            self._send_event({"event": "link_refused", "reason": self._last_refusal, "count": count})
            self._refusals = 0
            self.loop.call_later(_REFUSAL_PAUSE, self._report_refusals)

    # ipykernel.

    def _on_ready(self) -> None:
        for fd, handler in self._relay.connect(self.kernel.sockets).items():
            self.loop.add(fd, self._then_pump(handler))
        self._rehearse()

    def _rehearse(self) -> None:
        """Go through the identity step and the link's proofs once.

        In a clone somebody waits for them. What only a first time needs (caches, constructors that are looked up, pages
        of libraries) is there then, because the golden snapshot is taken afterwards.
        """
        identity = Identity(0, os.urandom(32), time.time_ns(), os.urandom(64), "agentvm", "0" * 32, "diverge", b"")
        host, guest = HostHandshake(identity.key, 0, Limits()), GuestHandshake(identity.key, 0, Limits())
        guest.feed(host.hello())
        guest.feed(host.feed(guest.take()) or b"")
        for limits in (REHEARSED, START):
            self._operations.set_limits(limits._asdict())
        self._operations.take_identity(identity, self._settle)

    def _settle(self, answer: dict[str, object]) -> None:
        self.link.rekey(None, 0)
        if answer.get("ok") is True:
            self.kernel.settle(_SETTLE_SECONDS, self._announce)
        else:
            self._on_broken(f"no identity can be given: {answer.get('error')}")

    def _announce(self, answer: dict[str, object]) -> None:
        if answer.get("ok") is not True:
            self._on_broken(f"it does not settle: {answer.get('error')}")
        elif self._forwarding is None:
            self._announce_ready(network=True)
        else:
            self._forwarding.when_tried(lambda is_up: self._announce_ready(network=is_up))

    def _announce_ready(self, *, network: bool) -> None:
        if not network:
            self._on_broken("the network could not be made ready")
            return
        gc.collect()
        gc.freeze()
        self._operations.become_ready()
        self._send_event({"event": "ready"})

    def _then_pump(self, handler: Callable[[], None]) -> Callable[[], None]:
        def handle() -> None:
            try:
                handler()
            except ProtocolError:
                self.link.reset()
            self.link.pump()

        return handle

    def _on_death(self, death: Death) -> None:
        # What it said last is still in its sockets.
        self.link.pump()
        self._relay.disconnect()
        self._operations.give_up()
        self._send_event(death.describe())
        self._questions.tell(death)

    def _on_broken(self, reason: str) -> None:
        print(f"agentvm: ipykernel is of no use any more: {reason}", file=sys.stderr)
        self.kernel.kill()

    def _set_environment(self, environment: dict[str, str], reply: Reply) -> None:
        """Put variables into the environment of ipykernel and of what the host starts; earlier ones go."""
        changes = {name: value for name, value in environment.items() if self._processes.environment.get(name) != value}
        gone = self._processes.environment.keys() - environment.keys()
        self._processes.environment = environment
        if changes or gone:
            self.kernel.set_environment(changes | dict.fromkeys(gone), self._confirm_seconds, reply)
        else:
            reply({"ok": True})

    def _send_event(self, event: dict[str, object]) -> None:
        if self._control is not None:
            self._control.send(event)

    def _forget_control(self) -> None:
        self._control = None

    def _make_wakeup(self) -> int:
        """Return a descriptor that makes the loop turn when a signal came."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.setblocking(False)
        self.loop.add(ours.fileno(), lambda: None)
        self._wakeup = (ours, theirs)
        return theirs.fileno()


def _parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The agent inside an AgentVM virtual machine.")
    parser.add_argument("--transport", choices=("serial", "vsock"), default="serial")
    parser.add_argument("--port", type=int, default=4011, help="the vsock port")
    parser.add_argument("--python", default=KERNEL_PYTHON, help="the Python that runs ipykernel")
    parser.add_argument("--folder", type=Path, default=Path("/run/agentvm/kernel"), help="where its sockets lie")
    parser.add_argument("--confirm-seconds", type=float, default=_CONFIRM_SECONDS)
    parser.add_argument("--unprivileged", type=Path, help="for tests: sockets in this folder, nothing privileged")
    parser.add_argument("--forward", action="store_true", help="for tests: with a forwarder")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Run the agent."""
    options = _parse_arguments(arguments)
    system = RecordingSystem() if options.unprivileged else System()
    forwarder = ["--unprivileged", str(options.unprivileged)] if options.forward else None
    agent = Agent(
        system, python=options.python, folder=options.folder, confirm_seconds=options.confirm_seconds,
        forwarder=forwarder if options.unprivileged else [],
    )  # fmt: skip
    if options.unprivileged:
        listener = listen_unix(str(options.unprivileged / "control.sock"))

        def on_control() -> None:
            while (port := accept(listener)) is not None:
                agent.serve_control(port)

        agent.loop.add(listener.fileno(), on_control)
        agent.link.listen(listen_unix(str(options.unprivileged / "link.sock")))
    else:
        agent.serve_control(open_virtio_port(CONTROL_PORT))
        if options.transport == "vsock":
            agent.link.listen(listen_vsock(options.port))
        else:
            agent.link.add(open_virtio_port(LINK_PORT))
    agent.run()


if __name__ == "__main__":
    main(sys.argv[1:])
