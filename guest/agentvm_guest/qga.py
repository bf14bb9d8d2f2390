"""Asks QEMU's guest agent, which is started for the question and ended after it.

It needs no device of its own: it listens on a socket in the guest (see "socket activation" in its documentation), and
what it says goes to the host as everything else does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAM = "qemu-ga"
LONGEST_FREEZE = 30.0
FACTS = ("guest-info", "guest-get-osinfo", "guest-get-fsinfo", "guest-get-users")

_FOLDER = Path("/run/agentvm/qga")
# What systemd would do: the socket is descriptor 3, and the process knows that it is meant.
_START = 'LISTEN_PID=$$ exec "$@"'
_FIRST_DESCRIPTOR = 3
_MOST = 48 << 10


class QemuAgent:
    """A running agent of QEMU's, for a `with` statement.

    Args:
        seconds: How long it may take to answer.
        folder: Where its socket and its state lie.
        program: It.
    """

    def __init__(self, seconds: float, folder: Path = _FOLDER, program: str = PROGRAM) -> None:
        self._seconds = seconds
        self._folder = folder
        self._program = program
        self._pid = 0
        self._room = _MOST

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            OSError: it is not installed, or cannot be started.
        """
        if shutil.which(self._program) is None:
            raise OSError(f"{self._program} is not installed")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / "socket"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            command = ["sh", "-c", _START, "sh", self._program, "--statedir", str(self._folder)]
            self._pid = os.posix_spawnp(
                "sh", command, os.environ | {"LISTEN_FDS": "1"},
                file_actions=[(os.POSIX_SPAWN_DUP2, listener.fileno(), _FIRST_DESCRIPTOR)],
            )  # fmt: skip
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(self._seconds)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._lines.close()
        self._socket.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def ask(self, command: str) -> object:
        """Return its answer to a command.

        Raises:
            OSError: it did not answer in time, or refused, or said too much.
        """
        self._socket.sendall(json.dumps({"execute": command}).encode() + b"\n")
        line = self._lines.readline(self._room + 1)
        self._room -= len(line)
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OSError(f"{self._program} answered nothing sensible to {command}") from error
        if not isinstance(answer, Mapping) or "return" not in answer:
            raise OSError(f"{self._program} refused {command}")
        return answer["return"]


def facts(seconds: float) -> dict[str, object]:
    """Return what it says of the guest.

    Args:
        seconds: How long an answer may take.

    Raises:
        OSError: see `QemuAgent`.
    """
    with QemuAgent(seconds) as agent:
        return {command: agent.ask(command) for command in FACTS}


class Freezer:
    """Freezes the guest's file systems for a moment, and never for longer than `LONGEST_FREEZE` seconds.

    Args:
        seconds: How long QEMU's agent may take for it.
        longest: Seconds after which they are thawed whatever becomes of the host.
    """

    def __init__(self, seconds: float, longest: float = LONGEST_FREEZE) -> None:
        self._seconds = seconds
        self._longest = longest
        self._turn = threading.Lock()
        self._timer: threading.Timer | None = None

    def freeze(self) -> dict[str, object]:
        """Freeze them; returns how many there are.

        Raises:
            OSError: see `QemuAgent`.
        """
        with self._turn, QemuAgent(self._seconds) as agent:
            # Before it: whatever happens then, they are thawed.
            self._timer = threading.Timer(self._longest, self.thaw)
            self._timer.daemon = True
            self._timer.start()
            return {"count": agent.ask("guest-fsfreeze-freeze")}

    def thaw(self) -> dict[str, object]:
        """Thaw them; returns how many were frozen.

        Raises:
            OSError: see `QemuAgent`.
        """
        with self._turn, QemuAgent(self._seconds) as agent:
            if self._timer is not None:
                self._timer.cancel()
            return {"count": agent.ask("guest-fsfreeze-thaw")}
