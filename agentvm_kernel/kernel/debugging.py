"""Whether a debugger has stopped the guest: the user looks at it then, and no time runs."""

from __future__ import annotations

from typing import Final

from agentvm_kernel.kernel.jsoncheck import parse_object

_MOST: Final = 64 * 1024
_GOES_ON: Final = frozenset({"continue", "next", "stepIn", "stepOut", "goto", "restartFrame"})
_OVER: Final = frozenset({"disconnect", "terminate"})
_RUNS: Final = frozenset({"continued", "terminated", "exited"})


class Debugging:
    """Follows the debug adapter protocol's requests and events.

    The guest could claim to have stopped; it is believed only while a client has its debugger attached.

    Attributes:
        stopped: Whether it stands at a breakpoint.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._attached = False

    def begin(self) -> None:
        """Take note of a new guest, which runs."""
        self.stopped = False

    def asked(self, content: bytes) -> None:
        """Take note of a client's ``debug_request``; a longer one than any that matters is passed over."""
        command = _field(content, "command")
        if command == "attach":
            self._attached = True
        elif command in _OVER:
            self._attached = self.stopped = False
        elif command in _GOES_ON:
            self.stopped = False

    def said(self, content: bytes) -> None:
        """Take note of the guest's ``debug_event``."""
        event = _field(content, "event")
        if event == "stopped":
            self.stopped = self._attached
        elif event in _RUNS:
            self.stopped = False


def _field(content: bytes, name: str) -> object:
    return parse_object(content).get(name) if len(content) <= _MOST else None
