"""Keeps what sessions' VMs have used, over time, for reports: a line for a VM and a moment, in a file for each day.

A VM that does nothing is not written down again and again, and the longer a session lasts, the less often its VM is:
some thousand moments are a day.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from agentvm_kernel.observe.sample import Sample

_log = logging.getLogger(__name__)

FOLDER: Final = "curves"
_DAYS: Final = 30
_DAY_BYTES: Final = 64 << 20
_WHOLE: Final = 600.0
"""Seconds of a session in which every sample may be written."""

_IDLE: Final = 60.0
_WORK: Final = 0.1
"""Cores that an idle guest does not use, even if it is emulated."""

_GROWN: Final = 1 << 20

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Moment(BaseModel):
    """What a session's VM has used up to a moment, as it was measured on the host.

    Attributes:
        time: Seconds since 1970.
        lease: The session's lease.
        vm: The VM; after a rollback another one, which begins at zero.
        cpu: CPU seconds of its QEMU.
        memory: Bytes of memory that it costs the host now.
        read: Bytes read from its disk.
        written: Bytes written to it.
        sent: Bytes sent through the gateway.
        received: Bytes received.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: _Amount
    lease: str
    vm: str
    cpu: _Amount
    memory: _Amount
    read: _Amount = 0.0
    written: _Amount = 0.0
    sent: _Amount = 0.0
    received: _Amount = 0.0

    @staticmethod
    def of(sample: Sample, lease: str, vm: str) -> Moment:
        """Return a sample as it is kept.

        Args:
            sample: It.
            lease: The session's lease.
            vm: Id of the VM.
        """
        return Moment(
            time=round(sample.time, 2), lease=lease, vm=vm, cpu=round(sample.cpu_seconds, 2), memory=sample.memory,
            read=sample.disk_read, written=sample.disk_written, sent=sample.network_sent,
            received=sample.network_received,
        )  # fmt: skip

    def differs(self, before: Moment) -> bool:
        """Return whether the VM has done something since an earlier moment."""
        names = ("read", "written", "sent", "received")
        has_moved = any(getattr(self, name) != getattr(before, name) for name in names)
        has_worked = self.cpu - before.cpu >= _WORK * max(1.0, self.time - before.time)
        return has_moved or has_worked or abs(self.memory - before.memory) >= _GROWN


@dataclass
class _Followed:
    """What is remembered of a VM: the first and the last moment that was written, and one that was left out since."""

    began: float
    last: Moment
    skipped: Moment | None = None


class Curves:
    """Writes moments down.

    Args:
        folder: Where the files lie; made when there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._followed: dict[str, _Followed] = {}
        self._has_failed = False

    def take(self, moments: Iterable[Moment]) -> None:
        """Write down what is worth it; blocks.

        Args:
            moments: One of each session that there is.
        """
        present = {one.lease: one for one in moments}
        lines = [line for one in present.values() for line in self._kept(one)]
        self._followed = {lease: one for lease, one in self._followed.items() if lease in present}
        if lines:
            self._write("".join(f"{one.model_dump_json(exclude_defaults=True)}\n" for one in lines).encode())

    def _kept(self, now: Moment) -> Iterator[Moment]:
        known = self._followed.get(now.lease)
        if known is None:
            self._followed[now.lease] = _Followed(now.time, now)
            yield now
            return
        since = now.time - known.last.time
        is_other = now.vm != known.last.vm
        has_worked = now.differs(known.skipped or known.last)
        is_worth = has_worked and since >= (now.time - known.began) / _WHOLE
        if not (is_other or is_worth or since >= _IDLE):
            known.skipped = now
            return
        if known.skipped is not None and has_worked:
            yield known.skipped  # it had done little until then
        known.last, known.skipped = now, None
        yield now

    def _write(self, content: bytes) -> None:
        try:
            _append(self._folder, content)
            self._has_failed = False
        except OSError as error:  # a report does without
            if not self._has_failed:
                _log.error("what VMs use is not written to %s: %s", self._folder, error)
            self._has_failed = True


def _append(folder: Path, content: bytes) -> None:
    path = folder / f"{time.strftime('%Y-%m-%d', time.gmtime())}.jsonl"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(folder.glob("????-??-??.jsonl"))[: 1 - _DAYS]:
            old.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size + len(content) > _DAY_BYTES:
            raise OSError(f"more than {_DAY_BYTES >> 20} MiB today")
        if os.write(descriptor, content) < len(content):
            os.ftruncate(descriptor, size)
            raise OSError("no room on the disk")
    finally:
        os.close(descriptor)
