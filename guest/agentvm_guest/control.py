"""The guest's end of the control port: JSON lines from the VM's owner."""

from __future__ import annotations

import json
from collections.abc import Callable

from agentvm_guest.loop import Loop
from agentvm_guest.ports import Port

MAX_LINE = 64 << 10
_MAX_OUT = 256 << 10

Reply = Callable[[dict[str, object]], None]


class ControlPort:
    """Reads requests and writes answers and events; holds a bounded amount of either.

    Args:
        loop: The agent's loop.
        port: The port.
        on_request: Called with each request and the function that answers it, now or later.
        on_hang_up: Called when a connection (not a virtio-serial port, which stays) has ended.
    """

    def __init__(
        self,
        loop: Loop,
        port: Port,
        on_request: Callable[[dict[str, object], Reply], None],
        on_hang_up: Callable[[], None],
    ) -> None:
        self.port = port
        self.skipped = 0
        self._loop = loop
        self._on_request = on_request
        self._on_hang_up = on_hang_up
        self._closed = False
        self._in = bytearray()
        self._out = bytearray()
        loop.add(port.fd, self.handle)

    def send(self, message: dict[str, object]) -> None:
        """Send an object; dropped when the host has not read for so long that the buffer is full, or is gone."""
        if self._closed:
            return
        line = json.dumps(message).encode() + b"\n"
        if len(self._out) + len(line) <= _MAX_OUT:
            self._out += line
        self.flush()

    def flush(self) -> None:
        """Write what goes."""
        while self._out:
            sent = self.port.write(self._out)
            if not sent:
                break
            del self._out[:sent]
        self._loop.set_writing(self.port.fd, bool(self._out))

    def handle(self) -> None:
        """Read and write until the port would block; called by the loop."""
        while (data := self.port.read()) is not None:
            if not data:
                # Answers to a connection that is gone mean nothing to the next.
                self._in.clear()
                self._out.clear()
                if not self.port.lasting:
                    self.close()
                    self._on_hang_up()
                return
            self._take(data)
        self.flush()

    def close(self) -> None:
        """Close the port."""
        self._closed = True
        self._loop.remove(self.port.fd)
        self.port.close()

    def _take(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = bytes(self._in + line)
            self._in.clear()
            if whole:
                self._handle(whole)
        self._in += rest
        if len(self._in) > MAX_LINE:
            self.skipped += 1
            self._in.clear()

    def _handle(self, line: bytes) -> None:
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("id"), int):
            # The remains of a connection that ended in the middle of a line.
            self.skipped += 1
            return
        number = request["id"]
        self._on_request(request, lambda answer: self.send({"id": number, **answer}))
