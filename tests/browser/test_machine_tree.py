"""The panel with 500 snapshots, in a real JupyterLab: what is drawn, and how fluid that is.

The REST answers are made up here, since 500 snapshots of a VM would take long to make; what is measured is the page.
The figures are printed and, with the screenshots, for a human: how fast this machine draws is no property of the code.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import urlparse

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, chromium, jupyter, lab, write_notebook
from panel_bed import Visit
from playwright.sync_api import Route, expect

from agentvm_kernel.config import Paths

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(300),
    pytest.mark.alone,
]

COUNT = 500
DRAWN = 40
PATIENCE = 60_000
_SCROLL = """async () => {
  const tree = document.querySelector('.avm-tree');
  const frames = [];
  const end = tree.scrollHeight - tree.clientHeight;
  let before = await new Promise(requestAnimationFrame);
  for (let step = 1; step <= 200; step++) {
    tree.scrollTop = end * step / 200;
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - before);
    before = now;
  }
  return {frames, drawn: tree.querySelectorAll('[role=treeitem]').length, top: tree.scrollTop, end};
}"""
_UPDATE = """async label => {
  const tree = document.querySelector('.avm-tree');
  tree.scrollTop = 0;
  const frames = [];
  let isOver = false;
  const count = async () => {
    let before = await new Promise(requestAnimationFrame);
    while (!isOver) {
      const now = await new Promise(requestAnimationFrame);
      frames.push(now - before);
      before = now;
    }
  };
  const counted = count();
  const seen = new Promise(done => {
    const look = new MutationObserver(() => {
      if (tree.textContent.includes(label)) {
        look.disconnect();
        done();
      }
    });
    look.observe(tree, {childList: true, subtree: true, characterData: true});
  });
  document.dispatchEvent(new Event('visibilitychange'));
  await seen;
  await new Promise(requestAnimationFrame);
  isOver = true;
  await counted;
  return frames;
}"""


class Server:
    """Answers as the server extension does, of a tree that grows by one with each question."""

    def __init__(self) -> None:
        self.count = COUNT

    def snapshots(self) -> list[dict[str, object]]:
        began = time.time() - 100_000
        return [
            {
                "id": f"{number:012x}",
                "parent": f"{number - 1 - 7 * (number % 11 == 3):012x}" if number > 8 else "",
                "label": f"label {number}" if number % 10 == 0 or number >= COUNT else "",
                "text": "",
                "kind": "auto",
                "created": began + 100 * number,
                "size": 1_000_000 * (number % 90),
                "written": 1_000_000,
                "cell": {"run": number, "count": number, "code": f"x = {number}\nprint(x)"},
                "busy": False,
                "pause_ms": 20.0,
                "stored": True,
            }
            for number in range(self.count)
        ]

    def answer(self, route: Route) -> None:
        """Answer a page."""
        path = urlparse(route.request.url).path
        lists = ("connections", "blocked", "anomalies")
        answers: dict[str, object] = {"watch": {}} | {name: {name: []} for name in lists}
        name = path.rsplit("/", 1)[1]
        if name == "snapshots":
            tree = self.snapshots()
            answer: object = {"current": tree[-1]["id"], "used": 1 << 33, "quota": 1 << 36, "snapshots": tree}
        else:
            answer = answers.get(name, {"state": "running", "vm": "vm-1", "accelerator": "kvm", "age": 60})
        route.fulfill(status=200, body=json.dumps(answer))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Visit, Server]]:
    answers = Server()
    with jupyter(tmp_path_factory.mktemp("jupyter"), {}) as server, chromium() as browser:
        write_notebook(server.folder / "any.ipynb", {"one": "1"})
        with lab(browser, server) as page:
            page.page.route("**/agentvm/api/**", answers.answer)
            page.open("any.ipynb", "python3")
            page.page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
            expect(page.page.get_by_role("tree")).to_be_visible(timeout=PATIENCE)
            yield Visit(server, page, Paths.of_user()), answers


def told(name: str, frames: list[float]) -> None:
    """Print frame times."""
    ordered = sorted(frames)
    middle, most = ordered[len(ordered) // 2], ordered[-1]
    tail = ordered[int(len(ordered) * 0.95)]
    print(f"\n{name}: {len(frames)} frames, median {middle:.1f} ms, 95 % {tail:.1f} ms, worst {most:.1f} ms")


def test_only_what_is_in_sight_is_drawn_while_it_scrolls(opened: tuple[Visit, Server]) -> None:
    page = opened[0].page
    expect(page.get_by_role("treeitem").first).to_have_attribute("aria-setsize", str(COUNT + 2))
    assert page.get_by_role("treeitem").count() < DRAWN
    found = page.evaluate(_SCROLL)
    assert found["top"] == pytest.approx(found["end"], abs=1)
    assert found["drawn"] < DRAWN
    expect(page.get_by_role("treeitem").filter(has_text="The image as it was built")).to_be_visible()
    told("scrolling", found["frames"])


def test_an_update_shows_what_is_new(opened: tuple[Visit, Server]) -> None:
    visit, answers = opened
    frames: list[float] = []
    for _ in range(5):
        answers.count += 1
        frames += visit.page.evaluate(_UPDATE, f"label {answers.count - 1}")
    told("updates", frames)
    visit.picture("500")


def test_the_keys_reach_both_ends(opened: tuple[Visit, Server]) -> None:
    page = opened[0].page
    page.locator(".avm-tree [tabindex='0']").focus()
    for key, text in (("End", "The image as it was built"), ("Home", "The machine as it is now")):
        page.keyboard.press(key)
        focused = page.locator(".avm-tree :focus")
        expect(focused).to_contain_text(text)
        expect(focused).to_be_in_viewport()
