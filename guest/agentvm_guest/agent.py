"""The guest agent: one process and one loop that serve the owner's control port, the link and ipykernel.

It writes nothing to the disk and its memory is bounded, so that it works on when the user's code has filled either.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agentvm_guest import qga
from agentvm_guest.card import Arrival, parse_card
from agentvm_guest.claims import claims
from agentvm_guest.control import ControlPort, Reply
from agentvm_guest.errand import Errand
from agentvm_guest.forwarding import Forwarding
from agentvm_guest.identity import Identity, RequestError, parse_identity, read_integer, read_network
from agentvm_guest.kernel import Death, KernelProcess, KernelState
from agentvm_guest.limits import REHEARSED, START, parse_limits
from agentvm_guest.link import LinkServer
from agentvm_guest.loop import Loop
from agentvm_guest.ports import Port, accept, listen_unix, listen_vsock, open_virtio_port
from agentvm_guest.processes import SERVICE as EXEC
from agentvm_guest.processes import Processes
from agentvm_guest.relay import SERVICES, Relay
from agentvm_guest.share import Share, parse_wanted
from agentvm_guest.system import RecordingSystem, System
from agentvm_kernel.errors import ProtocolError
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import GuestHandshake, HostHandshake
from agentvm_kernel.link.stream import SessionStream

CONTROL_PORT = "agentvm.control"
LINK_PORT = "agentvm.link"
SHARED = "shared"
KERNEL_PYTHON = "/opt/agentvm/venv/bin/python"
# A busy cell, which a snapshot may have frozen, can hold the interpreter's lock for long.
_CONFIRM_SECONDS = 20.0
_SETTLE_SECONDS = 60.0
_REFUSAL_PAUSE = 1.0
_CARD_SECONDS = 20.0
_SHARE_SECONDS = 20.0
_DESCRIBE_SECONDS = 10.0


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
        self._freezer = qga.Freezer(_DESCRIBE_SECONDS)
        self._control: ControlPort | None = None
        self._agent_stream: SessionStream | None = None
        self._waiting: list[Reply] = []
        self._is_ready = self._is_describing = False
        self._refusals = 0
        self._last_refusal = ""
        self.kernel.on_ready = self._on_ready
        self.kernel.on_death = self._on_death

    def serve_control(self, port: Port) -> None:
        """Take the control port; a later connection replaces an earlier one."""
        if self._control is not None:
            self._control.close()
        self._control = ControlPort(self.loop, port, self._on_request, self._forget_control)

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
        return service in SERVICES or service in ("agent", EXEC)

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
        elif stream.service == "agent":
            self._agent_stream = stream
            self._serve_agent(stream)
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
        self._agent_stream = None

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
            self._set_limits(limits._asdict())
        self._take_identity(identity, self._settle)

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
        self._is_ready = True
        for reply in self._waiting:
            reply({"ok": True})
        self._waiting.clear()
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
        for reply in self._waiting:
            reply({"ok": False, "error": "ipykernel is dead"})
        self._waiting.clear()
        self._send_event(death.describe())
        if self._agent_stream is not None:
            self._agent_stream.send([json.dumps(death.describe()).encode()])
            self.link.pump()

    def _on_broken(self, reason: str) -> None:
        print(f"agentvm: ipykernel is of no use any more: {reason}", file=sys.stderr)
        self.kernel.kill()

    # Requests.

    def _on_request(self, request: dict[str, object], reply: Reply) -> None:
        operation = self._operations().get(str(request.get("op")))
        if operation is None:
            reply({"ok": False, "error": f"there is no operation {str(request.get('op'))[:40]!r}"})
            return
        try:
            operation(request, reply)
        except (RequestError, OSError) as error:
            reply({"ok": False, "error": str(error)})

    def _operations(self) -> dict[str, Callable[[dict[str, object], Reply], None]]:
        return {
            "ping": lambda _, reply: reply({"ok": True}),
            "ready": self._ready,
            "facts": lambda _, reply: reply({"ok": True, **self._facts()}),
            "quiesce": self._quiesce,
            "identity": self._identity,
            "clock": self._clock,
            "limits": self._limits,
            "network": self._network,
            "card": self._card,
            "mount": self._mount,
            "unmount": self._unmount,
            "freeze": lambda _, reply: self._do(self._freezer.freeze, reply),
            "thaw": lambda _, reply: self._do(self._freezer.thaw, reply),
        }

    def _ready(self, _request: dict[str, object], reply: Reply) -> None:
        if self.kernel.state is KernelState.DEAD:
            reply({"ok": False, "error": "ipykernel is dead"})
        elif self._is_ready:
            reply({"ok": True})
        else:
            self._waiting.append(reply)

    def _quiesce(self, _request: dict[str, object], reply: Reply) -> None:
        self.link.goodbye("the VM is about to be saved")
        self._system.sync()
        reply({"ok": True})

    def _clock(self, request: dict[str, object], reply: Reply) -> None:
        network = read_network(request)
        self._system.set_clock(read_integer(request, "time_ns", 1 << 63))
        self._set_limits(request.get("limits"))
        self._set_network(network)
        reply({"ok": True})

    def _network(self, request: dict[str, object], reply: Reply) -> None:
        self._set_network(read_network(request))
        reply({"ok": True})

    def _card(self, request: dict[str, object], reply: Reply) -> None:
        Arrival(self.loop, parse_card(request), self._system.set_up_card, reply, _CARD_SECONDS)

    def _do(self, work: Callable[[], dict[str, object]], reply: Reply) -> None:
        Errand(self.loop, work, reply)

    def _mount(self, request: dict[str, object], reply: Reply) -> None:
        wanted = parse_wanted(request)
        Errand(self.loop, lambda: self._share().mount(wanted, _SHARE_SECONDS), reply)

    def _unmount(self, _request: dict[str, object], reply: Reply) -> None:
        Errand(self.loop, self._share().unmount, reply)

    def _share(self) -> Share:
        account = self._system.account()
        if account is None:
            raise RequestError("nothing is mounted without privileges")
        return Share(Path(account.home, SHARED), (account.uid, account.gid))

    def _set_network(self, network: str | None) -> None:
        if self._forwarding is not None:
            self._forwarding.set_network(network)

    def _set_environment(self, environment: dict[str, str], reply: Reply) -> None:
        """Put variables into the environment of ipykernel and of what the host starts; earlier ones go."""
        changes = {name: value for name, value in environment.items() if self._processes.environment.get(name) != value}
        gone = self._processes.environment.keys() - environment.keys()
        self._processes.environment = environment
        if changes or gone:
            self.kernel.set_environment(changes | dict.fromkeys(gone), self._confirm_seconds, reply)
        else:
            reply({"ok": True})

    def _limits(self, request: dict[str, object], reply: Reply) -> None:
        self._set_limits(request)
        reply({"ok": True})

    def _set_limits(self, limits: object) -> None:
        if limits is not None:
            self._system.set_limits(parse_limits(limits))

    def _identity(self, request: dict[str, object], reply: Reply) -> None:
        if not self._is_ready:
            raise RequestError("the guest is not ready")
        identity, network = parse_identity(request), read_network(request)
        self._set_limits(request.get("limits"))
        self._set_network(network)
        self._take_identity(identity, reply)

    def _take_identity(self, identity: Identity, reply: Reply) -> None:
        self._system.set_clock(identity.time_ns)
        self._system.add_entropy(identity.entropy)
        self._system.set_names(identity.hostname, identity.machine_id)
        # Last: its generators draw from the kernel's.
        self.kernel.renew(identity, self._confirm_seconds, self._confirm(identity, reply))

    def _confirm(self, identity: Identity, reply: Reply) -> Reply:
        def done(answer: dict[str, object]) -> None:
            if answer.get("ok") is True:
                # Only now can the host prove itself, so nothing of the user's comes before this.
                self.link.rekey(identity.key, identity.epoch)
                if self._forwarding is not None:
                    self._forwarding.identify(identity.key, identity.epoch)
                answer = {
                    "ok": True,
                    "epoch": identity.epoch,
                    "hostname": identity.hostname,
                    "seeded": answer.get("seeded"),
                }
            reply(answer)

        return done

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "kernel": platform.release(),
            "machine": platform.machine(),
            "hostname": socket.gethostname(),
            "cpus": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "ipykernel_state": self.kernel.state.value,
            "ipykernel_pid": self.kernel.pid,
            **self.kernel.versions,
            **claims(),
        }
        if self._system.recorded is not None:
            facts["recorded"] = self._system.recorded
        return facts

    def _serve_agent(self, stream: SessionStream) -> None:
        # One that asks without reading the answers waits.
        while not stream.queued and not stream.closed and (parts := stream.receive()) is not None:
            try:
                request = json.loads(parts[0])
            except ValueError:
                request = None
            if isinstance(request, dict) and request.get("op") == "describe":
                self._describe(stream, request.get("id"))
            elif isinstance(request, dict):
                number = request.get("id")
                stream.send([json.dumps({"id": number, **self._answer(request.get("op"))}).encode()])

    def _describe(self, stream: SessionStream, number: object) -> None:
        """Let QEMU's agent describe the guest; who asks again meanwhile is not answered."""
        if self._is_describing:
            return
        self._is_describing = True

        def reply(answer: dict[str, object]) -> None:
            self._is_describing = False
            if not stream.closed:
                stream.send([json.dumps({"id": number, **answer}).encode()])
                self.link.pump()

        Errand(self.loop, lambda: qga.facts(_DESCRIBE_SECONDS), reply)

    def _answer(self, operation: object) -> dict[str, object]:
        if operation == "interrupt":
            return {"ok": True} if self.kernel.interrupt() else {"ok": False, "error": "ipykernel is dead"}
        if operation == "facts":
            return {"ok": True, **self._facts()}
        if operation == "ping":
            return {"ok": True}
        return {"ok": False, "error": f"there is no operation {str(operation)[:40]!r}"}

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
