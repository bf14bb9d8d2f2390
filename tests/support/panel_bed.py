"""A visitor of JupyterLab who uses the panel of the machine, and asks the machine itself what came of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab_bed import Jupyter, Lab
from playwright.sync_api import Locator, Page, expect

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.operator_messages import VMInfo
from agentvm_kernel.supervisor.snapshot_messages import SnapshotInfo
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

PATIENCE = 60_000
WIDTHS = (1280, 1920)
_NO_NEWS = ".Toastify { display: none !important; }"
"""News go over what is shown for a few seconds."""

UNASKED = """(() => {
  const { fetch, setInterval } = window;
  window.fetch = (...all) => {
    window.lastAsked = performance.now();
    return fetch(...all);
  };
  window.setInterval = (call, pause, ...more) => {
    if (pause !== 20000) {
      return setInterval(call, pause, ...more);
    }
    window.canBeTold = true;
    const service = 'agentvm-kernel:machines';
    const watch = () => jupyterapp.pluginRegistry._plugins.get(service).service.machines.watch();
    return setInterval(() => (window.isTold ? watch() : call()), pause);
  };
})();"""
"""Goes before a page's own scripts. Every twenty seconds the page asks for everything anew; while `Visit.told` says so,
it does no more then than say that it goes on looking.
"""


@dataclass
class Visit:
    """A notebook and the panel beside it.

    Attributes:
        server: Where it is.
        lab: The page.
        paths: Of the supervisor.
        gallery: What the names of its pictures begin with.
    """

    server: Jupyter
    lab: Lab
    paths: Paths
    gallery: str = "panel"

    @property
    def page(self) -> Page:
        return self.lab.page

    @property
    def panel(self) -> Locator:
        return self.page.locator(".avm-panel")

    @property
    def tree(self) -> Locator:
        return self.panel.get_by_role("tree")

    @property
    def said_state(self) -> Locator:
        """What the panel says where it shows no machine."""
        return self.panel.locator(".avm-card h2")

    @property
    def status(self) -> Locator:
        """The item in the status bar."""
        return self.page.locator(".avm-status-button")

    def runs(self) -> None:
        """Return when the panel shows the machine that the supervisor has."""
        expect(self.panel.locator(".avm-badge")).to_have_text("running", timeout=PATIENCE)
        self.until(lambda: self.panel.locator(".avm-id").inner_text() == self.vm.id)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Have the page show only what it is told of, and ask for nothing by itself; see `UNASKED`."""
        assert self.page.evaluate("() => { window.isTold = true; return window.canBeTold; }")
        # What it was told of before may have it ask a second later.
        self.page.wait_for_function("() => performance.now() - window.lastAsked > 2000", timeout=PATIENCE)
        yield
        self.page.evaluate("() => { window.isTold = false; }")

    @property
    def dialogue(self) -> Locator:
        return self.page.locator(".jp-Dialog")

    def row(self, text: str) -> Locator:
        return self.tree.get_by_role("treeitem").filter(has_text=text)

    def click(self, name: str, place: Locator | None = None) -> None:
        (place or self.panel).get_by_role("button", name=name, exact=True).click()

    def answer(self, name: str) -> None:
        """Press a button of the dialogue."""
        self.dialogue.get_by_role("button", name=name, exact=True).click()
        expect(self.dialogue).to_have_count(0)

    def follow_notice(self, text: str) -> None:
        """Wait for a notice, and press its button; JupyterLab has a list of those that are not shown any more."""
        self.page.locator(".jp-Notification-Status").click()
        center = self.page.locator(".jp-Notification-Center")
        line = center.locator(".jp-Notification-List-Item").filter(has_text=text)
        expect(line).to_have_count(1, timeout=PATIENCE)
        line.get_by_role("button", name="Show").click()
        center.get_by_title("Hide notifications").click()
        expect(center).to_have_count(0)

    def take(self, label: str = "") -> None:
        """Take a snapshot, and return when the tree shows it."""
        rows = self.tree.get_by_role("treeitem")
        count = rows.count()
        self.click("Snapshot …")
        self.dialogue.get_by_role("textbox", name="Label").fill(label)
        self.answer("Take snapshot")
        expect(rows).to_have_count(count + 1, timeout=PATIENCE)

    def go_back(self, row: Locator) -> None:
        """Go back to a row's snapshot, and return when the panel shows the machine that comes of it."""
        before = self.panel.locator(".avm-id").inner_text()
        row.click()
        self.click("Go back …")
        expect(self.dialogue).to_contain_text("What is lost", timeout=PATIENCE)
        self.answer("Go back")
        expect(self.panel.locator(".avm-id")).not_to_have_text(before, timeout=PATIENCE)
        self.runs()

    def choose_kernel(self) -> None:
        """Have the notebook run by AgentVM, as the panel offers where it is not."""
        self.click("Change the kernel …")
        self.dialogue.get_by_role("combobox").select_option(label="Python (AgentVM)")
        self.answer("Select Kernel")

    def close_dialogue(self) -> None:
        """Close the dialogue if there is one, by its first button, which does nothing."""
        for button in self.page.locator(".jp-Dialog button").all()[:1]:
            button.click()

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
        """The machine under the notebook in front; where the page does not tell that, the server has one kernel."""
        kernel = self.page.evaluate("() => window.jupyterapp?.shell.currentWidget.sessionContext.session.kernel.id")
        if kernel is None:
            (kernel,) = self.server.kernels
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

    def show_in(self, theme: str) -> None:
        """Change to a theme: Dark or Light."""
        name = f"JupyterLab {theme}"
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", name)
        expect(self.page.locator("body")).to_have_attribute("data-jp-theme-name", name)
        expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)

    def picture(self, name: str, *, is_connected: bool = True, with_news: bool = False) -> None:
        """Show a state at both widths and in both themes; in the present one where no server gives another."""
        folder = os.environ["AGENTVM_GALLERY"]
        for theme in ("Dark", "Light") if is_connected else ("Light",):
            if is_connected:
                self.show_in(theme)
            for width in WIDTHS:
                self.page.set_viewport_size({"width": width, "height": 1000})
                self.page.evaluate("() => bed.drawn()")
                path = Path(folder) / f"{self.gallery}_{name}_{theme.lower()}_{width}.png"
                self.page.screenshot(path=path, style=None if with_news else _NO_NEWS)
