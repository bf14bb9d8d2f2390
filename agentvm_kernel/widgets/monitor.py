"""The monitor: what the notebook's VM uses and connects to, live in a front end and as a still picture.

All figures are the host's: the supervisor measures the VMs from outside and decides about their connections, and this
process knows the cells and snapshots. Nothing of it is asked of the guest, and the guest cannot reach the comm.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final, Protocol

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.firewall.names import HOST_PREFIX
from agentvm_kernel.kernel.chronicle import Chronicle, Event
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.kernel.requests import Request
from agentvm_kernel.widgets import anywidget
from agentvm_kernel.widgets.feed import Feed
from agentvm_kernel.widgets.history import CONNECTIONS, History, Point, key_of
from agentvm_kernel.widgets.present import Present, allowable, present
from agentvm_kernel.widgets.still import picture
from agentvm_kernel.widgets.text import sketch

log = logging.getLogger("agentvm.monitor")

ID: Final = f"{HOST_PREFIX}monitor"

INTERVAL: Final = 0.5
"""Seconds between two messages to the front ends, at least."""

PATIENCE: Final = 30.0
"""Seconds after which a page is forgotten that does not say that it still shows the monitor; it says so every ten."""

STILL: Final = 30.0
"""Seconds between two changes of what the notebook stores, at least."""

_PAGES: Final = 32
_DISPLAYS: Final = 20
_AT_ONCE: Final = 100
"""Connections in one message that tells what is new; those that change in between are told of later."""


class Comm(Protocol):
    """What a monitor needs of the host's comms; `agentvm_kernel.kernel.hostcomms.HostComms` is the real one."""

    has_viewer: bool

    async def say(self, name: str, content: Mapping[str, object]) -> None:
        """Send a custom message to the front ends."""

    async def display(self, bundle: Mapping[str, object], display_id: str, request: Request | None) -> None:
        """Bring a display up to date."""


class Monitor:
    """One per kernel process; however often it is shown, all views are of this one.

    Args:
        machine: The VM under the notebook.
        chronicle: What happened in the notebook.
        comms: Leads to the front ends.
        clock: Seconds, for what must not come too often.
        pause: Waits that many seconds.
    """

    id = ID

    def __init__(
        self,
        machine: Machine,
        chronicle: Chronicle,
        comms: Comm,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.history = History()
        self._machine = machine
        self._chronicle = chronicle
        self._comms = comms
        self._clock = clock
        self._pause = pause
        self._feed = Feed(machine, chronicle, self.history, self._news)
        self._pages: dict[str, float] = {}
        self._displays: list[str] = []
        self._drawn = clock() - STILL
        self._number = 0
        self._said: Present | None = None
        self._last: Present | None = None
        self._whole = True
        self._points: list[Point] = []
        self._events: dict[int, Event] = {}
        self._connections: dict[str, Connection] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._drawing = asyncio.Lock()
        self._is_closed = False
        chronicle.listeners.append(self._news)

    def state(self) -> dict[str, object]:
        """Return the model's state; what there is to show goes to those who ask, by messages."""
        return anywidget.model("monitor")

    # The still picture

    async def show(self) -> tuple[Mapping[str, object], str]:
        """Return what to display, by MIME type, and the id by which that is kept up to date."""
        await self._feed.look()
        self._displays = [*self._displays, secrets.token_hex(16)][-_DISPLAYS:]
        self._drawn = self._clock()
        return self._bundle(), self._displays[-1]

    async def cell_over(self, request: Request | None) -> None:
        """Bring what the notebook stores up to date, if the last time is long ago."""
        if self._displays and not self._is_closed and self._clock() - self._drawn >= STILL:
            await self._draw(request)

    async def close(self) -> None:
        """The kernel process ends: leave the last picture behind, which needs no kernel."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._displays:
            await self._draw(None, live=False)

    async def _draw(self, request: Request | None, *, live: bool = True) -> None:
        async with self._drawing:
            self._drawn = self._clock()
            if self._task is None:
                await self._feed.look()
            bundle = self._bundle(live=live)
            for display in self._displays:
                await self._comms.display(bundle, display, request)

    def _bundle(self, *, live: bool = True) -> dict[str, object]:
        now, events = self._present(), self._chronicle.events
        bundle: dict[str, object] = {
            "text/html": picture(now, self.history, events),
            "text/plain": sketch(now, self.history, events),
        }
        return bundle | ({anywidget.VIEW: anywidget.view(ID)} if live and self._comms.has_viewer else {})

    def _present(self) -> Present:
        """Return how the VM is; without one, the limits stay that held, with what was measured under them."""
        now, last = present(self._machine, self.history), self._last
        if not now.vm and last is not None:
            return replace(now, cpu=last.cpu, memory=last.memory, disk=last.disk)
        self._last = now
        return now

    # The live view

    async def heard(self, content: Mapping[str, object]) -> None:
        """Take what a page says: that it is there, shows the monitor, does not, or wants a host to be allowed."""
        match content:
            case {"do": "hello"}:
                pass
            case {"do": "watch", "page": str(page), "seen": int(seen)} if len(page) <= 64:
                self._watch(page, seen)
            case {"do": "leave", "page": str(page)}:
                self._pages.pop(page, None)
                self._changed.set()
            case {"do": "allow", "key": str(key)}:
                await self._allow(key)
            case _:
                log.warning("dropped a message to the monitor that has no meaning")

    def _watch(self, page: str, seen: int) -> None:
        self._pages[page] = self._clock()
        if len(self._pages) > _PAGES:
            del self._pages[min(self._pages, key=self._pages.__getitem__)]
        if seen != self._number:
            self._whole = True
            self._changed.set()
        if self._task is None:
            self._start()

    def _start(self) -> None:
        self._whole = True
        self._changed.set()
        self._task = asyncio.create_task(self._tell(), name="monitor")
        self._task.add_done_callback(self._told)

    def _is_watched(self) -> bool:
        now = self._clock()
        self._pages = {page: said for page, said in self._pages.items() if now - said < PATIENCE}
        return bool(self._pages)

    async def _tell(self) -> None:
        """Tell the pages what is new, as long as there are any."""
        async with self._feed.followed():
            while self._is_watched():
                await self._news_or_check()
                if self._is_watched() and (message := self._message()):
                    await self._comms.say(ID, message)
                await self._pause(INTERVAL)
            await self.cell_over(None)

    def _told(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (failure := task.exception()):
            log.error("the monitor failed", exc_info=failure)
        elif not self._is_closed and self._is_watched():  # somebody came while it was about to end
            self._start()

    async def _news_or_check(self) -> None:
        """Return when there is something to tell; at the latest when it is to be seen whether somebody looks."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE / 3):
                await self._changed.wait()
        self._changed.clear()

    def _message(self) -> dict[str, object]:
        """Return the next message: all there is, or what is new; empty if nothing is."""
        now = self._present()
        content: dict[str, object] = {}
        if self._whole:
            content = {"is": "all", **self._all()}
        else:
            connections = [self._connections.pop(key) for key in list(self._connections)[:_AT_ONCE]]
            news = {
                "points": self._points,
                "events": [_event(one) for one in self._events.values()],
                "connections": [self._row(one) for one in connections],
            }
            content = {name: value for name, value in news.items() if value}
        if content or now != self._said:
            self._number += 1
            content = {"is": "news", **content, "now": now.as_json(), "number": self._number}
        if self._connections:
            self._changed.set()
        self._said, self._whole, self._points, self._events = now, False, [], {}
        return content

    def _all(self) -> dict[str, object]:
        self._connections = {}
        return {
            "points": list(self.history.points),
            "events": [_event(one) for one in self._chronicle.events],
            "connections": [self._row(one) for one in self.history.connections.values()],
        }

    def _row(self, one: Connection) -> list[object]:
        host = allowable(one)
        return [
            key_of(one), round(one.time, 1), one.cell[:60], (one.name or one.address)[:253], one.port, one.verdict,
            one.bytes_sent, one.bytes_received, one.duration, one.protocol, one.reason[:200], one.count, host,
            host in self._machine.network.wanted.allow,
        ]  # fmt: skip

    def _news(self, news: object) -> None:
        """Take note of something new."""
        if isinstance(news, Event) and news.kind == "end":
            self._drawn -= STILL  # the next chance is taken to store how it ended
        if self._task is None or self._whole:
            return
        match news:
            case Point():
                self._points.append(news)
            case Event():
                self._events[news.number] = news
            case Connection():
                self._connections[key_of(news)] = news
                if len(self._connections) > CONNECTIONS:
                    del self._connections[next(iter(self._connections))]
        self._changed.set()

    # The button

    async def _allow(self, key: str) -> None:
        """Do what ``%net allow`` does, for a host that was refused and that the refusal says can be allowed."""
        connection = self.history.connections.get(key)
        host = allowable(connection) if connection else ""
        if not host:
            await self._answer(key, "That is no refusal that can be undone here; see %net.")
            return
        try:
            await self._machine.network.amend(allow=[host])
        except AgentVMError as error:
            await self._answer(key, f"{error.message} {error.hint}".strip())
            return
        await self._answer(key, f"Allowed: {host}.", allowed=host)

    async def _answer(self, key: str, text: str, *, allowed: str = "") -> None:
        answer = {"is": "answer", "key": key, "text": text, "allowed": allowed, "time": time.time()}
        await self._comms.say(ID, answer)


def _event(event: Event) -> list[object]:
    return [event.number, event.kind, round(event.time, 1), event.text, event.end and round(event.end, 1), event.failed]
