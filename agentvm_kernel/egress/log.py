"""Keeps what is written down about connections: in memory for looking, in files for later, live for who listens."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from agentvm_kernel.egress.record import Connection

_log = logging.getLogger(__name__)

_KEPT: Final = 1000
"""Connections of a session that are kept in memory."""

_WAITING: Final = 256
"""Connections that wait for a slow listener."""

_DAYS: Final = 30
_DAY_BYTES: Final = 64 << 20

Hook = Callable[[Connection], None]


class Subscription:
    """What comes in from now on. Made by `ConnectionLog.subscribe`; a context manager and an asynchronous iterator.

    Attributes:
        lost: Connections left out because the listener was too slow.
    """

    def __init__(self, session: str | None, end: Callable[[Subscription], None]) -> None:
        self.lost = 0
        self._session = session
        self._end = end
        self._waiting: deque[Connection] = deque()
        self._ready = asyncio.Event()

    def put(self, connection: Connection) -> None:
        """Take one more. Called by the log."""
        if self._session not in {None, connection.session}:
            return
        if len(self._waiting) >= _WAITING:
            self.lost += 1
        else:
            self._waiting.append(connection)
            self._ready.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(self)

    def __aiter__(self) -> AsyncIterator[Connection]:
        return self

    async def __anext__(self) -> Connection:
        while not self._waiting:
            self._ready.clear()
            await self._ready.wait()
        return self._waiting.popleft()


class ConnectionLog:
    """All connections of a supervisor's VMs.

    Args:
        folder: Where a file per day (UTC) is kept: one JSON object a line, written when a connection is over.
        hook: Told of each verdict once, when it falls; a connection that is cut later for what it then says has two.
    """

    def __init__(self, folder: Path, hook: Hook | None = None) -> None:
        self.lost = 0
        """Connections that could not be written to the file."""
        self._folder = folder
        self._hook = hook
        self._numbers = itertools.count(1)
        self._sessions: dict[str, OrderedDict[int, Connection]] = {}
        self._subscriptions: set[Subscription] = set()
        self._day = ""
        self._descriptor = -1
        self._full = False

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._day = ""

    def next_id(self) -> int:
        """Return a number for a new connection."""
        return next(self._numbers)

    def put(self, connection: Connection) -> None:
        """Write down a connection, or what has become of it.

        Args:
            connection: The connection; replaces what was said of it before.
        """
        kept: OrderedDict[int, Connection] = self._sessions.setdefault(connection.session, OrderedDict())
        before = kept.get(connection.id)
        kept[connection.id] = connection
        if len(kept) > _KEPT:
            del kept[_least(kept)]
        for subscription in self._subscriptions:
            subscription.put(connection)
        if self._hook is not None and (before is None or before.verdict != connection.verdict):
            self._hook(connection)
        if connection.duration is not None:
            self._write(connection)

    def of(self, session: str, since: float = 0.0) -> list[Connection]:
        """Return a session's connections, the oldest first, as far as they are kept.

        Args:
            session: The session.
            since: Only such as were open at that time or began after it, seconds since 1970.
        """
        kept = self._sessions.get(session, OrderedDict[int, Connection]())
        return [one for one in kept.values() if one.duration is None or one.time + one.duration >= since]

    def all(self) -> list[Connection]:
        """Return all sessions' connections, the oldest first, as far as they are kept."""
        kept = itertools.chain.from_iterable(each.values() for each in self._sessions.values())
        return sorted(kept, key=lambda connection: connection.id)

    def forget(self, session: str) -> None:
        """Keep nothing more of a session in memory. Called when it is over."""
        self._sessions.pop(session, None)

    def subscribe(self, session: str | None = None) -> Subscription:
        """Return what comes in from now on, each connection at its beginning and at its end.

        Args:
            session: Only this one's; None for all.
        """
        subscription = Subscription(session, self._subscriptions.discard)
        self._subscriptions.add(subscription)
        return subscription

    def _write(self, connection: Connection) -> None:
        line = connection.model_dump_json().encode() + b"\n"
        try:
            descriptor = self._file()
            size = os.fstat(descriptor).st_size
            if size + len(line) > _DAY_BYTES:
                self._give_up(f"more than {_DAY_BYTES} bytes today")
            elif os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, size)
                self._give_up("no room on the disk")
            else:
                self._full = False
        except OSError as error:  # a connection goes on even where it cannot be written down; memory still has it
            self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        self.lost += 1
        if not self._full:
            _log.error("connections are no longer written to %s: %s", self._folder, why)
        self._full = True

    def _file(self) -> int:
        day = time.strftime("%Y-%m-%d", time.gmtime())
        if day != self._day:
            self.close()
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._folder / f"{day}.jsonl", flags, 0o600)
            self._day = day
            for old in sorted(self._folder.glob("????-??-??.jsonl"))[:-_DAYS]:
                old.unlink(missing_ok=True)
        return self._descriptor


def _least(kept: OrderedDict[int, Connection]) -> int:
    """Return which one to forget: a flood of refusals shall not hide what was sent, nor the other way round."""
    refused = [number for number, one in kept.items() if one.verdict == "refused"]
    return refused[0] if 2 * len(refused) > _KEPT else next(n for n, one in kept.items() if one.verdict != "refused")
