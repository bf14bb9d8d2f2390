"""The panel and the status bar in JupyterLab, over a real server, supervisor and VMs: clicked through as a user would.

What a click did is asked of the supervisor or of a cell, not only of the page. Screenshots of each state lie in the
folder that AGENTVM_GALLERY names, for a human to look at. The tests are one visit, in order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from audited import audited
from axe import hindrances
from internet import GOOD, Internet, internet
from lab_bed import CHROMIUM, chromium, jupyter, lab, write_notebook
from panel_bed import PATIENCE, UNASKED, Visit
from playwright.sync_api import expect
from vms import environment_of

from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(600),
]

SITE = "good.example.org"
REMARK = "before <b>anything</b> was tried"
ASKING = {
    "Take a Snapshot with a Label …": "Take a snapshot",
    "Go Back to the Newest Snapshot …": "Go back to “base”?",
    "Run the Cell in Forks of the Machine …": "Run code in forks of this machine",
    "Remove Old Snapshots …": "Remove old snapshots",
    "Start a Fresh Machine …": "Start a fresh machine?",
    "Stop the Machine …": "Stop the machine?",
}
"""Items of the menu, and what their dialogues are called."""
AT_ONCE = ("Show the Virtual Machine", "Take a Snapshot", "Switch Time Travel")
NOT_HERE = ("Go Back to Before This Cell …", "Go Back to After This Cell …", "Show Forks Side by Side")
"""What the palette has besides; what is about a cell is not shown where the one in front has nothing of it."""
HOSTS = 30
CONFIG = """
[anomalies]
critical = "pause"

[anomalies.rules.port-scan]
window = 300
"""
"""What tries so many hosts that are refused is stopped, however slow this machine is."""

KEPT = re.compile(r"What was done: kept as the snapshot [0-9a-f]{12} \(anomaly-port-scan-\d{6}\), and stopped")
_CHANGE = """
import sys
from pathlib import Path
from subprocess import Popen, run
Path("note.txt").write_text("n" * 5000)
packages = next(one for one in sys.path if one.endswith("-packages"))
run(["sudo", "mkdir", f"{packages}/brought-1.25.dist-info"], check=True)
sleeper = Popen(["sleep", "12345"])
"""
_HOSTILE = "<img src=x onerror=\"document.title='hit'\">"
_MANY = f"""
import socket
for number in range({HOSTS}):
    try:
        socket.create_connection((f"host-{{number}}.example", 443), timeout=30).recv(1)
    except OSError:
        pass
"""
_BLOCKED = """
from IPython.display import HTML, display
display({"application/pdf": "JVBERi0="}, raw=True)
HTML("<b>seen</b><img src='https://evil.example.net/pixel.png'>")
"""
CELLS = {
    "one": "x = 1",
    "two": f"x = 2  # {_HOSTILE}\u202e",
    "file": _CHANGE,
    "say": "print('x is', x)",
    "ask": f"from urllib.request import urlopen\nprint(urlopen('http://{SITE}/hello', timeout=60).status)",
    "deny": f"%net deny {SITE}",
    "mark": "%snapshot marked",
    "hand": "%net allow by-hand.example",
    "limit": "%limits cpu=0.5",
    "many": _MANY,
    "blocked": _BLOCKED,
    "random": "print('mine', mine)",
}


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    with internet() as made:
        yield made


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory, world: Internet) -> Iterator[Visit]:
    folder = tmp_path_factory.mktemp("jupyter")
    with world.supervised(CONFIG) as paths, jupyter(folder, environment_of(paths)) as server, chromium() as browser:
        write_notebook(server.folder / "first.ipynb", CELLS, "agentvm")
        with lab(browser, server, UNASKED) as opened:
            yield Visit(server, opened, paths)


@pytest.fixture(autouse=True)
def no_dialogue_stays(visit: Visit) -> Iterator[None]:
    """Close what a test that failed has left open, so that the next one can tell its own tale."""
    yield
    visit.close_dialogue()


def choose(visit: Visit, item: str) -> None:
    """Choose an item of the menu of the machine."""
    visit.page.get_by_role("menuitem", name="Kernel", exact=True).click()
    for label in ("Virtual Machine", item):
        visit.page.locator(".lm-Menu-itemLabel").get_by_text(label, exact=True).click()


def test_the_status_bar_leads_to_the_panel_which_shows_the_machine(visit: Visit) -> None:
    visit.page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
    visit.lab.open("first.ipynb", "agentvm")
    visit.lab.run_one("one")
    status = visit.status
    expect(status).to_contain_text(re.compile(r"VM · \d+ % · [\d.]+ MiB · filtered"), timeout=PATIENCE)
    for opens in (status.click, lambda: visit.page.keyboard.press("Control+Shift+Alt+V")):
        visit.page.evaluate("() => jupyterapp.shell.collapseRight()")
        expect(visit.panel).not_to_be_visible()
        opens()
        expect(visit.panel).to_be_visible()
    expect(visit.panel.locator(".avm-id")).to_have_text(visit.vm.id)
    with SyncSupervisorClient(visit.paths, start=False) as client:
        is_emulated = client.status().accelerator == "tcg"
    expect(visit.panel.get_by_role("note")).to_have_count(int(is_emulated))
    expect(visit.panel.locator(".avm-plot path[d*='L']")).to_have_count(4, timeout=PATIENCE)
    facts = visit.panel.locator(".avm-header .avm-facts")
    expect(facts).to_contain_text(re.compile(r"Profile\s*test.*512 MiB memory.*minimal [0-9a-f]{12}.*Up for\s*\d+ "))
    visit.picture("running")


def test_a_snapshot_with_a_label_appears_in_the_tree(visit: Visit) -> None:
    visit.click("Snapshot …")
    label = visit.dialogue.get_by_role("textbox", name="Label")
    label.fill("no label")
    expect(label).to_have_attribute("aria-invalid", "true")
    expect(label).to_have_accessible_description(re.compile("Letters from a to z, digits"))
    visit.picture("label")
    label.fill("base")
    expect(label).to_have_attribute("aria-invalid", "false")
    visit.dialogue.get_by_role("textbox", name="Remark").fill(REMARK)
    visit.answer("Take snapshot")
    expect(visit.row("base")).to_be_visible(timeout=PATIENCE)
    visit.until(lambda: "base" in visit.snapshots)
    visit.row("base").click()
    expect(visit.panel.get_by_role("button", name="Remove …", exact=True)).to_be_disabled()
    expect(visit.panel).to_contain_text("The machine goes on from it")
    base = visit.snapshots["base"]
    assert base.text == REMARK
    details = visit.panel.get_by_role("group", name="base")
    for said in (base.id, "(manual)", REMARK, "of memory written", f"{base.pause_ms:.0f} ms", "x = 1"):
        expect(details).to_contain_text(said)


def test_commands_are_in_the_palette(visit: Visit) -> None:
    visit.page.keyboard.press("Control+Shift+C")
    palette = visit.page.get_by_role("searchbox").or_(visit.page.locator(".lm-CommandPalette-input"))
    palette.last.fill("AgentVM")
    shown = visit.page.locator(".lm-CommandPalette-itemLabel")
    for label in (*ASKING, *AT_ONCE):
        expect(shown.get_by_text(label, exact=True).first).to_be_visible()
    for label in NOT_HERE:
        expect(shown.get_by_text(label, exact=True).first).to_be_hidden()
        expect(shown.get_by_text(label, exact=True).first).to_be_attached()
    palette.last.fill("Take a Snapshot with a Label")
    visit.page.keyboard.press("Enter")
    expect(visit.dialogue.get_by_role("textbox", name="Label")).to_be_focused()
    visit.answer("Cancel")


def test_the_menu_does_what_the_panel_does(visit: Visit) -> None:
    before, known = visit.vm.id, set(visit.snapshots)
    for item, title in ASKING.items():
        choose(visit, item)
        expect(visit.dialogue.locator(".jp-Dialog-header")).to_contain_text(title, timeout=PATIENCE)
        visit.answer("Cancel")
    assert (visit.vm.id, set(visit.snapshots)) == (before, known)
    travel = visit.panel.get_by_role("checkbox")
    for is_on in (True, False):
        choose(visit, "Switch Time Travel")
        visit.until(lambda wanted=is_on: visit.vm.travelling is wanted)
        expect(travel).to_be_checked(checked=is_on, timeout=PATIENCE)


def test_going_back_says_what_is_lost_and_does_it(visit: Visit) -> None:
    visit.lab.run_one("two")
    visit.take()
    row = visit.row("onerror")
    expect(row).to_contain_text("⟨U+202E⟩", timeout=PATIENCE)
    expect(row).to_contain_text(re.compile(r"\d+ \w+ ago · [\d.]+ \w+ · cell \[\d+\]"))
    before = visit.vm.id
    visit.row("base").click()
    visit.picture("selected")
    visit.click("Go back …")
    dialogue = visit.dialogue
    expect(dialogue).to_contain_text("What is lost", timeout=PATIENCE)
    expect(dialogue).to_contain_text("nothing was sent to other machines")
    visit.picture("plan")
    visit.answer("Cancel")
    assert visit.vm.id == before
    assert "x is 2" in visit.said()
    visit.go_back(visit.row("base"))
    assert "x is 1" in visit.said()
    expect(row).to_have_class(re.compile("avm-left"))
    assert visit.page.title() != "hit"
    visit.picture("branches")


def test_the_keyboard_keeps_its_place_while_something_is_done(visit: Visit) -> None:
    visit.row("base").click()
    button = visit.panel.get_by_role("button", name="Go back …", exact=True)
    button.focus()
    before = visit.vm.id
    visit.page.keyboard.press("Enter")
    for name in ("Cancel", "Go back"):
        expect(visit.dialogue.locator(":focus")).to_have_text(name, timeout=PATIENCE)
        visit.page.keyboard.press("Tab" if name == "Cancel" else "Enter")
    expect(visit.panel.locator(".avm-id")).not_to_have_text(before, timeout=PATIENCE)
    visit.until(lambda: visit.panel.locator(".avm-id").inner_text() == visit.vm.id)
    expect(button).to_be_enabled(timeout=PATIENCE)
    expect(button).to_be_focused()


def test_nobody_is_kept_out(visit: Visit) -> None:
    for theme in ("Dark", "Light"):
        visit.show_in(theme)
        visit.row("base").click()
        assert hindrances(visit.page, ".avm-panel", ".avm-status-button") == []
        visit.click("Go back …")
        expect(visit.dialogue).to_contain_text("What is lost", timeout=PATIENCE)
        assert hindrances(visit.page, ".avm-dialog") == []
        visit.answer("Cancel")


def test_the_tree_is_walked_by_the_keyboard(visit: Visit) -> None:
    visit.tree.locator("[tabindex='0']").focus()
    visit.page.keyboard.press("Home")
    expect(visit.tree.locator(":focus")).to_contain_text("The machine as it is now")
    visit.page.keyboard.press("ArrowLeft")
    expect(visit.tree.locator(":focus")).to_contain_text("base")
    expect(visit.tree.locator("[tabindex='0']")).to_have_count(1)
    visit.page.keyboard.press("Enter")
    expect(visit.dialogue).to_contain_text("Go back to “base”?", timeout=PATIENCE)
    expect(visit.page.locator(".jp-Dialog :focus")).to_have_text("Cancel")
    visit.page.keyboard.press("Escape")
    expect(visit.dialogue).to_have_count(0)
    expect(visit.tree.locator(":focus")).to_contain_text("base")


def test_a_row_has_a_menu_that_keys_and_pointers_open(visit: Visit) -> None:
    menu = visit.page.get_by_role("menu")
    row = visit.row("base")
    visit.tree.locator(":focus").press("ContextMenu")
    expect(menu.get_by_role("menuitem")).to_have_text(
        ["Go Back …", "Compare with the Present …", "Label …", "Remove …"]
    )
    expect(menu.get_by_role("menuitem", name="Remove …")).to_have_attribute("aria-disabled", "true")
    picture = Path(os.environ["AGENTVM_GALLERY"]) / "panel_menu.png"
    visit.page.screenshot(path=picture, animations="disabled")  # the menu ends with the size
    visit.page.keyboard.press("Escape")
    expect(menu).to_have_count(0)
    expect(row).to_be_focused()
    row.press("Shift+F10")
    menu.get_by_role("menuitem", name="Label …").press("Enter")
    visit.dialogue.get_by_role("textbox", name="Label").fill("first")
    visit.answer("Set label")
    visit.until(lambda: "first" in visit.snapshots)
    expect(visit.tree.locator(":focus")).to_contain_text("first", timeout=PATIENCE)
    visit.row("first").click(button="right")
    menu.get_by_role("menuitem", name="Go Back …").click()
    expect(visit.dialogue).to_contain_text("Go back to “first”?", timeout=PATIENCE)
    visit.answer("Cancel")
    visit.row("first").dblclick()
    expect(visit.dialogue).to_contain_text("Go back to “first”?", timeout=PATIENCE)
    visit.answer("Cancel")
    visit.row("The machine as it is now").click(button="right")
    menu.get_by_role("menuitem", name="Take a Snapshot with a Label …").click()
    visit.answer("Cancel")


def test_two_states_are_compared(visit: Visit) -> None:
    visit.lab.run_one("file")
    visit.row("first").click()
    visit.click("Compare")
    dialogue = visit.dialogue
    expect(dialogue).to_be_visible(timeout=3 * PATIENCE)
    expect(dialogue).to_contain_text("note.txt")
    expect(dialogue).to_contain_text("+brought 1.25")
    expect(dialogue).to_contain_text("+sleep 12345")
    expect(dialogue).to_contain_text("+sleeper subprocess.Popen")
    expect(dialogue).to_contain_text("This is what the machine says of itself")
    visit.picture("comparison")
    visit.answer("Close")
    # For that, a snapshot of the present was taken: now two snapshots can be compared, which tells the same.
    (taken,) = (one for one in visit.snapshots.values() if one.text == "Compared with")
    visit.panel.get_by_role("combobox", name="Compare with").select_option(value=taken.id)
    visit.click("Compare")
    expect(visit.dialogue).to_contain_text("note.txt", timeout=3 * PATIENCE)
    visit.answer("Close")
    assert len([one for one in visit.snapshots.values() if one.text == "Compared with"]) == 1


def test_what_a_cell_does_is_told_to_the_page(visit: Visit) -> None:
    with visit.told():
        visit.lab.run_one("mark")
        expect(visit.row("marked")).to_be_visible(timeout=PATIENCE)
    visit.until(lambda: "marked" in visit.snapshots)


def test_a_snapshot_is_labelled_removed_and_pruned(visit: Visit) -> None:
    visit.row("first").click()
    visit.click("Label …")
    visit.dialogue.get_by_role("textbox", name="Label").fill("start")
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
    expect(visit.tree.locator(":focus")).to_contain_text("The machine as it is now")
    visit.take()
    visit.go_back(visit.row("start"))
    visit.click("Prune …")
    visit.dialogue.get_by_role("spinbutton").fill("0")
    visit.picture("prune")
    visit.answer("Remove")
    expect(visit.tree.get_by_role("treeitem")).to_have_count(4, timeout=PATIENCE)
    assert set(visit.snapshots) == {"start", "marked"}


def test_time_travel_is_switched(visit: Visit) -> None:
    travel = visit.panel.get_by_role("checkbox")
    travel.click()
    expect(travel).to_be_checked(timeout=PATIENCE)
    visit.lab.run_one("one")
    expect(visit.row("x = 1").first).to_be_visible(timeout=PATIENCE)
    assert len(visit.snapshots) > 1
    travel.click()
    expect(travel).not_to_be_checked(timeout=PATIENCE)


def test_a_refused_host_is_allowed_and_denied_again(visit: Visit, world: Internet) -> None:
    rows = visit.panel.locator(".avm-connection").filter(has_text=f"{SITE}:80")
    with visit.told():
        visit.lab.run_one("ask")
        expect(rows.locator(".avm-verdict")).to_have_text(["refused"], timeout=PATIENCE)
    visit.page.evaluate("() => jupyterapp.shell.collapseRight()")
    visit.follow_notice("The virtual machine under first.ipynb was refused a connection.")
    expect(visit.panel).to_be_visible()
    assert world.requests(GOOD) == []
    rows.scroll_into_view_if_needed()
    visit.picture("refused")
    visit.click(f"Allow {SITE}:80", rows.first)
    visit.until(lambda: f"{SITE}:80" in visit.allowed)
    assert "200" in visit.said("ask")
    expect(rows.locator(".avm-verdict")).to_have_text(["allowed", "refused"], timeout=PATIENCE)
    assert [one.path for one in world.requests(GOOD)] == ["/hello"]
    visit.click(f"Deny {SITE}:80", rows.first)
    visit.until(lambda: SITE not in visit.allowed)
    visit.lab.run_one("ask")
    expect(rows.locator(".avm-verdict")).to_have_text(["refused", "allowed", "refused"], timeout=PATIENCE)
    assert len(world.requests(GOOD)) == 1
    visit.click(f"Allow {SITE}:80", rows.first)
    visit.until(lambda: SITE in visit.allowed)
    assert "200" in visit.said("ask")


def test_a_denial_of_a_whole_host_is_told_with_what_takes_it_back(visit: Visit, world: Internet) -> None:
    known = len(world.requests(GOOD))
    visit.lab.run_one("deny")
    visit.lab.run_one("ask")
    row = visit.panel.locator(".avm-connection").filter(has_text=f"{SITE}:80").first
    expect(row).to_contain_text(f"%net allow {SITE} takes that back", timeout=PATIENCE)
    expect(row.get_by_role("button")).to_have_count(0)
    assert len(world.requests(GOOD)) == known


def test_a_host_is_allowed_by_its_name(visit: Visit) -> None:
    host = visit.panel.get_by_label("Host to allow")
    host.fill("*.other.example")
    host.press("Enter")
    visit.until(lambda: "*.other.example" in visit.allowed)
    expect(visit.panel.get_by_text(re.compile(r"\*\.other\.example; \d+ hosts that are allowed"))).to_be_visible(
        timeout=PATIENCE
    )
    expect(host).to_have_value("")
    with visit.told():
        visit.lab.run_one("hand")
        expect(visit.panel.get_by_text(re.compile(r"by-hand\.example"))).to_be_visible(timeout=PATIENCE)


def test_an_anomaly_is_told_with_what_was_done_and_the_machine_runs_on_when_it_may(visit: Visit) -> None:
    state = visit.panel.locator(".avm-badge")
    rows = visit.panel.get_by_role("list", name="Anomalies, newest first").get_by_role("listitem")
    expect(rows).to_have_count(0)
    with visit.told():
        visit.lab.run_one("many", wait=False)
        expect(state).to_have_text("stopped", timeout=PATIENCE)
        expect(rows).to_contain_text(KEPT, timeout=PATIENCE)
        expect(visit.status).to_contain_text(re.compile(r"VM stopped.*1 anomaly$"))
    (one,) = audited(visit.paths.state, "anomaly_detected")
    assert (one["kind"], one["vm"], visit.vm.held) == ("port-scan", visit.vm.id, "paused")
    for said in ("port-scan", "most likely an attack", "tried many hosts or ports that are refused", "threshold 25"):
        expect(rows).to_contain_text(said)
    (kept,) = [name for name in visit.snapshots if name.startswith("anomaly-port-scan-")]
    expect(visit.row(kept)).to_be_visible(timeout=PATIENCE)
    visit.page.evaluate("() => jupyterapp.shell.collapseRight()")
    visit.follow_notice("Something unusual was seen in the virtual machine under first.ipynb.")
    visit.panel.evaluate("panel => panel.scrollTo(0, 0)")
    visit.picture("anomaly")
    for theme in ("Dark", "Light"):
        visit.show_in(theme)
        assert hindrances(visit.page, ".avm-panel", ".avm-status-button") == []
    visit.click("Let it run on")
    expect(state).to_have_text("running", timeout=PATIENCE)
    expect(rows).to_contain_text("and stopped; runs on", timeout=PATIENCE)
    assert visit.vm.held == ""


def test_each_of_many_connections_has_a_row(visit: Visit) -> None:
    rows = visit.panel.locator(".avm-connection").filter(has_text=re.compile(r"host-\d+\.example:443"))
    with visit.told():
        expect(rows).to_have_count(HOSTS, timeout=PATIENCE)
    rows.nth(5).scroll_into_view_if_needed()
    visit.picture("connections")


def test_blocked_outputs_are_told_with_their_reason(visit: Visit) -> None:
    rows = visit.panel.get_by_role("list", name="Blocked outputs, newest first").get_by_role("listitem")
    with visit.told():
        visit.lab.run_one("blocked")
        expect(rows).to_have_count(2, timeout=PATIENCE)
    visit.follow_notice("Something that first.ipynb was to show was blocked.")
    expect(rows.filter(has_text="something that would be fetched from another host")).to_have_count(1)
    expect(rows.filter(has_text="output of a type that is not known to be safe")).to_have_count(1)
    refused = visit.asked(lambda client, lease: client.network(lease)).refused
    counts = visit.status.locator(".avm-count")
    expect(counts).to_have_text([f"{refused + 2} blocked", "1 anomaly"], timeout=PATIENCE)
    rows.first.scroll_into_view_if_needed()
    visit.picture("blocked")


def test_a_limit_is_set(visit: Visit) -> None:
    visit.panel.get_by_text("Limits", exact=True).click()
    cores = visit.panel.locator(".avm-limit").filter(has_text="CPU")
    with visit.told():
        visit.lab.run_one("limit")
        expect(cores.get_by_role("textbox")).to_have_value("0.5", timeout=PATIENCE)
    cores.get_by_role("textbox").fill("")
    cores.get_by_role("textbox").press("Enter")
    visit.until(lambda: visit.asked(lambda client, lease: client.limits(lease)).cpu is None)
    expect(cores.get_by_role("button")).to_be_disabled(timeout=PATIENCE)
    limit = visit.panel.locator(".avm-limit").filter(has_text="Time for a cell")
    limit.get_by_role("textbox").fill("123")
    visit.click("Set", limit)
    visit.until(lambda: visit.asked(lambda client, lease: client.limits(lease)).cell_deadline == 123)
    expect(limit.get_by_role("textbox")).to_have_value("123")
    limit.scroll_into_view_if_needed()
    limit.get_by_role("textbox").fill("many")
    expect(limit.get_by_role("button")).to_be_disabled()
    visit.picture("limits")
    expect(limit.get_by_role("textbox")).to_have_value("many")
    for theme in ("Dark", "Light"):
        visit.show_in(theme)
        assert hindrances(visit.page, ".avm-panel", ".avm-status-button") == []
    limit.get_by_role("textbox").fill("123")


def test_forks_leave_the_machine_as_it_is_until_one_is_adopted(visit: Visit) -> None:
    before, known = visit.vm.id, visit.said()
    visit.click("Fork …")
    dialogue = visit.dialogue
    dialogue.get_by_role("spinbutton").first.fill("2")
    code = dialogue.get_by_role("textbox")
    code.fill("import os")
    code.press("End")
    code.press("Enter")
    code.press_sequentially("x = mine = os.urandom(4).hex(); mine")
    expect(code).to_have_value("import os\nx = mine = os.urandom(4).hex(); mine")
    visit.picture("fork")
    visit.answer("Fork")
    columns = visit.page.locator(".avm-columns:visible .avm-column")
    expect(columns).to_have_count(2, timeout=PATIENCE)
    one, two = (re.findall(r"'([0-9a-f]{8})'", columns.nth(place).inner_text()) for place in (0, 1))
    assert one
    assert two
    assert one != two
    visit.picture("forks")
    visit.lab.open("first.ipynb")
    assert visit.vm.id == before
    assert visit.said() == known
    columns.nth(1).get_by_role("button", name="Adopt").click()
    visit.answer("Adopt")
    expect(columns.nth(1).get_by_role("button", name="Adopted")).to_be_disabled(timeout=PATIENCE)
    visit.lab.open("first.ipynb")
    assert visit.vm.id != before
    expect(visit.panel.locator(".avm-id")).to_have_text(visit.vm.id, timeout=PATIENCE)
    assert f"mine {two[0]}" in visit.said("random")


def test_the_settings_turn_the_item_in_the_status_bar_off(visit: Visit) -> None:
    expect(visit.status).to_be_visible()
    for raw, count in (('{"statusBar": false}', 0), ("{}", 1)):
        visit.page.evaluate("raw => jupyterapp.serviceManager.settings.save('agentvm-kernel:machine', raw)", raw)
        visit.page.goto(f"{visit.server.url}/lab/tree/first.ipynb?token={visit.server.token}")
        visit.lab.prepare()
        visit.page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
        visit.lab.open("first.ipynb")
        visit.runs()
        expect(visit.page.locator(".avm-status-button:visible")).to_have_count(count)
