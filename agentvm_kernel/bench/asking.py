"""Asks an ipykernel and measures how long the answer takes; on the host, and as a script inside a VM.

As a script it starts an ipykernel of its own, over ipc sockets and unsigned as the VM's own one is, and measures what
is asked for on its standard input: lines such as ``{"client": "bare", "code": "1", "repeat": 10}``; the answer is a
line with the seconds. ``client`` is ``jupyter`` (jupyter_client's blocking client) or ``bare`` (two sockets and the
least that tells the reply and the idle: next to nothing is the client's own time).
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

TIMEOUT = 60.0
PAYLOAD = "payload = 'x' * (1 << 20)"
DISPLAY = "display({'text/plain': payload}, raw=True)"


def ask(client: BlockingKernelClient, code: str) -> float:
    """Run a cell and return the seconds until reply and idle have come."""
    began = time.perf_counter()
    msg_id = client.execute(code)
    state = ""
    while state != "idle":
        message = client.get_iopub_msg(timeout=TIMEOUT)
        if message["parent_header"].get("msg_id") == msg_id:
            state = message["content"].get("execution_state", "")
    while client.get_shell_msg(timeout=TIMEOUT)["parent_header"].get("msg_id") != msg_id:
        pass
    return time.perf_counter() - began


class BareClient:
    """A client that builds its request once and parses nothing.

    Args:
        ip: Beginning of the ipc sockets' paths.
        shell_port: What the shell socket's path ends with.
        iopub_port: What the iopub socket's path ends with.
    """

    def __init__(self, ip: str, shell_port: int, iopub_port: int) -> None:
        from agentvm_guest.zmtp import ZmtpSocket  # noqa: PLC0415 - only the script's caller knows where it lies

        self._shell = ZmtpSocket(f"{ip}-{shell_port}", "DEALER", b"bare", 64 << 20, 1024)
        self._iopub = ZmtpSocket(f"{ip}-{iopub_port}", "SUB", b"", 64 << 20, 1024)
        self._poller = select.poll()
        for connection in (self._shell, self._iopub):
            self._poller.register(connection.fd, select.POLLIN)
        self._number = 0
        self._subscribe()

    def ask(self, code: str) -> float:
        """Run a cell and return the seconds until reply and idle have come."""
        began = time.perf_counter()
        msg_id = self._send(code)
        missing = {"reply", "idle"}
        while missing:
            self._poll()
            if self._shell.read() is not None:
                missing.remove("reply")
            while message := self._iopub.read():
                if isinstance(message, list) and b'"idle"' in message[-1][:100] and msg_id in message[-3]:
                    missing.remove("idle")
        return time.perf_counter() - began

    def _subscribe(self) -> None:
        """Return when the subscription is in force, which shows in that something comes."""
        while not self._shell.ready:
            self._poll()
            self._shell.read()
        heard = False
        while not heard:
            self._send("")
            while self._shell.read() is None:
                self._poll()
                heard = self._iopub.read() is not None or heard

    def _send(self, code: str) -> bytes:
        self._number += 1
        msg_id = f"bare-{self._number}-"
        header = {"msg_id": msg_id, "msg_type": "execute_request", "session": "", "username": "", "version": "5.5"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        self._shell.send([b"<IDS|MSG>", b"", *(json.dumps(part).encode() for part in (header, {}, {}, content))])
        return msg_id.encode()

    def _poll(self) -> None:
        if not self._poller.poll(TIMEOUT * 1000):
            raise TimeoutError("ipykernel does not answer")

    def close(self) -> None:
        """Close the sockets."""
        self._shell.close()
        self._iopub.close()


@contextmanager
def kernel(name: str = "python3", *, unsigned: bool = False, **options: object) -> Iterator[KernelManager]:
    """Start a kernel as Jupyter does, and end it as Jupyter does.

    Args:
        name: Its kernelspec.
        unsigned: Exchange messages without signatures.
        **options: For the process.
    """
    manager = KernelManager(kernel_name=name, transport="ipc" if unsigned else "tcp")
    if unsigned:
        manager.session.key = b""
    manager.start_kernel(**options)
    try:
        yield manager
    finally:
        manager.shutdown_kernel()
        manager.context.term()


@contextmanager
def client_of(manager: KernelManager) -> Iterator[BlockingKernelClient]:
    """Connect a client to a kernel, and wait until it is ready."""
    client = manager.client()
    client.start_channels(hb=False)
    try:
        client.wait_for_ready(timeout=TIMEOUT)
        yield client
    finally:
        client.stop_channels()


def serve() -> None:
    """Measure what is asked for on standard input."""
    with kernel(unsigned=True) as manager:
        with client_of(manager) as client:
            ask(client, PAYLOAD)
        for line in sys.stdin:
            request = json.loads(line)
            with _asker(manager, request["client"]) as measure:
                measure("")
                seconds = [measure(request["code"]) for _ in range(request["repeat"])]
            print(json.dumps(seconds), flush=True)


@contextmanager
def _asker(manager: KernelManager, kind: str) -> Iterator[Callable[[str], float]]:
    """Connect a client; never two at once, since each gets all that is said on iopub."""
    if kind == "bare":
        bare = BareClient(manager.ip, manager.shell_port, manager.iopub_port)
        yield bare.ask
        bare.close()
        return
    with client_of(manager) as client:
        yield lambda code: ask(client, code)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    serve()
