"""What the panel says where there is no machine, or where it changes behind its back: over real processes that end.

Screenshots of each state lie in the folder that AGENTVM_GALLERY names, for a human to look at. The tests are one visit,
in order.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from threading import Thread

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Browser, Lab, jupyter, lab, write_notebook
from panel_bed import PATIENCE, UNASKED, Visit
from playwright.sync_api import expect
from vms import environment_of

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(600),
]

NOWHERE = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"
BROKEN = {"code": "internal", "message": "The supervisor is broken.", "hint": "Look at its log."}
CELLS = {"one": "x = 1", "two": "x = 2", "say": "print('x is', x)"}


LATE = ["--KernelRestarter.time_to_dead=60"]
"""A kernel that was killed is started again by a test, not before by the server."""

# All that the panel says in place of a machine.
_LISTEN = """() => {
  window.said = [];
  const panel = document.querySelector('.avm-panel');
  const look = () => {
    const said = panel.querySelector('.avm-card h2')?.textContent;
    if (said && window.said.at(-1) !== said) {
      window.said.push(said);
    }
  };
  new MutationObserver(look).observe(panel, {childList: true, subtree: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory, paths: Paths, browser: Browser) -> Iterator[Visit]:
    with jupyter(tmp_path_factory.mktemp("jupyter"), environment_of(paths), options=LATE) as server:
        write_notebook(server.folder / "first.ipynb", CELLS, "agentvm")
        write_notebook(server.folder / "second.ipynb", CELLS, "agentvm")
        write_notebook(server.folder / "foreign.ipynb", {"one": "1"}, "python3")
        with lab(browser, server, UNASKED) as opened:
            opened.page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
            yield Visit(server, opened, paths)


@contextmanager
def broken_supervisor(paths: Paths) -> Iterator[None]:
    """One that can do nothing, in the place of one that was killed."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(BROKEN).encode()
            self.send_response(500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    paths.socket.unlink()
    with ThreadingUnixStreamServer(str(paths.socket), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
    paths.socket.unlink()


@pytest.fixture(autouse=True)
def no_dialogue_stays(visit: Visit) -> Iterator[None]:
    """Close what a test that failed has left open, so that the next one can tell its own tale."""
    yield
    visit.close_dialogue()


def test_without_a_notebook_it_says_what_it_is_for(visit: Visit) -> None:
    expect(visit.said_state).to_have_text("No notebook is open")
    visit.picture("no_notebook")


def test_a_kernel_of_another_kind_is_said_to_run_on_the_host(visit: Visit) -> None:
    visit.lab.open("foreign.ipynb", "python3")
    expect(visit.said_state).to_have_text("This kernel does not run in a virtual machine")
    expect(visit.status).to_have_count(0)
    visit.picture("foreign")
    visit.choose_kernel()
    # The first machine of a supervisor takes its time.
    expect(visit.said_state).to_have_text("The machine starts …", timeout=PATIENCE)
    visit.picture("starting")
    visit.runs()
    visit.lab.close()


def test_it_follows_the_notebook_in_front(visit: Visit) -> None:
    visit.lab.open("first.ipynb", "agentvm")
    visit.lab.run_one("one")
    visit.runs()
    first = visit.vm.id
    visit.take()
    expect(visit.tree.get_by_role("treeitem")).to_have_count(3)
    visit.lab.open("second.ipynb", "agentvm")
    visit.lab.run_one("two")
    visit.runs()
    assert visit.vm.id != first
    expect(visit.tree.get_by_role("treeitem")).to_have_count(2)
    visit.lab.open("first.ipynb")
    visit.runs()
    assert visit.vm.id == first
    expect(visit.tree.get_by_role("treeitem")).to_have_count(3)
    assert "x is 1" in visit.said()
    visit.lab.open("second.ipynb")
    visit.lab.close()
    visit.lab.open("first.ipynb")


def test_notebook_7_in_another_browser_hears_of_what_is_done_here(visit: Visit, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    try:
        page = context.new_page()
        page.goto(f"{visit.server.url}/notebooks/first.ipynb?token={visit.server.token}")
        expect(page.locator("[data-command='agentvm:snapshot']").first).to_be_visible(timeout=PATIENCE)
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        for item in ("Virtual Machine", "Show the Virtual Machine"):
            page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()
        panel = page.locator(".avm-panel")
        expect(panel.locator(".avm-id")).to_have_text(visit.vm.id, timeout=PATIENCE)
        visit.take("elsewhere")
        row = panel.get_by_role("treeitem").filter(has_text="elsewhere")
        expect(row).to_be_visible(timeout=PATIENCE)
        row.click()
        panel.get_by_role("button", name="Label …", exact=True).click()
        page.locator(".jp-Dialog").get_by_role("textbox", name="Label").fill("from-there")
        page.locator(".jp-Dialog").get_by_role("button", name="Set label", exact=True).click()
        expect(visit.row("from-there")).to_be_visible(timeout=PATIENCE)
        assert "from-there" in visit.snapshots
        there = Visit(visit.server, Lab(page), visit.paths)
        there.lab.prepare()
        there.picture("notebook7")
    finally:
        context.close()


def process_of(kernel: str) -> int:
    """Return the pid of a kernel's process."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if f"kernel-{kernel}.json" in (entry / "cmdline").read_text():
                return int(entry.name)
    raise AssertionError(f"the kernel {kernel} has no process")


def test_a_restarted_kernel_has_another_machine(visit: Visit) -> None:
    visit.page.evaluate(_LISTEN)
    (kernel,) = visit.server.kernels
    for is_killed in (False, True):
        before = visit.vm.id
        if is_killed:
            os.kill(process_of(kernel), signal.SIGKILL)
            expect(visit.said_state).to_have_text("The kernel restarts …", timeout=PATIENCE)
            expect(visit.status).to_contain_text("kernel restarts")
            expect(visit.panel.get_by_role("button", name="Go back …", exact=True)).to_have_count(0)
            visit.picture("restarting")
        visit.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
        expect(visit.panel.locator(".avm-id")).not_to_have_text(before, timeout=PATIENCE)
        visit.runs()
        assert visit.vm.id != before
        assert "NameError" in visit.said()
    expect(visit.page.locator(".Toastify__toast").filter(has_text="has ended")).to_have_count(0)
    said = set(visit.page.evaluate("() => said"))
    assert said <= {"The kernel restarts …", "The machine starts …"}, said


def test_a_hypervisor_that_is_killed_is_told_of_and_what_was_saved_is_there(visit: Visit) -> None:
    visit.lab.run_one("one")
    visit.take("base")
    before = visit.vm
    with visit.told():
        os.kill(before.pid, signal.SIGKILL)
        expect(visit.said_state).to_have_text("The machine has ended", timeout=PATIENCE)
    expect(visit.status).to_contain_text("VM ended")
    news = visit.page.locator(".Toastify__toast").filter(has_text="The virtual machine under first.ipynb has ended.")
    expect(news).to_have_count(1, timeout=PATIENCE)
    visit.picture("ended", with_news=True)
    news.get_by_role("button", name="Show").click()
    expect(news).to_have_count(0, timeout=PATIENCE)
    expect(visit.row("The ended machine")).to_be_visible()
    visit.row("base").click()
    for name in ("Label …", "Remove …", "Prune …"):
        expect(visit.panel.get_by_role("button", name=name, exact=True)).to_be_disabled()
    visit.click("Go back …")
    expect(visit.dialogue).to_contain_text("A fresh one goes on from the snapshot")
    visit.answer("Go back")
    visit.runs()
    assert visit.vm.id != before.id
    assert "x is 1" in visit.said()


def test_a_machine_is_stopped_and_started(visit: Visit) -> None:
    before = visit.vm.id
    visit.click("Stop …")
    visit.answer("Stop")
    expect(visit.said_state).to_have_text("The machine has ended", timeout=PATIENCE)
    visit.picture("stopped")
    visit.click("Start a machine")
    visit.runs()
    started = visit.vm.id
    assert started != before
    visit.click("Start fresh …")
    visit.answer("Start fresh")
    expect(visit.panel.locator(".avm-id")).not_to_have_text(started, timeout=PATIENCE)
    visit.runs()
    assert visit.vm.id != started


def test_a_supervisor_that_is_not_there_is_started_by_a_button(visit: Visit) -> None:
    with SyncSupervisorClient(visit.paths, start=False) as client:
        os.kill(client.status().pid, signal.SIGKILL)
    expect(visit.said_state).to_have_text("No machine runs under this notebook", timeout=PATIENCE)
    expect(visit.status).to_contain_text("no VM")
    visit.picture("no_supervisor")
    with broken_supervisor(visit.paths):
        # As when one comes back to the page.
        visit.page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")
        expect(visit.said_state).to_have_text("The machine cannot be shown", timeout=PATIENCE)
        expect(visit.panel).to_contain_text(f"{BROKEN['message']}{BROKEN['hint']}")
        visit.picture("failed")
    visit.click("Try again")
    expect(visit.said_state).to_have_text("No machine runs under this notebook", timeout=PATIENCE)


def test_a_host_that_cannot_run_machines_is_told_with_why_and_what_to_do(visit: Visit) -> None:
    config = visit.paths.config.read_text()
    visit.paths.config.write_text(f'uri = "{NOWHERE}"\n{config}')
    visit.click("Start a machine")
    for place in (visit.dialogue, visit.panel):
        expect(place).to_contain_text(f"No connection to libvirt ({NOWHERE})", timeout=PATIENCE)
        expect(place).to_contain_text("No such file or directory. Run `agentvm doctor`")
        visit.close_dialogue()
    visit.picture("no_host")
    visit.click("Examine this host")
    found = visit.panel.get_by_role("list", name="What was found on this host").get_by_role("listitem")
    expect(found.filter(has_text=NOWHERE)).to_have_count(1, timeout=PATIENCE)
    visit.picture("examined")
    visit.paths.config.write_text(config)
    visit.click("Start a machine")
    visit.runs()
    assert "NameError" in visit.said()


def test_a_kernel_that_somebody_else_has_ended_is_told_of(visit: Visit) -> None:
    # JupyterLab asks every few seconds which kernels there are; until then the panel alone knows.
    asked = re.compile(r"/api/(kernels|sessions)\?")
    visit.page.route(asked, lambda _: None)
    visit.server.end_kernels()
    expect(visit.said_state).to_have_text("The kernel has ended", timeout=PATIENCE)
    visit.picture("gone")
    visit.page.unroute(asked)  # what was held goes on
    expect(visit.said_state).to_have_text("This notebook has no kernel", timeout=PATIENCE)


def test_a_server_without_the_extension_is_told_and_one_that_ends_is_waited_for(
    visit: Visit, browser: Browser, tmp_path: Path
) -> None:
    off = tmp_path / "off" / "jupyter_server_config.d"
    off.mkdir(parents=True)
    without = {"ServerApp": {"jpserver_extensions": {"agentvm_kernel.server": False}}}
    (off / "agentvm_kernel.json").write_text(json.dumps(without))
    environment = environment_of(visit.paths)
    with ExitStack() as stack:
        running = stack.enter_context(ExitStack())
        server = running.enter_context(jupyter(tmp_path, environment | {"JUPYTER_CONFIG_PATH": str(tmp_path / "off")}))
        write_notebook(server.folder / "third.ipynb", CELLS, "agentvm")
        there = Visit(server, stack.enter_context(lab(browser, server)), visit.paths)
        there.page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
        there.lab.open("third.ipynb", "agentvm")
        expect(there.said_state).to_have_text("The Jupyter server lacks the extension", timeout=PATIENCE)
        there.picture("missing")
        running.close()
        expect(there.said_state).to_have_text("No connection", timeout=PATIENCE)
        there.picture("lost", is_connected=False)
        stack.enter_context(jupyter(tmp_path, environment, server))
        # Its kernels have ended with the first one.
        expect(there.said_state).to_have_text("This notebook has no kernel", timeout=PATIENCE)
        there.close_dialogue()
        there.picture("no_kernel")
        there.choose_kernel()
        there.runs()
        there.lab.run_one("two")
        assert "x is 2" in there.said()
