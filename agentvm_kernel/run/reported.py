"""Tells the supervisor's audit log of programs that run in a VM."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentvm_kernel.kernel.executions import clean
from agentvm_kernel.supervisor.execution_messages import MAX_CODE, Execution, digest_of, digest_of_file
from agentvm_kernel.supervisor.messages import Granted

Done = Callable[[int, bool], None]


@contextmanager
def program_reported(
    report: Callable[[Execution], None], granted: Granted | None, argv: Sequence[str], source: Path | None = None
) -> Iterator[Done]:
    """Report that a program begins, and, on leaving the context, how it ended.

    Args:
        report: Tells the supervisor; must not block.
        granted: The VM that it runs in.
        argv: The program and its arguments.
        source: The file that is run, if it comes from here.

    Yields:
        To be called with its exit code, and whether its time was up.
    """
    digest = digest_of_file(source) if source and source.is_file() else digest_of(json.dumps(list(argv)))
    code = clean(shlex.join(argv)[:MAX_CODE]) if granted and granted.record_code else ""
    begun = Execution(happened="started", kind="program", vm=granted.vm if granted else "", digest=digest, code=code)
    report(begun)
    since = time.monotonic()
    outcome: dict[str, Any] = {"happened": "failed", "reason": "it could not be run, or its VM is gone"}

    def done(status: int, timed_out: bool) -> None:
        outcome["happened"] = "timeout" if timed_out else "failed" if status else "completed"
        outcome["reason"] = f"exit code {status}" if status and not timed_out else ""

    try:
        yield done
    finally:
        report(begun.model_copy(update={**outcome, "code": "", "seconds": time.monotonic() - since}))
