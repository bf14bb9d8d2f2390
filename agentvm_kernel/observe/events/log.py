"""Events of the audit log itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agentvm_kernel.observe.fields import (
    Count,
    Digest,
    Event,
    Text,
)


class DayBegan(Event):
    """The first record of each file.

    Attributes:
        day: The file's day (UTC).
    """

    event: Literal["day_began"] = "day_began"
    day: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]


class LogRepaired(Event):
    """Half a record stood at the end, as a crash in the middle of writing leaves it, and was cut off.

    Attributes:
        file: In which file.
        line: The number of the line that it was.
        offset: Where it began, bytes.
        size: Its length, bytes.
        digest: Its SHA-256.
        kept: Name of the file beside the log that has it; empty if it could not be kept.
    """

    event: Literal["log_repaired"] = "log_repaired"
    file: Text
    line: Count
    offset: Count
    size: Count
    digest: Digest
    kept: Text = ""


class LogDamaged(Event):
    """The log did not end, when a supervisor started, as the last one had left it.

    Attributes:
        what: What is wrong.
        last: Number of the last record that was written, by the head file.
        digest: Its digest.
    """

    event: Literal["log_damaged"] = "log_damaged"
    what: Text
    last: Count = 0
    digest: Digest = "0" * 64


class LogPruned(Event):
    """A file is about to be removed because it is old; the chain can be followed to its end all the same.

    Attributes:
        day: The file's day.
        last: Number of its last record.
        digest: The digest of that record.
    """

    event: Literal["log_pruned"] = "log_pruned"
    day: Text
    last: Count
    digest: Digest
