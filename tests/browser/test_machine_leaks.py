"""Notebooks that were opened and closed leave nothing of the extension behind, in a page over a real machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Lab, chromium, jupyter, lab, write_notebook
from playwright.sync_api import CDPSession, WebSocket, expect

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(600),
]

TIMES = 20

# Counts the listeners and timers that the extension's own code has added and not taken away.
_COUNT = """(() => {
  const own = () => new Error().stack.includes('/extensions/agentvm-kernel');
  const held = new Map();
  const keys = new WeakMap();
  let last = 0;
  const key = thing => {
    keys.set(thing, keys.get(thing) ?? ++last);
    return keys.get(thing);
  };
  const { addEventListener, removeEventListener } = EventTarget.prototype;
  EventTarget.prototype.addEventListener = function (type, listener, ...more) {
    if (listener && own()) {
      const target = this === document || this === window ? 'page' : 'node';
      held.set(`${target} ${type} ${key(listener)}`, target);
    }
    return addEventListener.call(this, type, listener, ...more);
  };
  EventTarget.prototype.removeEventListener = function (type, listener, ...more) {
    if (listener) {
      held.delete(`page ${type} ${key(listener)}`);
    }
    return removeEventListener.call(this, type, listener, ...more);
  };
  const { setInterval, clearInterval } = window;
  window.setInterval = (...all) => {
    const timer = setInterval(...all);
    if (own()) {
      held.set(`timer ${timer}`, 'timer');
    }
    return timer;
  };
  window.clearInterval = timer => {
    held.delete(`timer ${timer}`);
    clearInterval(timer);
  };
  window.held = () => [...held.values()].filter(kind => kind !== 'node').length;
})();"""
_VISIT = """async kernel => {
  const options = {path: 'any.ipynb', factory: 'Notebook', kernel: {id: kernel}};
  const panel = await jupyterapp.commands.execute('docmanager:open', options);
  await panel.context.ready;
  await panel.sessionContext.ready;
  while (!document.querySelector('.avm-panel .avm-tree') || !document.querySelector('.avm-status-button')) {
    await bed.drawn();
  }
  panel.dispose();
  await bed.drawn();
}"""
# What the plugins of this page hold; the extension offers no way to ask.
_SERVICE = "jupyterapp.pluginRegistry._plugins.get('agentvm-kernel:machines').service"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, vm_environment: Mapping[str, str]) -> Iterator[Lab]:
    with jupyter(tmp_path_factory.mktemp("jupyter"), vm_environment) as server, chromium() as browser:
        write_notebook(server.folder / "any.ipynb", {"one": "1"}, "agentvm")
        with lab(browser, server, _COUNT) as page:
            yield page


class Counts:
    """How much of a kind there is in the page."""

    def __init__(self, opened: Lab) -> None:
        self._page = opened.page
        self._session: CDPSession = opened.page.context.new_cdp_session(opened.page)

    def living(self, prototype: str) -> int:
        """Return how many objects of a class are reachable, once the others were collected."""
        ask = self._session.send
        ask("HeapProfiler.collectGarbage")
        found = ask("Runtime.evaluate", {"expression": prototype})["result"]["objectId"]
        objects = ask("Runtime.queryObjects", {"prototypeObjectId": found})["objects"]["objectId"]
        length = {"objectId": objects, "functionDeclaration": "function () { return this.length; }"}
        number = int(ask("Runtime.callFunctionOn", length)["result"]["value"])
        ask("Runtime.releaseObject", {"objectId": objects})
        return number

    def all(self) -> dict[str, int]:
        """Return all that the extension holds; notebooks themselves are held by JupyterLab 4.6, also without it."""
        return {
            "listeners and timers": self._page.evaluate("() => held()"),
            "elements": self._page.locator("[class*='avm-']").count(),
            "stores held": self._page.evaluate(f"() => {_SERVICE}.machines.stores.size"),
            "stores": self.living("window.storePrototype"),
        }


def test_notebooks_that_were_closed_leave_nothing_behind(opened: Lab) -> None:
    page = opened.page
    page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
    opened.open("any.ipynb", "agentvm")
    expect(page.locator(".avm-badge")).to_have_text("running", timeout=60_000)
    kernel = page.evaluate(
        f"""() => {{
          const notebook = jupyterapp.shell.currentWidget;
          window.storePrototype = Object.getPrototypeOf({_SERVICE}.store);
          const kernel = notebook.sessionContext.session.kernel.id;
          notebook.dispose();
          return kernel;
        }}"""
    )
    counts = Counts(opened)
    sockets: list[WebSocket] = []

    page.on("websocket", lambda socket: sockets.append(socket))  # noqa: PLW0108 - Playwright marks what it calls
    page.evaluate(_VISIT, kernel)
    before = counts.all()
    assert before["stores held"] == 0
    assert before["listeners and timers"] > 0
    connections = [one for one in sockets if not one.is_closed()]
    for _ in range(TIMES):
        page.evaluate(_VISIT, kernel)
    assert counts.all() == before
    assert [one for one in sockets if not one.is_closed()] == connections
