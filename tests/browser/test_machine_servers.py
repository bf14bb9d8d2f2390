"""Several browsers at one server, and two servers of one user, over one supervisor: who sees what of which machine.

Two browsers look at the same notebook; a third one is at another server, at a notebook of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Browser, jupyter, lab, write_notebook
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

# All that the extension gets of a server: its answers, and the events.
_HEARD = """(() => {
  window.heard = [];
  const { fetch, WebSocket } = window;
  window.fetch = async (...all) => {
    const answer = await fetch(...all);
    if (answer.url.includes('/agentvm/api/')) {
      window.heard.push(await answer.clone().text());
    }
    return answer;
  };
  window.WebSocket = class extends WebSocket {
    constructor(...all) {
      super(...all);
      if (this.url.includes('/api/events')) {
        this.addEventListener('message', event => window.heard.push(event.data));
      }
    }
  };
})();"""


def cells_of(secret: str) -> dict[str, str]:
    """Cells that leave a secret wherever the extension could show it."""
    reach = f"import socket\ntry:\n    socket.create_connection(('{secret}.example', 443))\nexcept OSError:\n    pass"
    return {
        "one": f"x = 1  # {secret}",
        "two": f"x = 2  # {secret}\nprint('two')",
        "mark": f"%snapshot {secret}",
        "reach": reach,
        "say": "print('x is', x)",
    }


@dataclass
class Visits:
    """Who looks: two at the same notebook, and one elsewhere, whose server can be ended."""

    here: Visit
    beside: Visit
    there: Visit
    end_of_there: ExitStack


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory, paths: Paths, browser: Browser) -> Iterator[Visits]:
    with ExitStack() as stack:
        own = stack.enter_context(ExitStack())
        environment = environment_of(paths)
        first = stack.enter_context(jupyter(tmp_path_factory.mktemp("first"), environment))
        second = own.enter_context(jupyter(tmp_path_factory.mktemp("second"), environment))
        write_notebook(first.folder / "first.ipynb", cells_of("of-here"), "agentvm")
        write_notebook(second.folder / "second.ipynb", cells_of("of-there"), "agentvm")
        here, beside, there = (
            Visit(server, stack.enter_context(lab(browser, server, _HEARD + UNASKED)), paths)
            for server in (first, first, second)
        )
        for visit in (here, beside, there):
            visit.page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
        here.lab.open("first.ipynb", "agentvm")
        here.lab.run_one("one")
        here.runs()
        beside.lab.open("first.ipynb")
        beside.runs()
        there.lab.open("second.ipynb", "agentvm")
        there.lab.run_one("one")
        there.runs()
        yield Visits(here, beside, there, own)


def ask(visit: Visit, method: str, path: str, data: dict[str, Any] | None = None) -> Any:
    """Ask a visitor's server, with its token."""
    return visit.page.request.fetch(
        f"{visit.server.url}/agentvm/api/{path}",
        method=method,
        headers={"Authorization": f"token {visit.server.token}"},
        data=data,
    )


def test_what_one_browser_does_the_other_one_shows(visits: Visits) -> None:
    here, beside = visits.here, visits.beside
    assert here.vm.id == beside.vm.id
    with beside.told():
        here.take("base")
        expect(beside.row("base")).to_be_visible(timeout=PATIENCE)
    with here.told():
        beside.panel.get_by_role("checkbox").click()
        expect(here.panel.get_by_role("checkbox")).to_be_checked(timeout=PATIENCE)
    assert here.vm.travelling
    with beside.told():
        here.lab.run_one("two")
        expect(beside.row("x = 2")).to_be_visible(timeout=PATIENCE)
    output = here.page.locator(".jp-CodeCell").filter(has_text="print('two')")
    expect(output).not_to_have_class(re.compile("avm-mod-left"))
    before = here.vm.id
    with here.told():
        beside.go_back(beside.row("base"))
        for visit in (here, beside):
            visit.runs()
            expect(visit.row("x = 2")).to_have_class(re.compile("avm-left"), timeout=PATIENCE)
        expect(output).to_have_class(re.compile("avm-mod-left"), timeout=PATIENCE)
    assert here.vm.id != before
    assert "x is 1" in here.said()


def test_what_is_done_at_one_server_changes_nothing_at_the_other(visits: Visits) -> None:
    here, there = visits.here, visits.there
    before, known = here.vm.id, set(here.snapshots)
    for name in ("two", "mark", "reach"):
        there.lab.run_one(name)
    expect(there.row("of-there").first).to_be_visible(timeout=PATIENCE)
    there.go_back(there.row("of-there").first)
    assert (here.vm.id, set(here.snapshots)) == (before, known)
    assert there.vm.id != before
    assert list(there.snapshots) == ["of-there"]


def test_a_server_tells_nothing_of_the_other_ones_notebooks(visits: Visits) -> None:
    here, there = visits.here, visits.there
    (kernel,) = here.server.kernels
    snapshot = here.snapshots["base"].id
    for method, path, data in (
        ("GET", "", None),
        ("GET", "/snapshots", None),
        ("GET", "/connections", None),
        ("GET", "/blocked", None),
        ("GET", "/anomalies", None),
        ("POST", "/resume", None),
        ("POST", "/snapshots", {}),
        ("PATCH", f"/snapshots/{snapshot}", {"label": "taken"}),
        ("DELETE", f"/snapshots/{snapshot}", None),
        ("POST", "/rollback/plan", {"to": snapshot}),
        ("POST", "/rollback", {"to": snapshot}),
        ("POST", "/vm", {"do": "stop"}),
    ):
        answer = ask(there, method, f"kernels/{kernel}{path}", data)
        assert (answer.status, answer.json()["code"]) == (404, "no_kernel"), (method, path)
    # A snapshot of the other notebook's is none of this one's, by whatever kernel it is asked for.
    (own,) = there.server.kernels
    assert ask(there, "PATCH", f"kernels/{own}/snapshots/{snapshot}", {"label": "taken"}).status == 404
    assert ask(there, "POST", f"kernels/{own}/rollback/plan", {"to": snapshot}).status == 404
    assert ask(there, "POST", "watch", {"kernels": [kernel]}).ok
    for name in ("mark", "reach"):
        here.lab.run_one(name)
    expect(here.row("of-here").first).to_be_visible(timeout=PATIENCE)
    there.take("last")  # what is heard of that is heard after all that came before
    for visit, secret, other, other_secret in (
        (here, "of-here", there, "of-there"),
        (there, "of-there", here, "of-here"),
    ):
        heard = "\n".join(visit.page.evaluate("() => heard"))
        assert secret in heard
        assert visit.vm.id in heard
        theirs = (one.id for one in other.snapshots.values())
        for hidden in (other_secret, other.vm.id, other.vm.lease, *other.server.kernels, *theirs):
            assert hidden not in heard
    assert snapshot in {one.id for one in here.snapshots.values()}
    assert "taken" not in here.snapshots


def test_a_server_that_ends_takes_its_own_machines_with_it(visits: Visits) -> None:
    here = visits.here
    kept, ended = here.vm.id, visits.there.vm.id
    visits.end_of_there.close()
    with SyncSupervisorClient(here.paths, start=False) as client:
        here.until(lambda: ended not in {one.id for one in client.vms().vms})
    expect(visits.there.said_state).to_have_text("No connection", timeout=PATIENCE)
    assert here.vm.id == kept
    assert "x is 1" in here.said()
