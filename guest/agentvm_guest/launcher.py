"""Starts ipykernel in this process, with a helper thread through which the agent renews its random generators.

Run by the agent with the user's Python: ``launcher.py FOLDER FD``. The folder takes the sockets and the connection
file, the descriptor is one end of a socket pair: nobody but the agent has the other, so nobody else can seed the
generators.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import signal
import socket
import sys
import threading

import ipykernel
import zmq
from ipykernel.kernelapp import IPKernelApp

SOCKETS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
# Messages that wait in ipykernel while the host does not read; ipykernel drops what comes then. Its default is 1000, to
# which an ordinary client's queue adds as many.
_IOPUB_QUEUE = 20_000


class KernelApp(IPKernelApp):  # type: ignore[misc]
    """ipykernel with a longer output queue: the relay has none of its own."""

    def init_iopub(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Create the iopub socket."""
        context.setsockopt(zmq.SNDHWM, _IOPUB_QUEUE)
        super().init_iopub(context)
        context.setsockopt(zmq.SNDHWM, 1000)


def derive(seed: bytes, purpose: str, size: int) -> bytes:
    """Return bytes for one generator; different ones for each, so that none tells about another."""
    return hashlib.shake_256(purpose.encode() + b"|" + seed).digest(size)


def renew(entropy: bytes, seed: bytes | None) -> list[str]:
    """Renew the generators that live in this process and are copies after a clone.

    ``os.urandom``, ``secrets``, ``uuid`` and a ``numpy.random.default_rng()`` made from now on draw from the kernel's,
    which the agent renews itself. A generator that the user's code made and keeps stays as it is.

    Args:
        entropy: For OpenSSL's, which keys are made with: no two clones may share it.
        seed: For the others; None leaves them as they are.

    Returns:
        The names of those that were renewed.
    """
    done = [] if seed is None else reseed(seed)
    if (ssl := sys.modules.get("ssl")) is not None:
        ssl.RAND_add(derive(entropy, "ssl", 64), 64.0)
        done.append("ssl")
    return done


def reseed(seed: bytes) -> list[str]:
    """Seed the generators that programs expect to be able to repeat; returns the names of those that were there."""
    done = []
    if (random := sys.modules.get("random")) is not None:
        random.seed(derive(seed, "random", 64))
        done.append("random")
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        words = derive(seed, "numpy", 64)
        numpy_random.seed([int.from_bytes(words[i : i + 4], "big") for i in range(0, 64, 4)])
        done.append("numpy")
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(int.from_bytes(derive(seed, "torch", 8), "big") >> 1)
        done.append("torch")
    return done


def serve(helper: socket.socket) -> None:
    """Answer the agent's requests, one JSON object a line, until it closes the socket."""
    with helper, helper.makefile("rwb") as lines:
        for line in lines:
            request = json.loads(line)
            try:
                seed = request["seed"]
                done = renew(bytes.fromhex(request["entropy"]), None if seed is None else bytes.fromhex(seed))
                answer = {"id": request["id"], "ok": True, "seeded": done}
            except Exception as error:  # noqa: BLE001 - the user's modules may raise anything; the agent is told
                answer = {"id": request["id"], "ok": False, "error": repr(error)}
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()


def serve_and_end(helper: socket.socket) -> None:
    """Serve the agent; without an agent nobody can reach this process, so that it ends."""
    serve(helper)
    os.kill(os.getpid(), signal.SIGKILL)


def start_helper(helper: socket.socket) -> None:
    """Start the helper thread; the debugger neither traces nor stops it."""
    thread = threading.Thread(target=serve_and_end, args=(helper,), name="agentvm", daemon=True)
    thread.pydev_do_not_trace = True  # type: ignore[attr-defined]
    thread.is_pydev_daemon_thread = True  # type: ignore[attr-defined]
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
        **{f"{name}_port": port for name, port in SOCKETS.items()},
    )
    app.config.Session.key = b""
    # Messages need no signature here: the folder of the sockets is the user's own. ipykernel would warn about it.
    app.log_level = logging.ERROR
    app.initialize([])
    app.log_level = logging.WARNING
    start_helper(helper)
    versions = {"event": "up", "python": platform.python_version(), "ipykernel": ipykernel.__version__}
    helper.sendall(json.dumps(versions).encode() + b"\n")
    app.start()


if __name__ == "__main__":
    main()
