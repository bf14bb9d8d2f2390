"""The monitor: what it tells to whom and how often, what its button may do, and what is left behind in the notebook."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from kernel_harness import (
    InProcessKernel,
    ScriptedGuest,
    ScriptedSupervisor,
    ask,
    cell,
    outputs,
    replied,
    running,
    told,
    types,
    within,
)
from monitor_bed import measured, refused

from agentvm_kernel.errors import ApiError, VMEndedError
from agentvm_kernel.kernel.chronicle import Chronicle
from agentvm_kernel.kernel.requests import Request
from agentvm_kernel.widgets import anywidget
from agentvm_kernel.widgets.history import CONNECTIONS, KEPT, History, highest
from agentvm_kernel.widgets.monitor import ID, INTERVAL, PATIENCE, STILL, Monitor

Message = dict[str, Any]
VIEW = anywidget.VIEW


class Desk:
    """The host's comms and the clock, as a monitor under test sees them; time passes only in pauses."""

    def __init__(self) -> None:
        self.has_viewer = True
        self.now = 1000.0
        self.said: list[tuple[float, Message]] = []
        self.displayed: list[tuple[Message, str]] = []
        self.pauses = asyncio.Semaphore(0)
        self.paused = asyncio.Event()

    async def say(self, name: str, content: Mapping[str, object]) -> None:
        assert name == ID
        self.said.append((self.now, dict(content)))

    async def display(self, bundle: Mapping[str, object], display_id: str, request: Request | None) -> None:
        self.displayed.append((dict(bundle), display_id))

    async def pause(self, seconds: float) -> None:
        self.paused.set()
        await self.pauses.acquire()
        self.now += seconds

    async def pass_on(self) -> None:
        """Let one pause of the monitor go by, once it is in one."""
        await asyncio.wait_for(self.paused.wait(), 20)
        self.paused.clear()
        self.pauses.release()

    def told(self) -> list[Message]:
        return [content for _, content in self.said]


class Bed:
    """A monitor over a running kernel."""

    def __init__(self, kernel: InProcessKernel, guest: ScriptedGuest) -> None:
        self.kernel = kernel
        self.guest = guest
        self.desk = Desk()
        self.chronicle = kernel.router._chronicle
        self.monitor = Monitor(kernel.machine, self.chronicle, self.desk, lambda: self.desk.now, self.desk.pause)

    @property
    def supervisor(self) -> ScriptedSupervisor:
        return self.kernel.supervisor

    async def watch(self, seen: int = 0, page: str = "p") -> None:
        await self.monitor.heard({"do": "watch", "page": page, "seen": seen})

    async def leave(self, page: str = "p") -> None:
        await self.monitor.heard({"do": "leave", "page": page})

    async def messages(self, count: int) -> list[Message]:
        await within(lambda: len(self.desk.said) >= count)
        return self.desk.told()


@asynccontextmanager
async def monitoring(tmp_path: Path) -> AsyncIterator[Bed]:
    async with running(tmp_path) as kernel, kernel.client():
        bed = Bed(kernel, await kernel.guest())
        yield bed
        await bed.monitor.close()


def numbers(messages: list[Message]) -> list[int]:
    return [message["number"] for message in messages if "number" in message]


async def test_a_page_gets_all_and_then_what_is_new(tmp_path: Path) -> None:
    async with monitoring(tmp_path) as bed:
        bed.supervisor.measured = [measured(1.0), measured(2.0, disk_read=3000)]
        bed.supervisor.connected = [refused(1)]
        await bed.watch()
        (first,) = await bed.messages(1)
        assert first["is"] == "all"
        assert first["now"]["vm"] == "vm-1"
        await bed.desk.pass_on()
        await within(lambda: len(bed.monitor.history.points) == 2)
        bed.supervisor.measuring.put_nowait(measured(4.0, disk_read=5000, cpu_percent=99.5))
        await within(lambda: len(bed.monitor.history.points) == 3)
        while sum(len(one.get("points", [])) for one in bed.desk.told()) < 3:
            await bed.desk.pass_on()
            await bed.messages(2)
        told = bed.desk.told()
        points = [point for one in told for point in one.get("points", [])]
        assert [(point[0], point[1], point[4]) for point in points] == [
            (1.0, 50, 0),
            (2.0, 50, 3000),
            (4.0, 99.5, 1000),
        ]
        rows = [row for one in told for row in one.get("connections", [])]
        assert [(row[0], row[3], row[12]) for row in rows] == [("lease-1/1", "data.example", "data.example")]
        assert numbers(told) == list(range(1, len(told) + 1))


async def test_a_page_that_missed_something_gets_all_again(tmp_path: Path) -> None:
    async with monitoring(tmp_path) as bed:
        await bed.watch()
        await bed.messages(1)
        bed.chronicle.note("snapshot", "s")
        await bed.desk.pass_on()
        assert [one["is"] for one in await bed.messages(2)] == ["all", "news"]
        await bed.watch(seen=2)
        bed.chronicle.note("snapshot", "t")
        await bed.desk.pass_on()
        assert (await bed.messages(3))[-1]["is"] == "news"
        await bed.watch(seen=1)
        await bed.desk.pass_on()
        assert (await bed.messages(4))[-1]["is"] == "all"


async def test_there_are_at_most_two_messages_a_second_whatever_comes(tmp_path: Path) -> None:
    async with monitoring(tmp_path) as bed:
        await bed.watch()
        await bed.messages(1)
        for number in range(1, 21):
            for part in range(10):
                bed.supervisor.measuring.put_nowait(measured(number + part / 10))
            bed.chronicle.note("snapshot", str(number))
            await bed.watch(seen=0, page=f"another-{number}")
            await within(lambda: not bed.supervisor.measuring.qsize())
            await bed.desk.pass_on()
            await bed.messages(number + 1)
        times = [time for time, _ in bed.desk.said]
        assert INTERVAL >= 0.5
        assert min(later - earlier for earlier, later in pairwise(times)) >= INTERVAL


async def test_nothing_is_sent_and_nothing_asked_for_when_nobody_looks(tmp_path: Path) -> None:
    async with monitoring(tmp_path) as bed:
        await bed.watch()
        await bed.watch(page="q")
        await within(lambda: bed.supervisor.followers == 1)
        await bed.leave()
        await bed.desk.pass_on()
        await within(bed.desk.paused.is_set)
        assert bed.supervisor.followers == 1
        await bed.leave("q")
        await bed.desk.pass_on()
        await within(lambda: bed.supervisor.followers == 0)
        said = len(bed.desk.said)
        bed.chronicle.note("snapshot", "unseen")
        await bed.monitor.cell_over(None)
        assert len(bed.desk.said) == said
        await bed.watch(seen=said)
        assert (await bed.messages(said + 1))[-1]["is"] == "all"
        assert "unseen" in [event[3] for event in bed.desk.told()[-1]["events"]]


async def test_a_page_that_says_nothing_any_more_is_forgotten(tmp_path: Path) -> None:
    async with monitoring(tmp_path) as bed:
        await bed.watch()
        await bed.messages(1)
        bed.desk.now += PATIENCE
        await bed.desk.pass_on()
        await within(lambda: bed.supervisor.followers == 0)


@pytest.mark.parametrize("ends", [True, False], ids=["the stream ends", "the stream hangs"])
async def test_it_goes_on_in_the_next_vm_and_says_that_there_is_none(tmp_path: Path, ends: bool) -> None:
    async with monitoring(tmp_path) as bed:
        bed.supervisor.measured = [measured(1.0)]
        await bed.watch()
        await within(lambda: bed.monitor.history.points)
        if ends:
            bed.supervisor.measuring.put_nowait(None)
        await bed.kernel.machine.close(VMEndedError("gone for a reason"))
        while bed.desk.told()[-1]["now"]["state"] != "ended":
            await bed.desk.pass_on()
        assert bed.desk.told()[-1]["now"]["text"] == "gone for a reason"
        bed.supervisor.measured = [measured(5.0, "vm-2", disk_read=10)]
        bed.kernel.machine.start()
        await bed.kernel.guest()
        await within(lambda: len(bed.monitor.history.points) == 2)
        assert bed.monitor.history.points[-1].disk_read == 0  # not a rate between two VMs
        kinds = [event.kind for event in bed.chronicle.events]
        assert kinds == ["vm", "end", "vm"]


async def test_what_is_kept_is_bounded() -> None:
    history, chronicle = History(), Chronicle()
    for number in range(3 * KEPT):
        history.measured(measured(float(number)))
        history.connected(refused(number))
        chronicle.note("snapshot", str(number))
    assert (len(history.points), len(history.connections), len(chronicle.events)) == (KEPT, CONNECTIONS, 300)
    assert history.points[-1].time == 3 * KEPT - 1


def test_only_the_notebooks_own_vm_is_shown_and_no_moment_twice() -> None:
    history = History()
    assert history.measured(measured(1.0))
    assert not history.measured(measured(1.0))
    assert not history.measured(measured(2.0, "fork-1", state="fork"))
    assert len(history.points) == 1


def test_no_peak_is_lost_in_a_smaller_picture() -> None:
    history = History()
    for number in range(KEPT):
        history.measured(measured(float(number), cpu_percent=100.0 if number == 123 else 1.0))
    values = highest(history.points, "cpu", 50)
    assert len(values) == 50
    assert values.count(100.0) == 1


@pytest.mark.parametrize(
    "connection",
    [
        refused(verdict="allowed"),
        refused(verdict="failed"),
        refused(name="", address="1.2.3.4", hint="Use the host's name."),
        refused(hint="%net mode filtered turns it on."),
        refused(hint="%net allow data.example takes that back."),
        refused(hint="%net allow other.example"),
        refused(name="*.example", hint="%net allow *.example"),
        None,
    ],
)
async def test_the_button_allows_nothing_but_what_a_refusal_says(tmp_path: Path, connection: object) -> None:
    async with monitoring(tmp_path) as bed:
        bed.supervisor.connected = [connection] if connection else []
        await bed.monitor.show()
        for key in ("lease-1/1", "data.example", "lease-1/2"):
            await bed.monitor.heard({"do": "allow", "key": key})
        assert bed.supervisor.network_wanted.allow == ()
        assert {message["allowed"] for message in bed.desk.told()} == {""}


async def test_the_button_does_what_net_allow_does(tmp_path: Path) -> None:
    async with monitoring(tmp_path) as bed:
        bed.supervisor.connected = [refused(1), refused(2, port=8443, hint="%net allow data.example:8443")]
        await bed.monitor.show()
        await bed.monitor.heard({"do": "allow", "key": "lease-1/1"})
        await bed.monitor.heard({"do": "allow", "key": "lease-1/2"})
        assert bed.supervisor.network_wanted.allow == ("data.example", "data.example:8443")
        assert bed.kernel.machine.network.wanted.allow == bed.supervisor.network_wanted.allow
        assert bed.desk.told()[0]["text"] == "Allowed: data.example."
        bed.supervisor.fails = ApiError("name", "Not that one.", "Another.")
        await bed.monitor.heard({"do": "allow", "key": "lease-1/1"})
        assert bed.desk.told()[-1]["text"] == "Not that one. Another."


@pytest.mark.parametrize(
    "content", [{}, {"do": "watch"}, {"do": "watch", "page": "x" * 65, "seen": 1}, {"do": "allow"}]
)
async def test_what_has_no_meaning_is_dropped(tmp_path: Path, content: Message) -> None:
    async with monitoring(tmp_path) as bed:
        await bed.monitor.heard(content)
        assert bed.desk.said == []
        assert bed.supervisor.followers == 0


async def test_the_still_picture_holds_what_was_measured_and_no_markup_of_anyones(tmp_path: Path) -> None:
    async with monitoring(tmp_path) as bed:
        bed.supervisor.measured = [measured(float(number), cpu_percent=number) for number in range(90)]
        bed.supervisor.connected = [refused(1, "<script>\x1b[31m"), refused(2)]
        bed.chronicle.begins(1, "</text><script>alert(1)</script>")
        bed.chronicle.ends(1, failed=True)
        bundle, display = await bed.monitor.show()
        assert bundle[VIEW] == {"version_major": 2, "version_minor": 0, "model_id": ID}
        assert len(display) == 32
        text, markup = str(bundle["text/plain"]), str(bundle["text/html"])
        assert "89 %; limit 100 %" in text
        assert "data.example:443" in text
        assert "\x1b" not in text
        assert markup.count("<") == 1
        source = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', markup)
        assert source
        svg = base64.b64decode(source[1]).decode()
        assert "<script" not in svg
        picture = ElementTree.fromstring(svg)
        lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
        assert len(lines) == 7


async def test_without_anything_measured_there_is_a_picture_too(tmp_path: Path) -> None:
    async with monitoring(tmp_path) as bed:
        bundle, _ = await bed.monitor.show()
        assert "not measured yet" in str(bundle["text/plain"])


async def test_the_notebook_is_brought_up_to_date_now_and_then(tmp_path: Path) -> None:
    async with monitoring(tmp_path) as bed:
        await bed.monitor.show()
        await bed.monitor.show()
        await bed.monitor.cell_over(None)
        assert bed.desk.displayed == []
        bed.desk.now += STILL
        bed.supervisor.measured = [measured(1.0, cpu_percent=77.0)]
        await bed.monitor.cell_over(None)
        await bed.monitor.cell_over(None)
        assert len({display for _, display in bed.desk.displayed}) == len(bed.desk.displayed) == 2
        bundle, _ = bed.desk.displayed[0]
        assert "77 %" in str(bundle["text/plain"])
        assert VIEW in bundle


async def test_what_is_left_behind_needs_no_kernel(tmp_path: Path) -> None:
    async with monitoring(tmp_path) as bed:
        await bed.monitor.show()
        await bed.monitor.close()
        ((bundle, _),) = bed.desk.displayed
        assert set(bundle) == {"text/html", "text/plain"}
        bed.desk.now += STILL
        await bed.monitor.cell_over(None)
        assert len(bed.desk.displayed) == 1


async def test_a_front_end_without_widgets_gets_the_picture_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        kernel.supervisor.measured = [measured(1.0)]
        asked = client.execute("%monitor")
        await guest.execute()
        messages = await outputs(client, asked)
        assert "comm_open" not in types(messages)
        shown = next(one for one in messages if one["msg_type"] == "display_data")["content"]
        assert set(shown["data"]) == {"text/html", "text/plain"}  # type: ignore[index]
        assert shown["transient"]["display_id"]  # type: ignore[index]


async def test_what_executes_notebooks_hears_of_the_last_state_before_a_cell_is_idle(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await told(client, guest, "%monitor")
        monitor = kernel.router._host_comms.find(ID)
        assert isinstance(monitor, Monitor)
        monitor._drawn -= STILL
        kernel.supervisor.measured = [measured(1.0, cpu_percent=66.0)]
        running_cell = client.execute("x")
        await guest.execute()
        messages = await outputs(client, running_cell)
        assert types(messages) == ["busy", "execute_input", "update_display_data", "idle"]
        assert "66 %" in messages[2]["content"]["data"]["text/plain"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("comm_open", {"comm_id": "c", "target_name": "jupyter.widget.control", "data": {}}),
        ("comm_info_request", {"target_name": "jupyter.widget"}),
    ],
)
async def test_one_with_widgets_gets_one_model_for_all_views(tmp_path: Path, kind: str, content: Message) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await ask(client, kind, content)
        first = await guest.asked()
        guest.reply(first, {"status": "ok", "comms": {}})
        guest.status(first, "idle")
        views = []
        for spoken in (False, False, True):
            if spoken:
                hello = {"comm_id": ID, "data": {"method": "custom", "content": {"do": "hello"}}}
                await outputs(client, await ask(client, "comm_msg", hello))
            asked = client.execute("%monitor")
            await guest.execute()
            views.append(await outputs(client, asked))
        # A page that has not spoken may hold a model of a kernel process that is gone.
        assert [types(messages).count("comm_open") for messages in views] == [1, 1, 0]
        bundles = [next(m for m in messages if m["msg_type"] == "display_data")["content"] for messages in views]
        assert [bundle["data"][VIEW]["model_id"] for bundle in bundles] == [ID, ID, ID]  # type: ignore[index]
        assert len({bundle["transient"]["display_id"] for bundle in bundles}) == 3  # type: ignore[index]


@pytest.mark.parametrize(("stored", "is_known"), [(f'{{"model_id": "{ID}"}}', True), ("other", False), (None, False)])
async def test_a_monitor_that_the_notebook_shows_is_known_from_the_beginning(
    tmp_path: Path, stored: str | None, is_known: bool
) -> None:
    notebook = tmp_path / "n.ipynb"
    if stored is not None:
        notebook.write_text(stored)
    async with running(tmp_path) as kernel, kernel.client() as client:
        kernel.router.revive(notebook)
        guest = await kernel.guest()
        asking = await ask(client, "comm_info_request", {"target_name": "jupyter.widget"})
        guest.reply(await guest.asked(), {"status": "ok", "comms": {}})
        comms = (await replied(client, asking))["content"]["comms"]  # type: ignore[index]
        assert (ID in comms) is is_known


async def test_cells_snapshots_and_ways_back_are_written_down(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await cell(client, guest, "x = 1")
        await cell(client, guest, "1 / 0", "error")
        await told(client, guest, "%snapshot base")
        await told(client, guest, "%rollback base")
        events = kernel.router._chronicle.events
        assert [(one.kind, one.text, one.failed) for one in events] == [
            ("vm", "vm-1", False), ("cell", "x = 1", False), ("cell", "1 / 0", True), ("snapshot", "base", False),
            ("rollback", "base", False), ("vm", "vm-2", False),
        ]  # fmt: skip
        assert all(one.end for one in events if one.kind == "cell")


async def test_help_and_a_wrong_call(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        assert "Example:" in await told(client, guest, "%monitor?")
        assert "valid is %monitor alone" in await told(client, guest, "%monitor now")


def test_a_front_end_that_was_not_built_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(anywidget, "files", lambda _: tmp_path)
    anywidget._script.cache_clear()
    with pytest.raises(Exception, match="has not been built"):
        anywidget.model("monitor")
