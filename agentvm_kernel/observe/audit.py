"""The audit log: one JSON object a line, each with the digest of the one before."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from pathlib import Path

_log = logging.getLogger(__name__)

_GENESIS = "0" * 64
_TAIL_BYTES = 64 * 1024
_MAX_TEXT = 512


class AuditLog:
    """Appends events to a file that only its user may read.

    Args:
        path: The file; created if it is not there, continued if it is.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._previous = self._last_digest()
        self._lost = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def record(self, event: str, **fields: str | float | int | bool) -> None:
        """Append an event.

        Args:
            event: Its name (see the list of audit events).
            **fields: What happened; text is cut to 512 characters, because some of it comes from guests.

        Where it cannot be written, the next one that can says how many are lost.
        """
        entry: dict[str, object] = {"time": time.time(), "event": event}
        entry |= {key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in fields.items()}
        entry["previous"] = self._previous
        if self._lost:
            entry["lost"] = self._lost
        line = json.dumps(entry).encode()
        try:
            self._append(line + b"\n")
        except OSError as error:  # what is going on must go on to its end: a VM that is not released is worse
            self._lost += 1
            _log.error("the audit log lacks %d events: %s", self._lost, error)
        else:
            self._previous, self._lost = hashlib.sha256(line).hexdigest(), 0

    def _append(self, line: bytes) -> None:
        written = os.write(self._descriptor, line)
        if written < len(line):  # the disk is full; the next line must not continue this one
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _last_digest(self) -> str:
        size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        lines = tail.splitlines()
        return hashlib.sha256(lines[-1]).hexdigest() if lines else _GENESIS
