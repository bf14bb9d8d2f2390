"""The panel and the status bar in JupyterLab, over a real server, supervisor and VMs: clicked through as a user would.

What a click did is asked of the supervisor or of a cell, not only of the page. Screenshots of each state lie in the
folder that AGENTVM_GALLERY names, for a human to look at. The tests are one visit, in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from internet import GOOD, Internet, internet
from lab_bed import CHROMIUM, chromium, jupyter, lab, write_notebook
from panel_bed import PATIENCE, Visit
from playwright.sync_api import expect
from vms import environment_of

from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(600),
]

SITE = "good.example.org"
HOSTS = 30

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
    "file": "from pathlib import Path\nfrom subprocess import Popen\nPath('note.txt').write_text('n' * 5000)\n"
    "sleeper = Popen(['sleep', '12345'])",
    "say": "print('x is', x)",
    "ask": f"from urllib.request import urlopen\nprint(urlopen('http://{SITE}/hello', timeout=60).status)",
    "deny": f"%net deny {SITE}",
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
    with world.supervised() as paths, jupyter(folder, environment_of(paths)) as server, chromium() as browser:
        write_notebook(server.folder / "first.ipynb", CELLS, "agentvm")
        with lab(browser, server) as opened:
            yield Visit(server, opened, paths)


@pytest.fixture(autouse=True)
def no_dialogue_stays(visit: Visit) -> Iterator[None]:
    """Close what a test that failed has left open, so that the next one can tell its own tale."""
    yield
    visit.close_dialogue()


def test_the_status_bar_leads_to_the_panel_which_shows_the_machine(visit: Visit) -> None:
    visit.page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
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
    facts = visit.panel.locator(".avm-header .avm-facts")
    expect(facts).to_contain_text(re.compile(r"Profile\s*test.*512 MiB memory.*minimal [0-9a-f]{12}.*Up for\s*\d+ "))
    visit.picture("running")


def test_a_snapshot_with_a_label_appears_in_the_tree(visit: Visit) -> None:
    visit.click("Snapshot …")
    label = visit.page.locator(".jp-Dialog").get_by_role("textbox", name="Label")
    label.fill("no label")
    expect(label).to_have_attribute("aria-invalid", "true")
    expect(label).to_have_accessible_description(re.compile("Letters from a to z, digits"))
    visit.picture("label")
    label.fill("base")
    expect(label).to_have_attribute("aria-invalid", "false")
    visit.answer("Take snapshot")
    expect(visit.row("base")).to_be_visible(timeout=PATIENCE)
    visit.until(lambda: "base" in visit.snapshots)
    visit.row("base").click()
    expect(visit.panel.get_by_role("button", name="Remove …", exact=True)).to_be_disabled()
    expect(visit.panel).to_contain_text("The machine goes on from it")


def test_commands_are_in_the_palette(visit: Visit) -> None:
    visit.page.keyboard.press("Control+Shift+C")
    palette = visit.page.get_by_role("searchbox").or_(visit.page.locator(".lm-CommandPalette-input"))
    palette.last.fill("Take a Snapshot with a Label")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator(".jp-Dialog").get_by_role("textbox", name="Label")).to_be_focused()
    visit.answer("Cancel")


def test_what_can_be_used_has_a_name(visit: Visit) -> None:
    nameless = visit.page.evaluate(
        """() => [...document.querySelectorAll('.avm-panel :is(button, input, select, [role]), .avm-status-button')]
          .filter(one => !one.getAttribute('aria-label') && !one.textContent.trim() && !one.labels?.length)
          .map(one => one.outerHTML)"""
    )
    assert nameless == []


def test_going_back_says_what_is_lost_and_does_it(visit: Visit) -> None:
    visit.lab.run_one("two")
    visit.click("Snapshot …")
    visit.answer("Take snapshot")
    row = visit.row("onerror")
    expect(row).to_contain_text("⟨U+202E⟩", timeout=PATIENCE)
    expect(row).to_contain_text(re.compile(r"\d+ \w+ ago · [\d.]+ \w+ · cell \[\d+\]"))
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
    expect(dialogue).to_contain_text("+sleep 12345")
    expect(dialogue).to_contain_text("+sleeper subprocess.Popen")
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


def test_a_refused_host_is_allowed_and_denied_again(visit: Visit, world: Internet) -> None:
    visit.lab.run_one("ask")
    rows = visit.panel.locator(".avm-connection").filter(has_text=f"{SITE}:80")
    expect(rows.locator(".avm-verdict")).to_have_text(["refused"], timeout=PATIENCE)
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
    visit.lab.run_one("hand")
    expect(visit.panel.get_by_text(re.compile(r"by-hand\.example"))).to_be_visible(timeout=PATIENCE)


def test_each_of_many_connections_has_a_row(visit: Visit) -> None:
    visit.lab.run_one("many")
    rows = visit.panel.locator(".avm-connection").filter(has_text=re.compile(r"host-\d+\.example:443"))
    expect(rows).to_have_count(HOSTS, timeout=PATIENCE)
    rows.nth(5).scroll_into_view_if_needed()
    visit.picture("connections")


def test_blocked_outputs_are_told_with_their_reason(visit: Visit) -> None:
    visit.lab.run_one("blocked")
    rows = visit.panel.get_by_role("list", name="Blocked outputs, newest first").get_by_role("listitem")
    expect(rows).to_have_count(2, timeout=PATIENCE)
    expect(rows.filter(has_text="something that would be fetched from another host")).to_have_count(1)
    expect(rows.filter(has_text="output of a type that is not known to be safe")).to_have_count(1)
    refused = visit.asked(lambda client, lease: client.network(lease)).refused
    count = visit.page.locator(".avm-status-button .avm-count")
    expect(count).to_have_text(f"{refused + 2} blocked", timeout=PATIENCE)
    rows.first.scroll_into_view_if_needed()
    visit.picture("blocked")


def test_a_limit_is_set(visit: Visit) -> None:
    visit.panel.get_by_text("Limits", exact=True).click()
    visit.lab.run_one("limit")
    cores = visit.panel.locator(".avm-limit").filter(has_text="CPU").get_by_role("textbox")
    expect(cores).to_have_value("0.5", timeout=PATIENCE)
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


def test_forks_leave_the_machine_as_it_is_until_one_is_adopted(visit: Visit) -> None:
    before, known = visit.vm.id, visit.said()
    visit.click("Fork …")
    dialogue = visit.page.locator(".jp-Dialog")
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
