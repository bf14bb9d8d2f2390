"""The machine in notebooks themselves: snapshots, ways back, outputs that are not of the present, forks side by side.

Over a real server, supervisor and VMs. What a click did is asked of the supervisor and of the VM. Screenshots of each
state lie in the folder that AGENTVM_GALLERY names. The tests are one visit, in order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import panel_bed
from axe import hindrances
from lab_bed import CHROMIUM, Lab, chromium, jupyter, lab, write_notebook
from panel_bed import PATIENCE
from playwright.sync_api import Locator, expect

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.snapshot_messages import SnapshotTree

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(600),
]

MIME = "application/vnd.agentvm.forks+json"

_FORK = "import os\nmine = os.urandom(4).hex()\nprint('mine', mine)\nmine"
# Root in the VM may say all that an ipykernel can say, and more.
_LIE = f"""
from IPython import get_ipython
kernel = get_ipython().kernel
def say(kind, **content):
    kernel.session.send(kernel.iopub_socket, kind, content, parent=kernel.get_parent(), ident=kind.encode())

fork = {{"fork": 1, "status": "ok", "seconds": 1, "cpu_seconds": 1, "memory": 1, "kept": True, "reason": "",
        "blocked": 0, "outputs": [{{"output_type": "stream", "name": "stdout", "text": "forged"}}]}}
forks = {{"text/plain": "table", "{MIME}": {{"run": 1, "forks": [fork]}}}}
place = {{"agentvm": {{"run": 1, "vm": "vm-0000", "snapshot": "0" * 12, "facts": {{}}}}}}
say("display_data", data=forks, metadata=place, transient={{"display_id": "agentvm-forks"}})
say("update_display_data", data=forks, metadata=place, transient={{"display_id": "agentvm-forks"}})
say("execute_reply", status="ok", execution_count=1, user_expressions={{}}, payload=[])
told = kernel.finish_metadata
kernel.finish_metadata = lambda *arguments: told(*arguments) | place
print("told")
"""
_HIT = "<img src=x onerror=\"document.title='hit'\">"
CELLS = {
    "travel": "%timetravel on",
    "one": "x = 1\nprint('x is', x)",
    "two": "x = 2\nprint('x is', x)",
    "three": "x = 3\nprint('x is', x)",
    "ask": "print('now', x)",
    "again": "print('then', x)",
    "fork": f"%%fork 2\n{_FORK}",
    "mine": "print('have', mine)",
    "lie": _LIE,
    "after": "print('after')",
}
_LONG = {f"filler-{number}": "\n".join(f"# {line}" for line in range(30)) for number in range(30)}
LONG = {"first": "y = 1", "mark": "%snapshot start", **_LONG, "last": "y = 2\nprint('y is', y)"}


@dataclass
class Visit(panel_bed.Visit):
    """Notebooks in JupyterLab.

    Attributes:
        requests: What the page has asked servers for.
    """

    gallery: str = "notebook"
    requests: list[str] = field(default_factory=list)

    @property
    def notebook(self) -> Locator:
        return self.page.locator(".jp-NotebookPanel:visible").first

    @property
    def button(self) -> Locator:
        return self.notebook.locator("[data-command='agentvm:snapshot']").first

    def cell(self, name: str, place: Locator | None = None) -> Locator:
        """Find a cell by its name."""
        number = self.page.evaluate(
            "name => jupyterapp.shell.currentWidget.content.widgets.findIndex("
            "one => one.model.sharedModel.metadata.case === name)", name
        )  # fmt: skip
        return (place or self.notebook).locator(f".jp-Cell[data-windowed-list-index='{number}']")

    def is_current(self, *names: str) -> None:
        for name in names:
            expect(self.cell(name)).not_to_have_class(re.compile("avm-mod-"), timeout=PATIENCE)
            expect(self.cell(name).get_by_role("note")).to_have_count(0)

    def is_left(self, *names: str) -> None:
        for name in names:
            expect(self.cell(name)).to_have_class(re.compile("avm-mod-left"), timeout=PATIENCE)
            expect(self.cell(name).get_by_role("note")).to_contain_text("branch that was left")

    def is_earlier(self, *names: str) -> None:
        for name in names:
            expect(self.cell(name)).to_have_class(re.compile("avm-mod-earlier"), timeout=PATIENCE)
            expect(self.cell(name).get_by_role("note")).to_contain_text("earlier machine")

    def run(self, name: str) -> str:
        """Run a cell; return what it printed."""
        self.lab.run_one(name)
        return self.text(name)

    def text(self, name: str) -> str:
        return "".join("".join(one.get("text", "")) for one in self.kept(name))

    def kept(self, name: str) -> list[dict[str, Any]]:
        return list(self.lab.kept(name))

    def record(self, name: str) -> dict[str, Any] | None:
        return dict(
            self.page.evaluate(
                "name => jupyterapp.shell.currentWidget.content.widgets.find("
                "one => one.model.sharedModel.metadata.case === name).model.getMetadata('agentvm') ?? {}", name
            )
        )  # fmt: skip

    def back(self, name: str, way: str) -> None:
        """Go back by a cell's mark."""
        vm = self.present.vm
        self.cell(name).locator(".avm-mark").click()
        self.page.get_by_role("menuitem", name=f"Go Back to {way} This Cell").click()
        expect(self.dialogue).to_contain_text("What is lost")
        self.answer("Go back")
        self.is_another(vm)

    def is_another(self, vm: str) -> None:
        """Return when the notebook has another VM, and the page knows."""
        self.page.wait_for_function(
            """async vm => {
              const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
              const base = kernel.serverSettings.baseUrl;
              const found = await fetch(`${base}agentvm/api/kernels/${kernel.id}`);
              const said = await found.json();
              return said.state === 'running' && said.vm !== vm;
            }""",
            arg=vm,
            timeout=PATIENCE,
        )

    @property
    def present(self) -> SnapshotTree:
        """What the supervisor says of the notebook in front."""
        tree: SnapshotTree = self.asked(lambda client, lease: client.snapshots(lease))
        return tree


@pytest.fixture(scope="module")
def visit(
    tmp_path_factory: pytest.TempPathFactory, vm_environment: Mapping[str, str], vm_paths: Paths
) -> Iterator[Visit]:
    with jupyter(tmp_path_factory.mktemp("jupyter"), vm_environment) as server, chromium() as browser:
        write_notebook(server.folder / "first.ipynb", CELLS, "agentvm")
        write_notebook(server.folder / "second.ipynb", {"one": "print('second')", "two": "2"}, "agentvm")
        write_notebook(server.folder / "plain.ipynb", {"one": "print('plain')"}, "python3")
        write_notebook(server.folder / "long.ipynb", LONG, "agentvm")
        with lab(browser, server) as opened:
            opened.open("first.ipynb", "agentvm")
            found = Visit(server, opened, vm_paths)
            opened.page.on("request", lambda request: found.requests.append(f"{request.method} {request.url}"))
            yield found


def is_ready(button: Locator) -> None:
    """Return when a button of a toolbar can be pressed."""
    expect(button).to_be_visible(timeout=PATIENCE)
    expect(button).not_to_have_attribute("aria-disabled", "true", timeout=PATIENCE)


def test_the_button_takes_a_snapshot(visit: Visit) -> None:
    is_ready(visit.button)
    visit.picture("button")
    visit.button.click()
    expect(visit.button).to_have_class(re.compile("avm-mod-done"), timeout=PATIENCE)
    (snapshot,) = visit.present.snapshots
    assert (snapshot.kind, snapshot.label) == ("manual", "")
    assert visit.present.current == snapshot.id


def test_the_shortcut_takes_a_snapshot(visit: Visit) -> None:
    visit.cell("one").locator(".jp-InputPrompt").click()
    visit.page.keyboard.press("Control+Alt+s")
    expect(visit.button).to_have_class(re.compile("avm-mod-done"), timeout=PATIENCE)
    assert len(visit.present.snapshots) == 2


def test_without_time_travel_cells_have_a_record_and_no_mark(visit: Visit) -> None:
    visit.run("one")
    record, present = visit.record("one"), visit.present
    assert record
    assert (record["vm"], record["base"], record["after"]) == (present.vm, present.current, present.current)
    expect(visit.notebook.locator(".avm-mark")).to_have_count(0)
    visit.is_current("one")


def test_marks_lead_back_to_before_a_cell_and_what_followed_is_stale(visit: Visit) -> None:
    for name in ("travel", "one", "two", "three"):
        visit.run(name)
    expect(visit.notebook.locator(".avm-mark")).to_have_count(3, timeout=PATIENCE)
    visit.is_current("one", "two", "three")
    visit.picture("marks")
    visit.back("two", "Before")
    visit.is_left("two", "three")
    visit.is_current("one")
    assert visit.run("ask") == "now 1\n"
    visit.is_current("ask")
    visit.is_left("two", "three")
    assert visit.text("three") == "x is 3\n"
    visit.picture("stale")
    for theme in ("Dark", "Light"):
        visit.show_in(theme)
        assert hindrances(visit.page, ".avm-cellbar", ".avm-mark", ".avm-mod-left .jp-Cell-outputArea") == []


def test_a_branch_that_one_goes_back_to_is_current_again(visit: Visit) -> None:
    vm = visit.present.vm
    visit.cell("three").get_by_role("button", name="Go there").click()
    expect(visit.dialogue).to_contain_text("What is lost")
    visit.picture("dialogue")
    visit.answer("Go back")
    visit.is_another(vm)
    visit.is_current("one", "two", "three")
    visit.is_left("ask")
    assert visit.run("again") == "then 3\n"


def test_marks_are_used_by_the_keyboard_and_nothing_is_done_without_consent(visit: Visit) -> None:
    vm = visit.present.vm
    visit.cell("two").locator(".jp-InputPrompt").click()
    expect(visit.notebook.locator(".jp-Notebook")).to_have_class(re.compile("jp-mod-commandMode"))
    visit.cell("two").locator(".avm-mark").focus()
    visit.page.keyboard.press("Enter")
    item = visit.page.get_by_role("menuitem", name="Go Back to After This Cell")
    expect(item).to_be_visible()
    visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("Enter")
    expect(visit.dialogue).to_contain_text("What is lost")
    expect(visit.dialogue.locator(":focus")).to_have_count(1)
    visit.page.keyboard.press("Escape")
    expect(visit.dialogue).to_have_count(0)
    assert visit.present.vm == vm
    visit.back("two", "After")
    visit.is_left("three", "again", "ask")
    assert visit.run("ask") == "now 2\n"
    visit.is_current("one", "two", "ask")


def test_all_that_is_known_after_the_page_was_loaded_again(visit: Visit) -> None:
    model = "jupyterapp.shell.currentWidget.context.model"
    visit.page.wait_for_function(f"() => {model}.getMetadata('agentvm')?.python_packages")
    visit.lab.save()
    notebook = json.loads((visit.server.folder / "first.ipynb").read_text())
    kept = notebook["cells"]
    cell = next(cell for cell in kept if cell["metadata"]["case"] == "two")
    record = cell["metadata"]["agentvm"]
    assert record == visit.record("two")
    assert record["code"] == hashlib.sha256("".join(cell["source"]).encode()).hexdigest()
    assert record["facts"]["cpu_seconds"] > 0
    assert len(json.dumps(record)) < 2000
    machine = notebook["metadata"]["agentvm"]
    lease = visit.asked(lambda client, lease: next(one for one in client.status().leases if one.lease == lease))
    assert (machine["image"], machine["hypervisor"]) == (lease.image, lease.hypervisor)
    assert (machine["memory_mib"], machine["accelerator"]) == (lease.memory_mib, "tcg")
    visit.page.goto(f"{visit.server.url}/lab/tree/first.ipynb?token={visit.server.token}")
    visit.lab.prepare()
    visit.lab.open("first.ipynb")
    visit.is_left("three", "again")
    visit.is_current("one", "two", "ask")
    expect(visit.cell("two").locator(".avm-mark")).to_have_count(1)
    shown = visit.page.evaluate("() => jupyterapp.shell.currentWidget.context.model.toJSON().cells")
    assert [cell["metadata"].get("agentvm") for cell in shown] == [cell["metadata"].get("agentvm") for cell in kept]


def test_two_views_of_a_notebook_show_the_same(visit: Visit) -> None:
    visit.page.evaluate("() => jupyterapp.commands.execute('notebook:create-new-view')"
                        ".catch(() => jupyterapp.commands.execute('docmanager:clone'))")  # fmt: skip
    views = visit.page.locator(".jp-NotebookPanel")
    expect(views).to_have_count(2)
    expect(views.nth(0).locator(".jp-Cell.avm-mod-left")).to_have_count(2, timeout=PATIENCE)
    expect(views.nth(1).locator(".jp-Cell.avm-mod-left")).to_have_count(2, timeout=PATIENCE)
    visit.picture("views")
    visit.page.evaluate("() => jupyterapp.shell.currentWidget.dispose()")
    expect(views).to_have_count(1)


def test_forks_are_seen_side_by_side_and_one_is_adopted(visit: Visit) -> None:
    visit.lab.open("first.ipynb")
    visit.run("fork")
    visit.is_current("fork")
    vm = visit.present.vm
    visit.cell("fork").get_by_role("button", name="Show side by side").click()
    columns = visit.page.locator(".avm-column")
    expect(columns).to_have_count(2)
    shown = [re.findall(r"mine ([0-9a-f]{8})", columns.nth(place).inner_text()) for place in (0, 1)]
    assert len(shown[0]) == len(shown[1]) == 1
    assert shown[0] != shown[1]
    visit.picture("forks")
    for theme in ("Dark", "Light"):
        visit.show_in(theme)
        assert hindrances(visit.page, ".avm-column header") == []
    columns.nth(1).get_by_role("button", name="Adopt").click()
    visit.answer("Adopt")
    expect(columns.nth(1).get_by_role("button", name="Adopted")).to_be_disabled(timeout=PATIENCE)
    expect(columns.nth(0).get_by_role("button", name="Adopt")).to_be_disabled()
    visit.lab.open("first.ipynb")
    assert visit.present.vm != vm
    assert visit.run("mine") == f"have {shown[1][0]}\n"
    visit.is_current("fork", "mine", "two")
    visit.picture("adopted")


def test_forks_that_are_gone_are_refused(visit: Visit) -> None:
    vm = visit.present.vm
    # What was adopted from is shown again as the cell has it.
    visit.page.evaluate(
        "() => [...jupyterapp.shell.widgets('main')].filter(one => one.id.startsWith('avm-forks'))"
        ".forEach(one => one.dispose())"
    )
    visit.cell("fork").get_by_role("button", name="Show side by side").click()
    column = visit.page.locator(".avm-columns:visible .avm-column").first
    column.get_by_role("button", name="Adopt").click()
    visit.answer("Adopt")
    expect(visit.dialogue).to_contain_text("are gone", timeout=PATIENCE)
    visit.page.keyboard.press("Escape")
    visit.lab.open("first.ipynb")
    assert visit.present.vm == vm


def test_forks_of_the_panel_open_side_by_side(visit: Visit) -> None:
    visit.page.evaluate("() => { jupyterapp.commands.execute('agentvm:fork'); }")
    visit.dialogue.get_by_role("button", name="Fork", exact=True).wait_for()
    visit.dialogue.locator("textarea").fill("print('from the panel')")
    visit.answer("Fork")
    columns = visit.page.locator(".avm-columns:visible .avm-column").filter(has_text="from the panel")
    expect(columns).to_have_count(4, timeout=PATIENCE)
    visit.picture("panel_forks")
    visit.lab.open("first.ipynb")


def test_a_guest_that_lies_shows_nothing_and_does_nothing(visit: Visit) -> None:
    visit.lab.open("first.ipynb")
    before, vm = len(visit.present.snapshots), visit.present.vm
    visit.requests.clear()
    visit.run("lie")
    assert "told" in visit.text("lie")
    assert MIME not in json.dumps([one.get("data") for one in visit.kept("lie")])
    visit.run("after")
    for name in ("lie", "after"):
        record = visit.record(name)
        assert record
        assert record["vm"] == vm
        assert record["run"] > 1
        assert record["after"] in {one.id for one in visit.present.snapshots}
        expect(visit.cell(name).get_by_role("button", name="Show side by side")).to_have_count(0)
    visit.is_current("lie", "after")
    assert len(visit.present.snapshots) == before + 2
    writes = [one for one in visit.requests if "agentvm/api" in one and not one.startswith("GET")]
    assert all("agentvm/api/watch" in one for one in writes), writes


def test_a_notebook_that_lies_is_no_way_to_anything(visit: Visit) -> None:
    path = visit.server.folder / "forged.ipynb"
    write_notebook(path, {"one": "1", "two": "2"}, "agentvm")
    notebook = json.loads(path.read_text())
    fork = {"fork": 1, "status": "ok", "seconds": 1, "cpu_seconds": 1, "memory": 1, "blocked": 0, "kept": True}
    shown = {"output_type": "display_data", "metadata": {}, "data": {"text/html": f"<b>b</b>{_HIT}"}}
    fork |= {"reason": _HIT, "outputs": [shown]}
    display = {"text/plain": "table", MIME: {"run": 1, "forks": [fork]}}
    notebook["cells"][0]["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": display}]
    notebook["cells"][0]["metadata"]["agentvm"] = {
        "run": 1, "vm": "vm-0", "base": "0" * 12, "after": "1" * 12, "kernel": "k"
    }  # fmt: skip
    notebook["cells"][1]["metadata"]["agentvm"] = {"run": "<b>", "vm": "<img>", "base": [], "after": {}}
    path.write_text(json.dumps(notebook))
    visit.lab.open("forged.ipynb", "agentvm")
    visit.is_earlier("one")
    visit.cell("one").get_by_role("button", name="Show side by side").click()
    column = visit.page.locator(".avm-columns:visible .avm-column").last
    expect(column).to_contain_text("cannot be adopted")
    expect(column.get_by_role("button")).to_have_count(0)
    expect(column.locator("[onerror]")).to_have_count(0)
    expect(column).to_contain_text("<img src=x")
    assert visit.page.title() != "hit"
    visit.lab.open("forged.ipynb")
    visit.lab.close()


def test_other_notebooks_are_of_machines_of_their_own(visit: Visit) -> None:
    visit.lab.open("second.ipynb", "agentvm")
    visit.run("one")
    visit.is_current("one")
    expect(visit.notebook.locator(".avm-mark")).to_have_count(0)
    visit.picture("second")
    visit.lab.close()
    visit.lab.open("plain.ipynb", "python3")
    visit.run("one")
    assert visit.record("one") == {}
    expect(visit.button).to_be_hidden()
    visit.lab.close()


def test_after_a_restart_of_the_kernel_all_is_of_an_earlier_machine(visit: Visit) -> None:
    visit.lab.open("first.ipynb")
    vm = visit.present.vm
    visit.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    visit.is_another(vm)
    visit.is_earlier("one", "two", "three", "ask")
    visit.run("one")
    visit.is_current("one")
    visit.is_earlier("two")
    visit.picture("restarted")


def test_notebook_7_has_the_button(visit: Visit) -> None:
    before = len(visit.present.snapshots)
    page = visit.page.context.new_page()
    try:
        page.goto(f"{visit.server.url}/notebooks/first.ipynb?token={visit.server.token}")
        button = page.locator("[data-command='agentvm:snapshot']").first
        is_ready(button)
        button.click()
        expect(button).to_have_class(re.compile("avm-mod-done"), timeout=PATIENCE)
        there = Visit(visit.server, Lab(page), visit.paths)
        there.lab.prepare()
        there.picture("notebook7")
    finally:
        page.close()
    assert len(visit.present.snapshots) == before + 1


def test_cells_out_of_sight_are_told_when_they_come_into_sight(visit: Visit) -> None:
    visit.lab.open("long.ipynb", "agentvm")
    for name in ("first", "mark", "last"):
        visit.run(name)
    visit.lab.save()
    vm = visit.present.vm
    visit.page.evaluate(
        "raw => jupyterapp.serviceManager.settings.save('@jupyterlab/notebook-extension:tracker', raw)",
        json.dumps({"windowingMode": "full"}),
    )
    # Without a notebook in its address the page opens none before it knows its settings.
    visit.page.goto(f"{visit.server.url}/lab?token={visit.server.token}&reset")
    visit.lab.prepare()
    visit.lab.open("long.ipynb")
    expect(visit.cell("first")).to_be_visible()
    # A slow page may have drawn all before it knew of that setting.
    visit.page.evaluate(
        """() => {
            const { content } = jupyterapp.shell.currentWidget;
            content.notebookConfig = { ...content.notebookConfig, windowingMode: 'full' };
            content.activeCellIndex = 0;
            content.scrollToItem(0);
        }"""
    )
    expect(visit.cell("last")).to_have_count(0, timeout=PATIENCE)
    visit.page.wait_for_function("() => jupyterapp.commands.isEnabled('agentvm:rollback')", timeout=PATIENCE)
    visit.page.evaluate("() => { jupyterapp.commands.execute('agentvm:rollback'); }")
    visit.answer("Go back")
    visit.is_another(vm)
    visit.page.evaluate("() => { jupyterapp.shell.currentWidget.content.scrollToItem(32); }")
    visit.is_left("last")
    expect(visit.cell("last").locator(".jp-Cell-outputWrapper ~ .avm-cellbar")).to_have_count(0)
    visit.picture("windowed")
    visit.page.evaluate("() => { jupyterapp.shell.currentWidget.content.scrollToItem(0); }")
    visit.is_current("first", "mark")
