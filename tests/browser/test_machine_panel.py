"""The panel and the status bar in JupyterLab, over a real server, supervisor and VMs: clicked through as a user would.

What a click did is asked of the supervisor or of a cell, not only of the page. Screenshots of each state lie in the
folder that AGENTVM_GALLERY names, for a human to look at. The tests are one visit, in order.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Jupyter, Lab, chromium, jupyter, lab, write_notebook
from playwright.sync_api import Locator, Page, expect

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.messages import SnapshotInfo, VMInfo
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(600),
]

PATIENCE = 60_000
WIDTHS = (1280, 1920)

_HOSTILE = "<img src=x onerror=\"document.title='hit'\">"
CELLS = {
    "one": "x = 1",
    "two": f"x = 2  # {_HOSTILE}\u202e",
    "file": "from pathlib import Path\nPath('note.txt').write_text('n' * 5000)",
    "say": "print('x is', x)",
    "ask": "import socket\nsocket.create_connection(('data.example', 443), timeout=30).recv(1)",
    "show": "from IPython.display import HTML\nHTML('<b>seen</b><script>1</script>')",
    "fork": "x = 7\nx",
}


@dataclass
class Visit:
    """A notebook and the panel beside it."""

    server: Jupyter
    lab: Lab
    paths: Paths

    @property
    def page(self) -> Page:
        return self.lab.page

    @property
    def panel(self) -> Locator:
        return self.page.locator(".avm-panel")

    @property
    def tree(self) -> Locator:
        return self.panel.get_by_role("tree")

    def row(self, text: str) -> Locator:
        return self.tree.get_by_role("treeitem").filter(has_text=text)

    def click(self, name: str, place: Locator | None = None) -> None:
        (place or self.panel).get_by_role("button", name=name, exact=True).click()

    def answer(self, name: str) -> None:
        """Press a button of the dialogue."""
        self.page.locator(".jp-Dialog").get_by_role("button", name=name, exact=True).click()
        expect(self.page.locator(".jp-Dialog")).to_have_count(0)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of the machine."""
        deadline = time.monotonic() + PATIENCE / 1000
        while not holds():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(100)

    def asked(self, question: Callable[[SyncSupervisorClient, str], Any]) -> Any:
        """Ask the supervisor about the only machine that a notebook of this server has."""
        with SyncSupervisorClient(self.paths, start=False) as client:
            return question(client, self.vm.lease)

    @property
    def vm(self) -> VMInfo:
        kernel = self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.id")
        with SyncSupervisorClient(self.paths, start=False) as client:
            (found,) = [one for one in client.vms().vms if kernel in one.owner and one.state == "leased"]
        return found

    @property
    def snapshots(self) -> dict[str, SnapshotInfo]:
        tree = self.asked(lambda client, lease: client.snapshots(lease))
        return {one.label or one.id: one for one in tree.snapshots}

    @property
    def allowed(self) -> str:
        """The hosts that the session allows."""
        rules = self.asked(lambda client, lease: client.network(lease)).rules
        return " ".join(rule.pattern for rule in rules if rule.verdict == "allow" and rule.source != "default")

    def said(self, name: str = "say") -> str:
        """Run a cell and return its outputs."""
        self.lab.run_one(name)
        return json.dumps(self.lab.kept(name))

    def picture(self, name: str) -> None:
        """Show a state in both themes and at both widths."""
        folder = os.environ.get("AGENTVM_GALLERY")
        if not folder:
            return
        for theme in ("Light", "Dark"):
            self.page.evaluate(
                "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", f"JupyterLab {theme}"
            )
            expect(self.page.locator("body")).to_have_attribute("data-jp-theme-name", f"JupyterLab {theme}")
            expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)
            for width in WIDTHS:
                self.page.set_viewport_size({"width": width, "height": 1000})
                self.page.evaluate("() => bed.drawn()")
                self.page.screenshot(path=Path(folder) / f"panel_{name}_{theme.lower()}_{width}.png")
        self.page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")


@pytest.fixture(scope="module")
def visit(
    tmp_path_factory: pytest.TempPathFactory, vm_environment: Mapping[str, str], vm_paths: Paths
) -> Iterator[Visit]:
    with jupyter(tmp_path_factory.mktemp("jupyter"), vm_environment) as server, chromium() as browser:
        write_notebook(server.folder / "first.ipynb", CELLS, "agentvm")
        write_notebook(server.folder / "second.ipynb", CELLS, "agentvm")
        write_notebook(server.folder / "foreign.ipynb", {"one": "1"}, "python3")
        with lab(browser, server) as opened:
            yield Visit(server, opened, vm_paths)


@pytest.fixture(autouse=True)
def no_dialogue_stays(visit: Visit) -> Iterator[None]:
    """Close what a test that failed has left open, so that the next one can tell its own tale."""
    yield
    for button in visit.page.locator(".jp-Dialog button").all()[:1]:
        button.click()


def test_without_a_notebook_it_says_what_it_is_for(visit: Visit) -> None:
    visit.page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
    expect(visit.panel.get_by_role("heading")).to_have_text("No notebook is open")
    visit.picture("no_notebook")


def test_a_kernel_of_another_kind_is_said_to_run_on_the_host(visit: Visit) -> None:
    visit.lab.open("foreign.ipynb", "python3")
    expect(visit.panel.get_by_role("heading")).to_have_text("This kernel does not run in a virtual machine")
    expect(visit.page.locator(".avm-status-button")).to_have_count(0)
    visit.picture("foreign")
    visit.lab.close()


def test_the_status_bar_leads_to_the_panel_which_shows_the_machine(visit: Visit) -> None:
    visit.lab.open("first.ipynb", "agentvm")
    visit.lab.run_one("one")
    status = visit.page.locator(".avm-status-button")
    expect(status).to_contain_text(re.compile(r"VM · \d+ % · [\d.]+ MiB · filtered"), timeout=PATIENCE)
    visit.page.evaluate("() => jupyterapp.shell.collapseRight()")
    expect(visit.panel).not_to_be_visible()
    status.click()
    expect(visit.panel).to_be_visible()
    expect(visit.panel.locator(".avm-id")).to_have_text(visit.vm.id)
    with SyncSupervisorClient(visit.paths, start=False) as client:
        is_emulated = client.status().accelerator == "tcg"
    expect(visit.panel.get_by_role("note")).to_have_count(int(is_emulated))
    expect(visit.panel.locator(".avm-plot path[d*='L']")).to_have_count(4, timeout=PATIENCE)
    visit.picture("running")


def test_a_snapshot_with_a_label_appears_in_the_tree(visit: Visit) -> None:
    visit.click("Snapshot …")
    visit.page.locator(".jp-Dialog").get_by_role("textbox", name="Label").fill("base")
    visit.answer("Take snapshot")
    expect(visit.row("base")).to_be_visible(timeout=PATIENCE)
    visit.until(lambda: "base" in visit.snapshots)


def test_going_back_says_what_is_lost_and_does_it(visit: Visit) -> None:
    visit.lab.run_one("two")
    visit.click("Snapshot …")
    visit.answer("Take snapshot")
    row = visit.row("onerror")
    expect(row).to_contain_text("⟨U+202E⟩", timeout=PATIENCE)
    before = visit.vm.id
    visit.row("base").click()
    visit.picture("selected")
    visit.click("Go back …")
    dialogue = visit.page.locator(".jp-Dialog")
    expect(dialogue).to_contain_text("What is lost", timeout=PATIENCE)
    expect(dialogue).to_contain_text("nothing was sent to other machines")
    visit.picture("plan")
    visit.answer("Cancel")
    assert visit.vm.id == before
    assert "x is 2" in visit.said()
    visit.click("Go back …")
    visit.answer("Go back")
    expect(visit.panel.locator(".avm-id")).not_to_have_text(before, timeout=PATIENCE)
    assert "x is 1" in visit.said()
    expect(row).to_have_class(re.compile("avm-left"))
    assert visit.page.title() != "hit"
    visit.picture("branches")


def test_the_tree_is_walked_by_the_keyboard(visit: Visit) -> None:
    visit.tree.locator("[tabindex='0']").focus()
    visit.page.keyboard.press("Home")
    expect(visit.tree.locator(":focus")).to_contain_text("The machine as it is now")
    visit.page.keyboard.press("ArrowLeft")
    expect(visit.tree.locator(":focus")).to_contain_text("base")
    expect(visit.tree.locator("[tabindex='0']")).to_have_count(1)
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator(".jp-Dialog")).to_contain_text("Go back to “base”?", timeout=PATIENCE)
    expect(visit.page.locator(".jp-Dialog :focus")).to_have_text("Cancel")
    visit.page.keyboard.press("Escape")
    expect(visit.page.locator(".jp-Dialog")).to_have_count(0)


def test_two_states_are_compared(visit: Visit) -> None:
    visit.lab.run_one("file")
    visit.row("base").click()
    visit.click("Compare")
    dialogue = visit.page.locator(".jp-Dialog")
    expect(dialogue).to_be_visible(timeout=3 * PATIENCE)
    expect(dialogue).to_contain_text("note.txt")
    expect(dialogue).to_contain_text("This is what the machine says of itself")
    visit.picture("comparison")
    visit.answer("Close")


def test_a_snapshot_is_labelled_removed_and_pruned(visit: Visit) -> None:
    visit.row("base").click()
    visit.click("Label …")
    visit.page.locator(".jp-Dialog").get_by_role("textbox", name="Label").fill("start")
    visit.answer("Set label")
    expect(visit.row("start")).to_be_visible(timeout=PATIENCE)
    visit.until(lambda: "start" in visit.snapshots)
    removed = str(visit.row("onerror").get_attribute("data-snapshot"))
    assert removed in visit.snapshots
    visit.row("onerror").click()
    visit.click("Remove …")
    visit.answer("Remove")
    expect(visit.row("onerror")).to_have_count(0, timeout=PATIENCE)
    visit.until(lambda: removed not in visit.snapshots)
    count = len(visit.snapshots)
    visit.click("Snapshot …")
    visit.answer("Take snapshot")
    visit.until(lambda: len(visit.snapshots) == count + 1)
    before = visit.vm.id
    visit.row("start").click()
    visit.click("Go back …")
    visit.answer("Go back")
    expect(visit.panel.locator(".avm-id")).not_to_have_text(before, timeout=PATIENCE)
    visit.click("Prune …")
    visit.page.locator(".jp-Dialog").get_by_role("spinbutton").fill("0")
    visit.picture("prune")
    visit.answer("Remove")
    expect(visit.tree.get_by_role("treeitem")).to_have_count(3, timeout=PATIENCE)
    assert set(visit.snapshots) == {"start"}


def test_time_travel_is_switched(visit: Visit) -> None:
    travel = visit.panel.get_by_role("checkbox")
    travel.click()
    expect(travel).to_be_checked(timeout=PATIENCE)
    visit.lab.run_one("one")
    expect(visit.row("x = 1").first).to_be_visible(timeout=PATIENCE)
    assert len(visit.snapshots) > 1
    travel.click()
    expect(travel).not_to_be_checked(timeout=PATIENCE)


def test_a_limit_is_set(visit: Visit) -> None:
    visit.panel.get_by_text("Limits", exact=True).click()
    limit = visit.panel.locator(".avm-limit").filter(has_text="Time for a cell")
    limit.get_by_role("textbox").fill("123")
    visit.click("Set", limit)
    visit.until(lambda: visit.asked(lambda client, lease: client.limits(lease)).cell_deadline == 123)
    expect(limit.get_by_role("textbox")).to_have_value("123")
    limit.scroll_into_view_if_needed()
    limit.get_by_role("textbox").fill("many")
    expect(limit.get_by_role("button")).to_be_disabled()
    visit.picture("limits")
    limit.get_by_role("textbox").fill("123")
