"""Makes the first cell fast: asks a new ipykernel what every notebook asks, before anybody waits for it.

It happens once per image: the golden snapshot is taken afterwards. The cell's counter stays where it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from agentvm_guest.relay import encode_request, make_header, strip_frames
from agentvm_guest.zmtp import OverLong, ZmtpSocket

_CELL = "get_ipython().display_formatter.format(1); print(end='')"
_REQUESTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("kernel_info_request", {}),
    (
        "execute_request",
        {
            "code": _CELL,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        },
    ),
    ("complete_request", {"code": "im", "cursor_pos": 2}),
)


class WarmUp:
    """The dialogue. A request follows when the one before was answered and ipykernel is idle again.

    Args:
        sockets: ipykernel's sockets by channel.
        done: Called at the end.
    """

    def __init__(self, sockets: dict[str, ZmtpSocket], done: Callable[[], None]) -> None:
        self._sockets = sockets
        self._done = done
        self._left = list(_REQUESTS)
        self._awaited: set[str] = set()
        self._request = ""
        self._subscribed = False

    def handle(self) -> None:
        """Go on; called when a socket's state changed.

        Raises:
            ZmtpError: ipykernel's end is gone.
        """
        for service, socket in self._sockets.items():
            socket.flush()
            while (message := socket.read()) is not None:
                if not isinstance(message, OverLong):
                    self._take(service, message)
        # A request before the subscription is in force would get no idle.
        while self._subscribed and all(socket.ready for socket in self._sockets.values()) and not self._awaited:
            if not self._left:
                self._done()
                return
            self._ask(*self._left.pop(0))

    def _ask(self, kind: str, content: dict[str, object]) -> None:
        header = make_header(kind)
        self._request = header["msg_id"]
        self._awaited = {"shell", "iopub"}
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        self._sockets["shell"].send(encode_request(parts))

    def _take(self, service: str, message: list[bytes]) -> None:
        parts = strip_frames(message)
        if parts is None:
            return
        header, parent, content = (json.loads(parts[index]) for index in (0, 1, 3))
        if header["msg_type"] == "iopub_welcome":
            self._subscribed = True
        elif parent.get("msg_id") == self._request and (service != "iopub" or content.get("execution_state") == "idle"):
            self._awaited.discard(service)
