"""The ipykernel process: start, readiness, interrupt, generators, death."""

from __future__ import annotations

import enum
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentvm_guest.identity import Identity
from agentvm_guest.loop import Loop, Timer
from agentvm_guest.system import Account, System, login_options
from agentvm_guest.warmup import WarmUp
from agentvm_guest.zmtp import ZmtpError, ZmtpSocket

_PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4}
_IDENTITY = b"agentvm"
_MAX_HELPER_LINE = 4096


class KernelState(enum.Enum):
    """Where the process is on its way."""

    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"


@dataclass(frozen=True)
class Death:
    """How ipykernel ended.

    Attributes:
        exit_code: Its exit code, if it exited.
        signal: The signal that killed it, if one did.
        oom: Whether the kernel killed it to get memory.
    """

    exit_code: int | None
    signal: int | None
    oom: bool

    def describe(self) -> dict[str, object]:
        """Return the event that reports it."""
        return {"event": "kernel_died", "exit_code": self.exit_code, "signal": self.signal, "oom": self.oom}


class KernelProcess:
    """One ipykernel. It is not started again after its death: the owner takes another VM.

    Args:
        loop: The agent's loop.
        system: The privileged operations.
        python: The user's Python.
        folder: Where its sockets lie; on a file system in memory.
        max_message: Longest message that is taken from it whole.
        max_parts: Most parts of such a message.
    """

    def __init__(
        self, loop: Loop, system: System, *, python: str, folder: Path, max_message: int, max_parts: int
    ) -> None:
        self.state = KernelState.STARTING
        self.versions: dict[str, object] = {}
        self.death: Death | None = None
        self.sockets: dict[str, ZmtpSocket] = {}
        self.on_ready: Callable[[], None] = lambda: None
        self.on_death: Callable[[Death], None] = lambda death: None
        self._loop = loop
        self._system = system
        self._python = python
        self._folder = folder
        self._bounds = (max_message, max_parts)
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._helper: socket.socket | None = None
        self._lines = b""
        self._number = 0
        self._asked: dict[int, tuple[Callable[[dict[str, object]], None], Timer]] = {}

    @property
    def pid(self) -> int | None:
        """The process id, while it lives."""
        return self._process.pid if self._process is not None and self.death is None else None

    def start(self) -> None:
        """Start the process."""
        account = self._system.account()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if account is not None:
            os.chown(self._folder, account.uid, account.gid)
        self._helper, theirs = socket.socketpair()
        self._helper.setblocking(False)
        with theirs:
            self._process = self._spawn(account, theirs.fileno())
        self._system.confine(self._process.pid)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add(self._pidfd, self._on_exit)
        self._loop.add(self._helper.fileno(), self._on_helper)

    def interrupt(self) -> bool:
        """Send SIGINT to the process group; False when ipykernel is dead."""
        if self.pid is None:
            return False
        os.killpg(self.pid, signal.SIGINT)
        return True

    def kill(self) -> None:
        """Kill the process group."""
        if self._process is not None and self.death is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kill the process group and wait; for the agent's own end."""
        self.kill()
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def renew(self, identity: Identity, timeout: float, done: Callable[[dict[str, object]], None]) -> None:
        """Renew the generators inside the process, and tell it which fork it is.

        Args:
            identity: Says how, and which.
            timeout: Seconds until the attempt counts as failed.
            done: Called with ``{"ok": ...}``, at once when the process is dead.
        """
        number = identity.fork.to_bytes(2, "big")
        self._ask(f"{identity.randomness} {number.hex()} {identity.seed.hex()}", timeout, done)

    def set_environment(
        self, variables: dict[str, str | None], timeout: float, done: Callable[[dict[str, object]], None]
    ) -> None:
        """Set variables in the process, and unset those that are None."""
        self._ask(f"environment {json.dumps(variables).encode().hex()}", timeout, done)

    def settle(self, timeout: float, done: Callable[[dict[str, object]], None]) -> None:
        """Take what there is out of the garbage collector's sight; see `agentvm_guest.launcher.settle`."""
        self._ask("settle", timeout, done)

    def _ask(self, request: str, timeout: float, done: Callable[[dict[str, object]], None]) -> None:
        if self.state is not KernelState.READY or self._helper is None:
            done({"ok": False, "error": f"ipykernel is {self.state.value}"})
            return
        self._number += 1
        number = self._number
        timer = self._loop.call_later(
            timeout, lambda: self._answer(number, {"ok": False, "error": f"ipykernel did not confirm in {timeout:g} s"})
        )
        self._asked[number] = (done, timer)
        try:
            self._helper.sendall(f"{number} {request}\n".encode())
        except OSError as error:
            self._answer(number, {"ok": False, "error": f"ipykernel's helper thread is gone: {error}"})

    def _spawn(self, account: Account | None, fd: int) -> subprocess.Popen[bytes]:
        launcher = str(Path(__file__).with_name("launcher.py"))
        return subprocess.Popen(
            [self._python, launcher, str(self._folder), str(fd)],
            stdin=subprocess.DEVNULL,
            pass_fds=(fd,),
            **login_options(account, self._python),
        )

    def _on_helper(self) -> None:
        while self._helper is not None:
            try:
                data = self._helper.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close_helper("ipykernel closed its helper's socket")
                return
            *lines, self._lines = (self._lines + data).split(b"\n")
            if len(self._lines) > _MAX_HELPER_LINE:
                self._close_helper("ipykernel's helper sent garbage")
                return
            for line in lines:
                self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        """Take a line of the helper's: its request's number, a word that says what it is, and what belongs to that."""
        try:
            number, kind, *words = line.decode().split()
            asked = int(number)
        except ValueError:
            self._close_helper("ipykernel's helper sent garbage")
            return
        if kind == "up":
            self.versions = dict(zip(("python", "ipykernel"), words, strict=False))
            self._connect()
        elif kind == "ok":
            self._answer(asked, {"ok": True, "seeded": words})
        else:
            self._answer(asked, {"ok": False, "error": " ".join(words)})

    def _answer(self, number: int, answer: dict[str, object]) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None:
            done, timer = asked
            timer.cancel()
            done(answer)

    def _close_helper(self, reason: str) -> None:
        if self._helper is not None:
            self._loop.remove(self._helper.fileno())
            self._helper.close()
            self._helper = None
        for number in list(self._asked):
            self._answer(number, {"ok": False, "error": reason})

    def _connect(self) -> None:
        try:
            for service, port in _PORTS.items():
                kind = "SUB" if service == "iopub" else "DEALER"
                # Shell and stdin must share a routing id: an input_request goes to the asking shell's.
                self.sockets[service] = ZmtpSocket(f"{self._folder}/kernel-{port}", kind, _IDENTITY, *self._bounds)
        except OSError:
            self.kill()
            return
        warm_up = WarmUp(self.sockets, self._on_warm)

        def handle() -> None:
            try:
                warm_up.handle()
            except ZmtpError:
                # Its death is reported by the process itself; a live one without sockets is of no use.
                self.kill()

        for connection in self.sockets.values():
            self._loop.add(connection.fd, handle)

    def _on_warm(self) -> None:
        for connection in self.sockets.values():
            self._loop.remove(connection.fd)
        self.state = KernelState.READY
        self.on_ready()

    def _on_exit(self) -> None:
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return
        self._loop.remove(self._pidfd)
        os.close(self._pidfd)
        oom = status == -signal.SIGKILL and self._system.killed_for_memory(self._process.pid)
        self.state = KernelState.DEAD
        self.death = Death(status if status >= 0 else None, -status if status < 0 else None, oom)
        self._close_helper("ipykernel is dead")
        self.on_death(self.death)
        for connection in self.sockets.values():
            self._loop.remove(connection.fd)
            connection.close()
        self.sockets = {}
