"""The monitor in real front ends, over real VMs: what it shows, what survives, what a guest cannot do to it.

Screenshots of each state lie in the folder that AGENTVM_GALLERY names, for a human to look at. The tests are one visit,
in order.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Jupyter, Lab, chromium, jupyter, lab, write_notebook
from nbconvert import HTMLExporter
from playwright.sync_api import Locator, Page, expect

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(600),
]

PATIENCE = 60_000
HOSTS = 30

# The kernel's own session, past what ipykernel would let through.
_LIE = """
from IPython import get_ipython
kernel = get_ipython().kernel
def say(kind, **content):
    content |= {"comm_id": "agentvm-monitor"}
    kernel.session.send(kernel.iopub_socket, kind, content, parent=kernel.get_parent(), ident=kind.encode())

now = {"state": "running", "text": "", "vm": "vm-lie", "facts": "a lie", "cpu": 1, "memory": 1, "disk": 1, "open": 9,
       "allowed": 9, "refused": 9}
lie = {"is": "all", "number": 1, "now": now, "points": [[1, 1, 1, 1, 1, 1, 1, 1]], "events": [], "connections": []}
say("comm_msg", data={"method": "custom", "content": lie})
say("comm_msg", data={"method": "update", "state": {"_esm": "document.title = 'lie'"}})
say("comm_open", target_name="jupyter.widget", data={"state": {"_model_module": "@jupyter-widgets/controls",
    "_model_name": "TextModel", "_model_module_version": "2.0.0", "value": "lie"}})
say("comm_close", data={})
print("told")
"""
_ASK = f"""
import socket
for number in range({HOSTS}):
    try:
        socket.create_connection((f"host-{{number}}.example", 443), timeout=30).recv(1)
    except OSError:
        pass
"""
CELLS = {
    "monitor": "%monitor",
    "snapshot": "%snapshot base",
    "work": "import time\nend = time.monotonic() + 5\nwhile time.monotonic() < end:\n    sum(range(1000))",
    "fail": "1 / 0",
    "ask": _ASK,
    "audit": "%audit",
    "lie": _LIE,
    "rollback": "%rollback base",
    "stop": "%vm stop",
    "again": "%vm restart",
}


@dataclass
class Visit:
    """A notebook with a monitor, in JupyterLab."""

    server: Jupyter
    lab: Lab

    @property
    def page(self) -> Page:
        return self.lab.page

    @property
    def monitor(self) -> Locator:
        """The monitor that can be seen."""
        return self.page.locator(".agentvm-monitor:visible").first

    @property
    def vm(self) -> str:
        return self.monitor.locator(".agentvm-title b").inner_text()

    def picture(self, name: str, what: Locator | Page | None = None) -> None:
        if folder := os.environ.get("AGENTVM_GALLERY"):
            (what or self.page).screenshot(path=Path(folder) / f"monitor_{name}.png")

    def is_live(self) -> None:
        """Return when the monitor, in sight, shows something newer than before."""
        self.monitor.scroll_into_view_if_needed()
        expect(self.monitor.locator(".agentvm-state")).to_have_text("running", timeout=PATIENCE)
        expect(self.monitor.locator("canvas")).to_have_count(4, timeout=PATIENCE)
        number = self.monitor.get_attribute("data-news")
        expect(self.monitor).not_to_have_attribute("data-news", str(number), timeout=PATIENCE)


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory, vm_environment: Mapping[str, str]) -> Iterator[Visit]:
    with jupyter(tmp_path_factory.mktemp("jupyter"), vm_environment) as server, chromium() as browser:
        write_notebook(server.folder / "first.ipynb", CELLS, "agentvm")
        write_notebook(server.folder / "second.ipynb", {"monitor": "%monitor"}, "agentvm")
        with lab(browser, server) as opened:
            opened.open("first.ipynb", "agentvm")
            yield Visit(server, opened)


def test_it_begins_with_what_was_measured_before_anybody_looked(visit: Visit) -> None:
    visit.lab.run_one("monitor")
    visit.is_live()
    expect(visit.monitor.locator(".agentvm-empty")).to_be_visible()
    assert re.fullmatch(r"VM vm-[0-9a-f]+", visit.vm)
    assert "limit 512 MiB" in visit.monitor.inner_text()
    visit.picture("empty")


def test_a_busy_cell_is_seen_as_it_runs(visit: Visit) -> None:
    visit.lab.run_one("snapshot")
    visit.lab.run_one("work", wait=False)
    visit.monitor.scroll_into_view_if_needed()
    box = visit.monitor.locator(".u-over").first.bounding_box()
    assert box
    note = visit.monitor.locator(".agentvm-note")
    visit.page.mouse.move(box["x"] + box["width"] - 3, box["y"] + 40)
    visit.is_live()
    expect(note).to_contain_text("cell import time", timeout=PATIENCE)
    expect(visit.page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "busy")
    visit.picture("busy")
    visit.lab.run_one("fail")
    expect(note).to_contain_text("(failed)", timeout=PATIENCE)
    visit.page.mouse.move(5, 5)


def test_many_connections_have_a_row_each_and_a_refused_one_can_be_allowed(visit: Visit) -> None:
    visit.lab.run_one("ask")
    visit.monitor.scroll_into_view_if_needed()
    rows = visit.monitor.locator(".agentvm-connections tbody tr")
    expect(rows).to_have_count(HOSTS, timeout=PATIENCE)
    row = rows.filter(has_text="host-7.example")
    expect(row.locator(".agentvm-verdict")).to_have_text("refused")
    row.locator("button").click()
    expect(row.locator(".agentvm-done")).to_be_visible(timeout=PATIENCE)
    expect(visit.monitor.locator(".agentvm-answer")).to_have_text("Allowed: host-7.example.")
    expect(rows.locator("button")).to_have_count(HOSTS - 1)
    visit.picture("connections")
    visit.lab.run_one("audit")
    assert "host-7.example" in json.dumps(visit.lab.kept("audit"))
    visit.page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    expect(visit.page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    visit.is_live()
    visit.picture("dark")
    visit.page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    expect(visit.page.locator("body")).to_have_attribute("data-jp-theme-light", "true")


def test_a_guest_that_lies_changes_nothing(visit: Visit) -> None:
    vm = visit.vm
    visit.lab.run_one("lie")
    said = json.dumps(visit.lab.kept("lie"))
    assert "told" in said
    assert "blocked: " in said
    visit.is_live()
    assert visit.vm == vm
    assert "lie" not in visit.monitor.locator(".agentvm-title").inner_text()
    assert "9 open" not in visit.monitor.inner_text()
    assert visit.page.title() != "lie"


def test_it_goes_on_through_a_rollback(visit: Visit) -> None:
    vm = visit.vm
    visit.lab.run_one("rollback")
    visit.monitor.scroll_into_view_if_needed()
    expect(visit.monitor.locator(".agentvm-title b")).not_to_have_text(vm, timeout=PATIENCE)
    visit.is_live()
    expect(visit.monitor.locator(".agentvm-connections tbody tr")).to_have_count(HOSTS)
    visit.picture("rollback")


def test_a_page_that_is_loaded_again_finds_it(visit: Visit) -> None:
    visit.lab.save()
    vm = visit.vm
    visit.page.goto(f"{visit.server.url}/lab/tree/first.ipynb?token={visit.server.token}")
    expect(visit.monitor).to_be_visible(timeout=PATIENCE)
    visit.is_live()
    assert visit.vm == vm
    expect(visit.monitor.locator(".agentvm-connections tbody tr")).to_have_count(HOSTS)
    visit.picture("reloaded")


def test_notebook_7_shows_the_same(visit: Visit) -> None:
    page = visit.page.context.new_page()
    try:
        page.goto(f"{visit.server.url}/notebooks/first.ipynb?token={visit.server.token}")
        other = Visit(visit.server, Lab(page))
        expect(other.monitor).to_be_visible(timeout=PATIENCE)
        other.is_live()
        assert other.vm == visit.vm
        other.picture("notebook7")
    finally:
        page.close()


def test_two_notebooks_have_a_monitor_each_and_the_hidden_one_hears_nothing(visit: Visit) -> None:
    first = visit.vm
    visit.lab.prepare()
    visit.page.evaluate(
        """() => {
          const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
          window.heard = 0;
          kernel.iopubMessage.connect((_, message) => { window.heard += message.header.msg_type === 'comm_msg'; });
        }"""
    )
    visit.page.wait_for_function("() => window.heard > 1", timeout=PATIENCE)
    visit.lab.open("second.ipynb", "agentvm")
    visit.lab.run_one("monitor")
    visit.is_live()
    assert visit.vm != first
    visit.picture("second")
    hidden = visit.page.evaluate("() => window.heard")
    for _ in range(3):
        visit.is_live()
    assert visit.page.evaluate("() => window.heard") == hidden


def test_a_monitor_in_a_saved_notebook_lives_on_with_a_new_kernel(visit: Visit) -> None:
    earlier = visit.vm
    visit.lab.save()
    visit.lab.close()
    visit.lab.open("second.ipynb", "agentvm")
    expect(visit.monitor).to_be_visible(timeout=PATIENCE)
    visit.is_live()
    assert visit.vm != earlier
    visit.picture("revived")


def test_it_is_shown_again_after_a_restart_of_the_kernel(visit: Visit) -> None:
    earlier = visit.vm
    visit.lab.save()
    visit.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    visit.lab.run_one("monitor")
    visit.is_live()
    assert visit.vm != earlier
    expect(visit.page.locator(".agentvm-monitor:visible")).to_have_count(1)
    visit.lab.run_one("monitor")
    visit.is_live()
    visit.lab.close()


def test_it_says_that_the_vm_is_gone_and_keeps_its_plots(visit: Visit) -> None:
    visit.lab.open("first.ipynb", "agentvm")
    visit.lab.run_one("monitor")
    visit.is_live()
    visit.lab.run_one("stop")
    visit.monitor.scroll_into_view_if_needed()
    expect(visit.monitor.locator(".agentvm-banner")).to_contain_text("given back by %vm stop", timeout=PATIENCE)
    expect(visit.monitor.locator(".agentvm-state")).to_have_text("ended")
    expect(visit.monitor.locator("canvas")).to_have_count(4)
    visit.picture("gone")
    visit.lab.run_one("again")
    visit.is_live()
    expect(visit.monitor.locator(".agentvm-banner")).to_be_hidden()


def test_the_notebook_keeps_a_picture_that_needs_nothing(visit: Visit) -> None:
    visit.lab.shut_down()
    still = visit.page.locator(".jp-OutputArea img[alt*='measured by the host']")
    expect(still).to_be_visible(timeout=PATIENCE)
    visit.lab.save()
    visit.picture("still")
    path = visit.server.folder / "first.ipynb"
    cell = json.loads(path.read_text())["cells"][0]
    (output,) = cell["outputs"]
    assert set(output["data"]) == {"text/html", "text/plain"}
    assert "limit 512 MiB" in "".join(output["data"]["text/plain"])
    page, _ = HTMLExporter().from_filename(str(path))
    assert "data:image/svg+xml;base64," in page
