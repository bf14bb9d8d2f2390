"""The agent's end of the forwarder: starts it, again if it dies, and hands it what the owner says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from agentvm_guest.control import ControlPort, Reply
from agentvm_guest.loop import Loop
from agentvm_guest.ports import Port

_FORWARDER = Path(__file__).with_name("forwarder.py")
_RESTART_SECONDS = 1.0


class Forwarding:
    """The forwarder's process.

    Args:
        loop: The agent's loop.
        arguments: What it is started with besides its socket.
        set_environment: Called with variables for the user's programs, and what is to be called when they are set.

    Attributes:
        is_up: Whether it has once made the network ready, or failed to; None until then.
    """

    def __init__(
        self, loop: Loop, arguments: list[str], set_environment: Callable[[dict[str, str], Reply], None]
    ) -> None:
        self.is_up: bool | None = None
        self._on_first: Callable[[bool], None] | None = None
        self._loop = loop
        self._arguments = arguments
        self._set_environment = set_environment
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: ControlPort | None = None
        self._identity: dict[str, object] | None = None
        self._network = "filtered"

    def when_tried(self, action: Callable[[bool], None]) -> None:
        """Call once it has made the network ready, or failed to."""
        if self.is_up is None:
            self._on_first = action
        else:
            action(self.is_up)

    def start(self) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-I", str(_FORWARDER), str(theirs.fileno()), *self._arguments]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True
            )
        pidfd = os.pidfd_open(self._process.pid)
        self._loop.add(pidfd, lambda: self._on_exit(pidfd))
        self._channel = ControlPort(self._loop, Port(ours.detach(), lasting=False), self._on_line, self._forget_channel)
        if self._identity is not None:
            self._channel.send(self._identity)
        self._channel.send({"id": 0, "op": "network", "network": self._network})

    def stop(self) -> None:
        """Kill the process and wait; for the agent's own end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def identify(self, key: bytes, epoch: int) -> None:
        """Hand the VM's identity over."""
        self._identity = {"id": 0, "op": "identity", "key": key.hex(), "epoch": epoch}
        self._send(self._identity)

    def set_network(self, network: str | None) -> None:
        """Hand over whether there is a network, ``filtered`` or ``none``; None leaves that as it is."""
        if network is not None:
            self._network = network
            self._send({"id": 0, "op": "network", "network": network})

    def _send(self, line: dict[str, object]) -> None:
        if self._channel is not None:
            self._channel.send(line)

    def _on_line(self, line: dict[str, object], _reply: Reply) -> None:
        if line.get("op") == "up":
            self._note(is_up=True)
        elif line.get("op") == "environment" and isinstance(variables := line.get("environment"), dict):
            number = line["id"]
            self._set_environment(
                variables, lambda answer: self._send({"id": number, "op": "environment", **answer})
            )  # fmt: skip

    def _note(self, *, is_up: bool) -> None:
        if self.is_up is None:
            self.is_up = is_up
            if self._on_first is not None:
                self._on_first(is_up)

    def _forget_channel(self) -> None:
        self._channel = None

    def _on_exit(self, pidfd: int) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            return
        self._loop.remove(pidfd)
        os.close(pidfd)
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        print(f"agentvm: the forwarder ended with status {self._process.returncode}", file=sys.stderr)
        self._note(is_up=False)
        if self.is_up:
            self._loop.call_later(_RESTART_SECONDS, self.start)
