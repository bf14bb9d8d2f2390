"""The link's service ``exec``: a stream is a process of the cells' user.

The host's first message is a request (JSON); what follows is ``stdin`` with data, ``eof``, or ``signal`` with a name.
Back come ``started``, ``stdout`` and ``stderr`` with data, ``taken`` with the number of bytes of standard input that
the process has taken since, and at last ``exit`` (JSON) or ``error``.

Hardly anything is kept here: output that the host gives no credit for stays in the pipes, and the process waits; of
standard input the host sends no more ahead than `STDIN_WINDOW`, so that a signal never waits behind it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import IO

from agentvm_guest.loop import Loop
from agentvm_guest.system import System, login_options
from agentvm_kernel.link.stream import SessionStream

SERVICE = "exec"
MAX_PROCESSES = 16
STDIN_WINDOW = 256 << 10
# A pipe that holds a window: the process takes it in one turn, where each turn costs a switch between two processes.
_PIPE = 256 << 10
_PIECE = 32_000
# Messages that are handed to a process together.
_AT_ONCE = 64
_SIGNALS = {number.name[3:].encode(): number for number in signal.Signals}
# Waits until it is under its limits: what it started before that would stay outside. A shell reads to the end of the
# line and no further.
_GATE = ("/bin/sh", "-c", 'read -r _ && exec "$@"', "sh")


@dataclass(frozen=True)
class Command:
    """What the host asks for.

    Attributes:
        argv: The program and its arguments.
        cwd: Where it runs; a relative path begins at the user's home.
        env: What is added to the environment of a login.
    """

    argv: list[str]
    cwd: str
    env: dict[str, str]


def parse_command(parts: list[bytes]) -> Command:
    """Read a request.

    Raises:
        ValueError: it is none.
    """
    request = json.loads(parts[0])
    request = request if isinstance(request, dict) else {}
    argv, cwd, env = request.get("argv"), request.get("cwd") or "", request.get("env") or {}
    if not (argv and isinstance(argv, list) and isinstance(cwd, str) and isinstance(env, dict)):
        raise ValueError("a request needs argv, and may have cwd and env")
    if not all(isinstance(text, str) and "\0" not in text for text in (*argv, cwd, *env, *env.values())):
        raise ValueError("argv, cwd and env hold something other than texts without NUL")
    return Command(argv, cwd, env)


class Output:
    """One of a process's outputs.

    Attributes:
        readable: Whether more may be there.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self.pipe = pipe
        self.readable = True
        self._left = -1

    def wake(self) -> None:
        """Note that there is more."""
        self.readable = self._left != 0

    def last(self) -> None:
        """Note the process's end: what is there belongs to it, what its children write from now on is nobody's."""
        there = array.array("i", [0])
        fcntl.ioctl(self.pipe, termios.FIONREAD, there)
        self._left = there[0]
        self.wake()

    def read(self) -> bytes:
        """Return a piece of what is there; nothing when that is all for now, or for ever."""
        try:
            data = os.read(self.pipe.fileno(), _PIECE if self._left < 0 else min(_PIECE, self._left))
        except BlockingIOError:
            data = b""
        if self._left > 0:
            self._left -= len(data)
        self.readable = bool(data) and self._left != 0
        return data


class Execution:
    """A process and its stream.

    Args:
        stream: The stream.
        process: The process, which waits behind the gate.
    """

    def __init__(self, stream: SessionStream, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.stream = stream
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)
        self.stdin = process.stdin
        self.outputs = {b"stdout": Output(process.stdout), b"stderr": Output(process.stderr)}
        self._pending: deque[memoryview] = deque([memoryview(b"\n")])
        # The gate's line is not the host's.
        self._taken = -1
        self._waiting = 1
        self._eof = False

    @property
    def waiting(self) -> bool:
        """Whether there may be more for a host that listens."""
        return self._taken > 0 or self.process.returncode is not None or any(o.readable for o in self.outputs.values())

    def tell(self, parts: list[bytes]) -> None:
        """Take a message of the host's.

        Raises:
            ValueError: it is none that there is.
        """
        match parts:
            case [b"stdin", data] if data and self._waiting + len(data) <= STDIN_WINDOW + 1 and not self._eof:
                self._pending.append(memoryview(data))
                self._waiting += len(data)
            case [b"eof"]:
                self._eof = True
            case [b"signal", name] if number := signal.Signals.__members__.get(f"SIG{name.decode('ascii', 'replace')}"):
                self.signal(number)
            case _:
                raise ValueError(f"the host's message is none that is known here: {parts[0][:40]!r}")

    def signal(self, number: int) -> None:
        """Send a signal to the process's group, as long as that number is surely its own."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, number)

    def feed(self) -> bool:
        """Write standard input; returns whether it has to wait for room."""
        while self._pending:
            try:
                count = os.writev(self.stdin.fileno(), list(islice(self._pending, _AT_ONCE)))
            except BlockingIOError:
                return True
            except BrokenPipeError:
                # Nobody reads it any more, which is no fault of the host's.
                count = self._waiting
            self._waiting -= count
            self._taken += count
            while count:
                piece = self._pending.popleft()
                if count < len(piece):
                    self._pending.appendleft(piece[count:])
                count -= min(count, len(piece))
        return False

    @property
    def fed(self) -> bool:
        """Whether all of standard input was written, to its end."""
        return self._eof and not self._pending

    def send(self) -> bool:
        """Send what there is while there is credit; returns whether the last was sent."""
        stream = self.stream
        if self._taken > 0 and stream.writable:
            stream.send([b"taken", b"%d" % self._taken])
            self._taken = 0
        for name, output in self.outputs.items():
            while output.readable and stream.writable:
                if data := output.read():
                    stream.send([name, data])
        status = self.process.returncode
        if status is None or not stream.writable or any(output.readable for output in self.outputs.values()):
            return False
        stream.send([b"exit", json.dumps({"code": status} if status >= 0 else {"signal": -status}).encode()])
        stream.close()
        return True


class Processes:
    """The processes that the host asked for. Killed with their streams.

    Args:
        loop: The agent's loop.
        system: The privileged operations.
        python: The user's Python.
        then_pump: Returns a handler after which the link's data flows.

    Attributes:
        environment: Variables that they get besides those of a login.
    """

    def __init__(
        self, loop: Loop, system: System, *, python: str, then_pump: Callable[[Callable[[], None]], Callable[[], None]]
    ) -> None:
        self._loop = loop
        self._system = system
        self._python = python
        self._then_pump = then_pump
        self.environment: dict[str, str] = {}
        self._executions: dict[SessionStream, Execution] = {}
        self._dying: set[Execution] = set()

    def from_host(self, stream: SessionStream) -> None:
        """Take what a stream has received."""
        while not stream.closed and (parts := stream.receive()) is not None:
            execution = self._executions.get(stream)
            try:
                if execution is None:
                    self._start(stream, parts)
                else:
                    execution.tell(parts)
                    self._feed(execution)
            except (OSError, ValueError) as error:
                self.detach(stream)
                stream.send([b"error", str(error).encode(errors="replace")[:1000]])
                stream.close()

    def to_host(self) -> bool:
        """Send what the processes have to say; returns whether there may be more, for want of credit or room."""
        for stream, execution in list(self._executions.items()):
            if execution.send():
                self._release(self._executions.pop(stream))
        return any(execution.waiting for execution in self._executions.values())

    def detach(self, stream: SessionStream | None = None) -> None:
        """Kill the process of a stream that has ended, or all because the link has."""
        for one in list(self._executions) if stream is None else [stream]:
            if (execution := self._executions.pop(one, None)) is not None:
                execution.signal(signal.SIGKILL)
                self._release(execution)

    def _start(self, stream: SessionStream, parts: list[bytes]) -> None:
        if len(self._executions) + len(self._dying) >= MAX_PROCESSES:
            raise ValueError(f"{MAX_PROCESSES} processes run for the host already, which is the most")
        execution = self._executions[stream] = Execution(stream, self._spawn(parse_command(parts)))
        self._loop.add(execution.pidfd, self._then_pump(lambda: self._on_exit(execution)))
        self._loop.add(execution.stdin.fileno(), self._then_pump(lambda: self._feed(execution)))
        for output in execution.outputs.values():
            self._loop.add(output.pipe.fileno(), self._then_pump(output.wake))
        stream.send([b"started", b"%d" % execution.process.pid])
        self._feed(execution)

    def _spawn(self, command: Command) -> subprocess.Popen[bytes]:
        account = self._system.account()
        options = login_options(account, self._python)
        options["env"] |= self.environment | command.env
        options["cwd"] = os.path.join(options["env"]["HOME"], command.cwd)  # noqa: PTH118
        process = subprocess.Popen(
            [*_GATE, *command.argv],
            bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            with contextlib.suppress(OSError):  # as large as it can be had
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
            if account is not None:
                # Otherwise it could not open /dev/stdout anew.
                os.fchown(pipe.fileno(), account.uid, account.gid)
        self._system.confine(process.pid)
        return process

    def _feed(self, execution: Execution) -> None:
        if execution.stdin.closed:
            return
        self._loop.set_writing(execution.stdin.fileno(), execution.feed())
        if execution.fed:
            self._close(execution.stdin)

    def _on_exit(self, execution: Execution) -> None:
        if execution.process.poll() is None:
            return
        self._loop.remove(execution.pidfd)
        os.close(execution.pidfd)
        self._dying.discard(execution)
        if execution.stream in self._executions:
            for output in execution.outputs.values():
                output.last()

    def _release(self, execution: Execution) -> None:
        """Close a process's pipes; a killed one is reaped later."""
        for pipe in (execution.stdin, *(output.pipe for output in execution.outputs.values())):
            self._close(pipe)
        if execution.process.returncode is None:
            self._dying.add(execution)

    def _close(self, pipe: IO[bytes]) -> None:
        if not pipe.closed:
            self._loop.remove(pipe.fileno())
            pipe.close()
