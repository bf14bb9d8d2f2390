"""How much a cell may put out, and how fast: what the browser and this process must not drown in."""

from __future__ import annotations

import time
from asyncio import sleep
from collections.abc import Callable
from enum import Enum
from typing import Final

from agentvm_kernel.kernel.limits import HeldLimits
from agentvm_kernel.kernel.requests import Request
from agentvm_kernel.kernel.wire import GuestMessage

_MIB: Final = 1 << 20
_TOLD: Final = 1 << 20
"""Bytes of output after which the total is told again."""

_MESSAGE: Final = 512
"""Bytes that a message counts besides what is in it: a flood of small ones costs, too."""

_DRAWN: Final = 32 << 10
"""The same for what a browser has to draw, of which 8192 come to the default limit and 2048 a second to that rate."""

_NEW: Final = frozenset({"display_data", "execute_result", "error", "comm_open"})
_CHANGED: Final = frozenset({"update_display_data", "comm_msg", "clear_output"})

_LAST_ERROR: Final = 256 << 10
"""The largest error that is still shown after the rest of the output is left out."""

_ALL: Final = (
    "To have all of it as a file, run the cell again with `%%capture output` as its first line; then"
    ' `open("output.txt", "w").write(output.stdout)`, and `%pull output.txt`.'
)


class Verdict(Enum):
    """What becomes of a message."""

    SHOWN = "passed on"
    LAST = "left out, and the cell is told that the rest of its output will be, too"
    LEFT_OUT = "left out"


class OutputGate:
    """Counts what a guest puts out.

    Everything on iopub counts but statuses: text, displays and their updates, `clear_output`, what widgets say. What is
    too much for a cell is left out, and the cell goes on. What comes too fast is not read: then the link gives the
    guest no credit, and what it says next waits in the guest. Interrupts have a stream of their own.

    Args:
        limits: What holds.
        clock: Seconds, by which the rate is measured.

    Attributes:
        on_output: Told now and then how many bytes the guest has put out so far.
    """

    def __init__(self, limits: HeldLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.on_output: Callable[[int], None] = lambda _: None
        self._total = 0
        self._limits = limits
        self._clock = clock
        self._nobody = 0
        self._debt = 0.0
        self._paid = self._clock()

    def begin(self) -> None:
        """Let output that belongs to no known cell have as much as a cell's again; called when a cell begins."""
        self._nobody = 0

    def judge(self, request: Request | None, message: GuestMessage) -> Verdict:
        """Count a message and say what becomes of it.

        Args:
            request: The request to which it belongs; ``None`` if none is known.
            message: Any but a status.
        """
        most = self._limits.now.output_mib * _MIB
        size = _size(message)
        self._count(size)
        if request is None:
            self._nobody += size
            return Verdict.SHOWN if self._nobody <= most else Verdict.LEFT_OUT
        if request.cut:
            is_error = message.msg_type == "error" and size <= _LAST_ERROR and not request.error_shown
            request.error_shown |= is_error
            return Verdict.SHOWN if is_error else Verdict.LEFT_OUT
        request.output += size
        if request.output <= most:
            return Verdict.SHOWN
        request.cut = True
        return Verdict.LAST

    def _count(self, size: int) -> None:
        before, self._total = self._total, self._total + size
        if before // _TOLD != self._total // _TOLD:
            self.on_output(self._total)

    async def pace(self, request: Request | None, message: GuestMessage) -> None:
        """Return when the next message may be read; a second's worth passes at once after a rest.

        What a cell had put out before it ended, and waits in the guest, is not paced: who interrupted a flood would
        see it go on.
        """
        if request and request.is_execute and request.replied and request.backlog > 0:
            request.backlog -= _effort(message)
            return
        rate = self._limits.now.output_mib_per_second * _MIB
        now = self._clock()
        self._debt = max(0.0, self._debt - (now - self._paid) * rate) + _effort(message)
        self._paid = now
        if self._debt > rate:
            await sleep(self._debt / rate - 1)

    def note(self) -> str:
        """Return what the cell is told when the rest of its output is left out."""
        limit = f"{self._limits.now.output_mib} MiB, the output limit {self._limits.source('output_mib')}"
        return (
            f"\nThe rest of this cell's output is left out: it is more than {limit}; change it with %limits"
            f" output=SIZE. The cell goes on.\n{_ALL}\n"
        )


def _size(message: GuestMessage) -> int:
    """Return what a message adds to what the notebook holds."""
    extra = _DRAWN if message.msg_type in _NEW else _MESSAGE
    return extra + message.size


def _effort(message: GuestMessage) -> int:
    """Return what it costs to show a message, which a change of what is there costs as well."""
    return _size(message) + (_DRAWN if message.msg_type in _CHANGED else 0)
