"""Starts ipykernel in this process, with a helper thread through which the agent renews its random generators.

Run by the agent with the user's Python: ``launcher.py FOLDER FD``. The folder takes the sockets and the connection
file, the descriptor is one end of a socket pair: nobody but the agent has the other, so nobody else can seed the
generators.
"""

from __future__ import annotations

import codecs
import gc
import importlib
import json
import logging
import os
import platform
import select
import signal
import socket
import struct
import sys
import threading

import ipykernel
import zmq
from ipykernel import kernelapp
from ipykernel.iostream import IOPubThread, OutStream
from ipykernel.kernelapp import IPKernelApp

FORK = "AGENTVM_FORK"
SOCKETS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
# Messages that wait in the socket while the host does not read, and characters or bytes after which a thread that puts
# out waits until what it has put out is there: with that, a flood waits in `print`, and takes no more than this of the
# VM's memory. ipykernel would drop what the socket does not take, and keep without bound what it is still to be given.
_IOPUB_QUEUE = 256
_IOPUB_PORTION = 256 << 10
# What a pipe holds.
_PIPE_PORTION = 64 << 10
_SEED = 64
_MAX_ERROR = 1000


class OutputThread(IOPubThread):  # type: ignore[misc]
    """ipykernel's thread that sends outputs, for which those wait who give it more than it can send."""

    def __init__(self, socket: zmq.Socket[bytes], *args: object, **kwargs: object) -> None:
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        super().__init__(socket, *args, **kwargs)
        self._given = 0

    def is_due(self, size: int) -> bool:
        """Count what a thread puts out, and say whether it has to wait now."""
        self._given += size
        if self._given < _IOPUB_PORTION or threading.current_thread() is self.thread:
            return False
        self._given = 0
        return True

    def wait(self) -> None:
        """Return when all is sent that was given before; an interrupt ends it."""
        sent = threading.Event()
        self.schedule(sent.set)
        sent.wait()

    def send_multipart(self, msg: list[bytes], *args: object, **kwargs: object) -> None:
        """Give it a message."""
        super().send_multipart(msg, *args, **kwargs)
        if self.is_due(sum(map(len, msg))):
            self.wait()


class Output(OutStream):  # type: ignore[misc]
    """ipykernel's stdout and stderr, in which a flood waits, and a flush only if there is something to wait for.

    ipykernel flushes both before each result and each reply. To wait for a thread that has nothing to do took nearly
    half of a short cell's time.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._turned = threading.Condition()
        self._turns = 0
        self._is_reading = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        super().__init__(*args, **kwargs)

    def flush(self) -> None:
        """Return when all is sent that was written before."""
        if self._fid is not None and self._is_elsewhere():
            self._await_pipe()
        if self._buffers:
            super().flush()

    def _is_elsewhere(self) -> bool:
        """Whether this is none of the threads that would be waited for; they are gone in a forked process."""
        ours = {self.watch_fd_thread, self.pub_thread and self.pub_thread.thread}
        return self.watch_fd_thread.is_alive() and threading.current_thread() not in ours

    def _await_pipe(self) -> None:
        """Wait until somebody has put out what processes have printed by now, not what they go on printing."""
        with self._turned:
            last = self._turns + 1 + self._is_reading
            self._turned.wait_for(
                lambda: not (self._is_reading or self._has_more()) or self._turns >= last, self.flush_timeout
            )

    def _has_more(self) -> bool:
        return bool(select.select([self._fid], [], [], 0)[0])

    def _watch_pipe_fd(self) -> None:
        """Put out what processes print, as ipykernel does: at any time it is in the pipe, or this is reading it."""
        leave_alone(threading.current_thread())
        try:
            while self._should_watch:
                select.select([self._fid], [], [])
                self._is_reading = True
                printed = os.read(self._fid, _PIPE_PORTION)
                if not (printed and self._should_watch):
                    return
                self.write(self._decoder.decode(printed))
                os.write(self._original_stdstream_copy, printed)
                self._turn()
        except Exception:  # noqa: BLE001 - it is shown when the stream is closed
            self._exc = sys.exc_info()
        finally:
            self._turn()

    def _turn(self) -> None:
        with self._turned:
            self._is_reading = False
            self._turns += 1
            self._turned.notify_all()

    def write(self, string: str) -> int | None:
        """Take text; as ipykernel does."""
        written: int | None = super().write(string)
        thread = self.pub_thread
        if thread is not None and thread.is_due(len(string)):
            thread.schedule(self._flush)
            thread.wait()
        return written


class KernelApp(IPKernelApp):  # type: ignore[misc]
    """ipykernel with an output that waits for the host."""

    def init_iopub(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Create the iopub socket."""
        context.setsockopt(zmq.SNDHWM, _IOPUB_QUEUE)
        kernelapp.IOPubThread = OutputThread
        super().init_iopub(context)
        context.setsockopt(zmq.SNDHWM, 1000)


def renew(randomness: str, seed: bytes) -> list[str]:
    """Renew the generators that live in this process and are copies after a clone.

    ``os.urandom``, ``secrets``, ``uuid`` and a ``numpy.random.default_rng()`` made from now on draw from the kernel's,
    which the agent has renewed. A generator that the user's code made and keeps stays as it is.

    Args:
        randomness: How; see `agentvm_guest.identity.Identity`.
        seed: 64 bytes for ``common``.

    Returns:
        The names of those that were renewed.
    """
    done = []
    if randomness == "common" and "numpy" in sys.modules:
        # NumPy may load it only at its first use, which would then seed it differently in each clone.
        importlib.import_module("numpy.random")
    if randomness != "keep":
        done = reseed(seed if randomness == "common" else os.urandom(_SEED))
    if (ssl := sys.modules.get("ssl")) is not None:
        # It reads the kernel's generator, too. No two clones may make the same keys.
        ssl.RAND_add(os.urandom(_SEED), float(_SEED))
        done.append("ssl")
    return done


def reseed(seed: bytes) -> list[str]:
    """Seed the generators that programs can repeat, each from bytes of its own; returns those that were there."""
    done = []
    if (random := sys.modules.get("random")) is not None:
        random.seed(int.from_bytes(seed[:24], "big"))
        done.append("random")
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed(struct.unpack(">8I", seed[24:56]))
        done.append("numpy")
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(int.from_bytes(seed[56:], "big") >> 1)
        done.append("torch")
    return done


def settle() -> None:
    """Take all objects there are out of the garbage collector's sight.

    They live as long as the process. A collection that looked at each of them would take seconds where code is
    emulated, and write to nearly every page of memory, which every snapshot and every clone would pay for.
    """
    gc.collect()
    gc.freeze()


def set_environment(variables: dict[str, str | None]) -> None:
    """Set variables, and unset those that are None."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def perform(operation: str, data: bytes) -> list[str]:
    """Do what the agent asks: settle, set variables, or renew the generators in the way that the operation names.

    That comes with the number of the fork that this is, in two bytes, before the seed.
    """
    if operation == "settle":
        settle()
    elif operation == "environment":
        set_environment(json.loads(data))
    else:
        if fork := int.from_bytes(data[:2], "big"):
            os.environ[FORK] = str(fork)
        return renew(operation, data[2:])
    return []


def serve(helper: socket.socket) -> None:
    """Answer the agent's requests until it closes the socket.

    A request is a line ``NUMBER OPERATION [DATA]``, the data in hexadecimal, its answer ``NUMBER ok WORDS...`` or
    ``NUMBER error TEXT``. JSON would do, but see `agentvm_guest.identity`.
    """
    with helper, helper.makefile("rwb") as lines:
        for line in lines:
            number, operation, *data = line.decode().split()
            try:
                answer = " ".join(("ok", *perform(operation, bytes.fromhex("".join(data)))))
            except Exception as error:  # noqa: BLE001 - the user's modules may raise anything; the agent is told
                answer = f"error {ascii(error)[:_MAX_ERROR]}".replace("\n", " ")
            lines.write(f"{number} {answer}\n".encode())
            lines.flush()


def serve_and_end(helper: socket.socket) -> None:
    """Serve the agent; without an agent nobody can reach this process, so that it ends."""
    serve(helper)
    os.kill(os.getpid(), signal.SIGKILL)


def leave_alone(thread: threading.Thread) -> None:
    """Have the debugger neither trace nor stop a thread, for which others wait while they hold up a cell."""
    thread.pydev_do_not_trace = True  # type: ignore[attr-defined]
    thread.is_pydev_daemon_thread = True  # type: ignore[attr-defined]


def start_helper(helper: socket.socket) -> None:
    """Start the helper thread."""
    thread = threading.Thread(target=serve_and_end, args=(helper,), name="agentvm", daemon=True)
    leave_alone(thread)
    thread.start()


def main() -> None:
    """Start ipykernel and serve the agent."""
    folder, fd = sys.argv[1], int(sys.argv[2])
    # The user's code sees what an ordinary ipykernel shows it.
    del sys.path[0]
    connection_file = os.path.join(folder, "connection.json")  # noqa: PTH118 - traitlets wants a string
    sys.argv = ["ipykernel_launcher.py", "-f", connection_file]
    helper = socket.socket(fileno=fd)
    helper.set_inheritable(False)
    app = KernelApp.instance(
        connection_file=connection_file,
        transport="ipc",
        ip=os.path.join(folder, "kernel"),  # noqa: PTH118
        parent_handle=1,
        outstream_class=f"{__name__}.{Output.__name__}",
        **{f"{name}_port": port for name, port in SOCKETS.items()},
    )
    app.config.Session.key = b""
    # The history would go through the disk at every cell, and into every snapshot; the VM does not outlive the kernel.
    app.config.HistoryManager.hist_file = ":memory:"
    # Messages need no signature here: the folder of the sockets is the user's own. ipykernel would warn about it. Its
    # log_level is left alone: a change would close the descriptor to which ipykernel copies what processes print.
    logging.disable(logging.WARNING)
    app.initialize([])
    logging.disable(logging.NOTSET)
    start_helper(helper)
    helper.sendall(f"0 up {platform.python_version()} {ipykernel.__version__}\n".encode())
    app.start()


if __name__ == "__main__":
    main()
