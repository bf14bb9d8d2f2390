"""A report in a real browser: nothing that a notebook holds runs, is fetched, or covers what the report says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentvm_kernel.config import Paths
from agentvm_kernel.report.make import make_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

COVER = "position: relative; top: -3000px; left: -300px; width: 4000px; height: 9000px; background: red; z-index: 99"
HOSTILE = {
    "cover": f'<div style="{COVER}">All is well</div>',
    "margin": '<div style="margin-top: -4000px; height: 9000px; background: red">All is well</div>',
    "sheet": "<style>* { display: none } p, .bad { color: white !important; margin: -900px }</style><p>x</p>",
    "fixed": '<div style="position: fixed; inset: 0; background: red">All is well</div>',
    "script": "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">",
    "frame": "<iframe srcdoc=\"<script>top.document.title='taken'</script>\"></iframe>",
    "remote": '<img src="http://127.0.0.1:9/a.png"><link rel=stylesheet href="http://127.0.0.1:9/a.css">',
    "import": "<style>@import 'http://127.0.0.1:9/b.css'; p { background: url(//127.0.0.1:9/c) }</style><p>x</p>",
    "refresh": '<meta http-equiv="refresh" content="0;url=http://127.0.0.1:9/d"><base href="http://127.0.0.1:9/">',
    "transform": '<div style="transform: scale(50); background: red">All is well</div>',
}


IS_SEEN = """one => {
    const box = one.getBoundingClientRect();
    const top = document.elementFromPoint(box.x + 5, box.y + Math.min(box.height / 2, 20));
    return one.contains(top) && getComputedStyle(one).display !== 'none';
}"""


def cell(source: str, html: str) -> dict[str, Any]:
    output = {"output_type": "display_data", "data": {"text/html": html}, "metadata": {}}
    return {
        "cell_type": "code", "source": source, "outputs": [output], "execution_count": None, "metadata": {},
        "id": source,
    }  # fmt: skip


def written(folder: Path) -> str:
    notes = [
        {"cell_type": "markdown", "source": html, "metadata": {}, "id": f"m-{name}"} for name, html in HOSTILE.items()
    ]
    return report_of(folder, *notes, *(cell(name, html) for name, html in HOSTILE.items()))


def report_of(folder: Path, *cells: dict[str, Any]) -> str:
    path = folder / "n.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    paths = Paths(folder / "cache", folder / "state", folder / "run", folder / "config.toml")
    page = folder / "page.html"
    page.write_text(make_report(path, paths).page)
    return page.as_uri()


@contextmanager
def opened(address: str) -> Iterator[tuple[Any, list[str]]]:
    """A page in a browser, and what it asks for."""
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        yield page, asked
        browser.close()


def covered(page: Any) -> list[str]:
    """What the report says and something else is drawn over."""
    told = page.locator("h1, h2, p.warning, p.said, .source, table.facts")
    assert told.count() > 20
    found = []
    for number in range(told.count()):
        one = told.nth(number)
        one.scroll_into_view_if_needed()
        if not one.evaluate(IS_SEEN):
            found.append(one.inner_text())
    return found


def test_what_a_notebook_holds_neither_runs_nor_loads_nor_covers_anything(tmp_path: Path) -> None:
    address = written(tmp_path)
    with opened(address) as (page, asked):
        assert page.title() == "Report: n.ipynb"
        assert covered(page) == []
    assert [one for one in asked if not one.startswith("data:")] == [address]


@pytest.mark.parametrize("box", [".output", ".markdown"])
@pytest.mark.parametrize("style", ["position: fixed; inset: 0", COVER, "margin: -4000px; height: 9000px"])
def test_even_what_no_firewall_had_cleaned_would_stay_in_its_box(tmp_path: Path, box: str, style: str) -> None:
    with opened(written(tmp_path)) as (page, _):
        put = "([box, style]) => { document.querySelector(box).innerHTML = `<div style='${style}'>well</div>` }"
        page.evaluate(put, [box, f"{style}; background: red; z-index: 99"])
        assert covered(page) == []


def test_what_a_notebook_says_is_in_a_frame_that_the_report_has_not(tmp_path: Path) -> None:
    with opened(written(tmp_path)) as (page, _):
        widths = "all => all.map(one => getComputedStyle(one).borderLeftWidth)"
        framed = page.eval_on_selector_all(".markdown, .output, .source", widths)
        assert len(framed) == 3 * len(HOSTILE)
        assert "0px" not in framed
        assert set(page.eval_on_selector_all("body, body > h2, body > table, body > .note", widths)) == {"0px"}


ROWS = (
    ("fork", "status", "time", "CPU", "memory", "result", "output"),
    ("1", "ok", "21.24 s", "2.07 s", "119.4 MiB", "2", f"<pre>{'Sort, join what touches, keep the end. ' * 9}</pre>"),
    ("4", "died", "4.54 s", "0.00 s", "0 KiB", "The VM powered itself off.", ""),
)
LINES = """all => all.map(one => {
    const range = document.createRange();
    range.selectNodeContents(one);
    return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size;
})"""


@pytest.mark.parametrize(("medium", "width"), [("screen", 1000), ("print", 680)])
def test_what_is_short_in_a_table_stays_on_one_line(tmp_path: Path, medium: str, width: int) -> None:
    """As wide as A4 is between its margins, too: words of a table of forks were broken where one cell was long."""
    table = "".join(f"<tr>{''.join(f'<td>{one}</td>' for one in row)}</tr>" for row in ROWS)
    with opened(report_of(tmp_path, cell("forks", f"<table>{table}</table>"))) as (page, _):
        page.emulate_media(media=medium)
        page.set_viewport_size({"width": width, "height": 900})
        lines = page.eval_on_selector_all(".output td", LINES)
        assert len(lines) == 3 * len(ROWS[0])
        *before, long = lines[len(ROWS[0]) : 2 * len(ROWS[0])]
        assert (set(lines[: len(ROWS[0])]), set(before)) == ({1}, {1})
        assert long > 1
