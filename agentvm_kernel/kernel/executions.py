"""Tells the audit log which cells of the notebook ran in the guest, and how they ended."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final, Literal

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.kernel.directive import DirectiveError, allowed_hosts, is_directed
from agentvm_kernel.kernel.execution import CellResult, Status
from agentvm_kernel.kernel.facts import CellFacts, EndedCell, Facts
from agentvm_kernel.kernel.guest import Guest
from agentvm_kernel.kernel.requests import Request
from agentvm_kernel.supervisor.execution_messages import (
    MAX_CODE,
    MAX_PATH,
    MEASURED,
    Copied,
    Execution,
    Happened,
    digest_of,
)
from agentvm_kernel.supervisor.messages import Granted

_TEXT: Final = 500
_SOON: Final = 1.0
"""Seconds in which output that is not let through is counted before it is told, where no cell's end will tell it."""

_SHOWING: Final = 1024
"""Cells that may be running or showing something at once."""

_OUTCOMES: Final[dict[Status, Happened]] = {
    "ok": "completed",
    "error": "failed",
    "timeout": "timeout",
    "flood": "failed",
    "died": "failed",
}
_LIMITS: Final[dict[Status, tuple[str, ...]]] = {"timeout": ("cell_deadline",), "flood": ("output_mib",)}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Executions:
    """Follows cells from when the guest begins with them.

    Args:
        report: Tells the supervisor; must not block.
        facts: Measures them.
    """

    def __init__(self, report: Callable[[Execution], None], facts: Facts) -> None:
        self._report = report
        self._facts = facts
        self._begun: dict[Request | None, tuple[Execution, float]] = {}
        self._showing: OrderedDict[Request, Execution] = OrderedDict()
        self._blocked: dict[Request | None, Counter[Reason]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def runs(self, request: Request, guest: Guest | None) -> None:
        """Note that the guest runs a cell; nothing happens if that is known.

        Args:
            request: The cell.
            guest: The guest.
        """
        if request.magic or request in self._begun or guest is None:
            return
        begun = cell_begins(request.code, guest.granted, run=request.run, cell=request.cell)
        self._showing[request] = begun
        if len(self._showing) > _SHOWING:
            self._showing.popitem(last=False)
        self._begun[request] = begun, time.monotonic()
        self._facts.begin(request, guest.granted)
        self._report(begun.model_copy(update={"allow": _hosts(request.code)}))

    def replied(self, request: Request, content: dict[str, object]) -> EndedCell | None:
        """Note that the guest is done with a cell.

        Args:
            request: The cell.
            content: The guest's reply, which is only claimed.

        Returns:
            What was measured of it; ``None`` if it did not run.
        """
        ended = self._facts.end(request)
        happened: Happened = "completed" if content.get("status") == "ok" else "failed"
        error = content.get("ename")
        self._end(
            request, happened, error=clean(error[:_TEXT]) if isinstance(error, str) else "",
            count=_count(content.get("execution_count")),
            reason="it was not run, because one before it failed" if content.get("status") == "aborted" else "",
            facts=ended.facts if ended else None,
        )  # fmt: skip
        return None if content.get("status") == "aborted" else ended

    def shown(self, request: Request) -> None:
        """Note that a cell has shown all that it shows before it is idle.

        Args:
            request: Any; what was not run by the guest is left out.
        """
        begun = self._showing.pop(request, None)
        if begun is not None and (outputs := request.shown.digest):
            self._report(begun.model_copy(update={"happened": "shown", "code": "", "outputs": outputs}))

    def lost(self, request: Request, error: AgentVMError) -> None:
        """Note that a cell's guest is gone before it was done.

        Args:
            request: The cell.
            error: Why.
        """
        self._facts.forget(request)
        self._end(request, "failed", reason=clean(error.message[:_TEXT]))

    def blocked(self, request: Request | None, reason: Reason) -> None:
        """Count output that was not let through; it is told with the cell's end, or soon where that has been told.

        Args:
            request: The cell; None for what belongs to none.
            reason: Why.
        """
        self._blocked.setdefault(request, Counter())[reason] += 1
        if request not in self._begun and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SOON, self._tell_blocked)

    def _tell_blocked(self) -> None:
        self._timer = None
        for request in [one for one in self._blocked if one not in self._begun]:
            run, code = (request.run, request.code) if request else (0, "")
            counts = dict(self._blocked.pop(request))
            self._report(Execution(happened="going on", run=run, digest=digest_of(code), blocked=counts))

    def _end(
        self, request: Request, happened: Happened, *, error: str = "", count: int | None = None, reason: str = "",
        facts: CellFacts | None = None,
    ) -> None:  # fmt: skip
        if request not in self._begun:
            return
        begun, since = self._begun.pop(request)
        limits = ["cell_deadline"] if request.overdue_at is not None else []
        limits += ["output_mib"] if request.cut else []
        changes = {
            "happened": "timeout" if request.overdue_at is not None else happened, "code": "", "limits": tuple(limits),
            "seconds": time.monotonic() - since, "count": count, "error": error, "reason": reason,
            "blocked": dict(self._blocked.pop(request, {})), **(_told(facts) if facts else {}),
        }  # fmt: skip
        self._report(begun.model_copy(update=changes))


def _told(facts: CellFacts) -> dict[str, float | None]:
    return {name: getattr(facts, name) for name in MEASURED}


def reported(report: Callable[[Execution], None], begun: Execution) -> Callable[[CellResult], None]:
    """Tell the supervisor that a cell begins that no notebook shows.

    Args:
        report: Tells the supervisor; must not block.
        begun: The cell.

    Returns:
        To be called with what has come of it.
    """
    report(begun)

    def ended(result: CellResult) -> None:
        error = result.error.name if result.error else ""
        changes = {
            "happened": _OUTCOMES[result.status], "code": "", "limits": _LIMITS.get(result.status, ()),
            "seconds": result.seconds, "count": _count(result.count), "error": clean(error[:_TEXT]),
            "reason": clean(result.reason[:_TEXT]), "blocked": result.blocked,
        }  # fmt: skip
        report(begun.model_copy(update=changes))

    return ended


def cell_begins(code: str, granted: Granted | None, *, run: int = 0, fork: int = 0, cell: str = "") -> Execution:
    """Return what the supervisor is told of a cell that begins.

    Args:
        code: The cell.
        granted: The VM that it runs in.
        run: Number of the run within the session.
        fork: Number of the fork; 0 for the session's own VM.
        cell: Id of the notebook's cell, if it is known.
    """
    shown = clean(code[:MAX_CODE]) if granted and granted.record_code else ""
    vm = granted.vm if granted else ""
    return Execution(happened="started", vm=vm, run=run, fork=fork, digest=digest_of(code), code=shown, cell=cell)


def copied(way: Literal["push", "pull"], path: str, digest: str, size: int, run: int = 0) -> Copied:
    """Return what the supervisor is told of a file or folder that was copied.

    Args:
        way: Into the VM, or out of it.
        path: What was copied, as it was named; its end, where it is long.
        digest: See `agentvm_kernel.run.files.Sent`.
        size: Bytes of content.
        run: Number of the run that did it; 0 where it was none.
    """
    return Copied(way=way, path=clean(path[-MAX_PATH:]), digest=digest, size=size, run=run)


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def clean(text: str) -> str:
    """Return a text without halves of surrogate pairs, which JSON can hold and the supervisor does not take."""
    return _SURROGATE.sub("?", text)


def _hosts(code: str) -> tuple[str, ...]:
    """Return the hosts that a cell's directives allow; it would not run if there was a mistake in them."""
    if not is_directed(code):
        return ()
    try:
        return allowed_hosts(code)
    except DirectiveError:
        return ()
