"""A VM that floods the browser ends in a note: JupyterLab goes on to answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Browser, Jupyter, Lab, chromium, jupyter, lab, write_notebook

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(900),
]

# The kernel's own session and ready messages, because what a flood costs the guest is not the point here.
_SAY = """
from IPython import get_ipython
kernel = get_ipython().kernel
def say(kind, content):
    kernel.session.send(kernel.iopub_socket, kind, content, parent=kernel.get_parent(), ident=kind.encode())

def say_of(kind, content, letter, count):
    session = kernel.session
    message = session.msg(kind, {"comm_id": "NAME"} | content, parent=kernel.get_parent())
    ident, mark, _, *parts, body = session.serialize(message, ident=kind.encode())
    for number in range(count):
        now = [*parts, body.replace(b"NAME", f"{letter}{number}".encode())]
        kernel.iopub_socket.send_multipart([ident, mark, session.sign(now), *now])
"""
_WIDGET = (
    '{"target_name": "jupyter.widget", "data": {"state": {"_model_name": "TextModel",'
    ' "_model_module": "@jupyter-widgets/controls", "_model_module_version": "2.0.0"}, "buffer_paths": []}}'
)
FLOODS = {
    "displays": 'for n in range(10_000): say("display_data", {"data": {"text/plain": str(n)}, "metadata": {}})',
    "comms": f'say_of("comm_open", {_WIDGET}, "c", 12_000)',
}
# A widget is three comms, as ipywidgets have them; of one cell no more are shown than its output may be long.
WIDGETS = {
    "widgets": f'say_of("comm_open", {_WIDGET}, "a", 15_000)',
    "more widgets": f'say_of("comm_open", {_WIDGET}, "b", 5_000)',
    "close": 'say_of("comm_close", {"data": {}}, "a", 1_000)',
    "again": f'say_of("comm_open", {_WIDGET}, "d", 1_000)',
}
MOST = 10_000
"""Comms of a notebook."""

_NOTE = "The rest of this cell's output is left out"


@pytest.fixture(scope="module")
def bed(
    tmp_path_factory: pytest.TempPathFactory, vm_environment: Mapping[str, str]
) -> Iterator[tuple[Browser, Jupyter]]:
    with jupyter(tmp_path_factory.mktemp("jupyter"), vm_environment) as server, chromium() as browser:
        yield browser, server


@contextmanager
def opened_notebook(bed: tuple[Browser, Jupyter], name: str, cells: Mapping[str, str]) -> Iterator[Lab]:
    """Open a notebook with these cells, and one behind them; its kernel ends with the context."""
    browser, server = bed
    write_notebook(server.folder / name, {"prepare": _SAY} | cells | {"after": "print('still', 'here')"}, "agentvm")
    with lab(browser, server) as opened:
        opened.open(name, "agentvm")
        yield opened
        opened.settle()
        opened.close()


@pytest.fixture(scope="module")
def flooded(bed: tuple[Browser, Jupyter]) -> Iterator[Lab]:
    """JupyterLab after the floods, and a cell that ran behind them."""
    with opened_notebook(bed, "flood.ipynb", FLOODS) as opened:
        assert opened.run() == []
        opened.settle()
        yield opened


def said(opened: Lab, name: str) -> str:
    """What the notes under a cell say."""
    return "".join("".join(output["text"]) for output in opened.kept(name) if output.get("name") == "stderr")


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_ends_in_one_note(flooded: Lab, flood: str) -> None:
    assert said(flooded, flood).count(_NOTE) == 1


def test_the_page_goes_on(flooded: Lab) -> None:
    last = flooded.page.locator(f".jp-Cell >> nth={1 + len(FLOODS)}")
    assert "still here" in last.inner_text()


@pytest.fixture(scope="module")
def crowded(bed: tuple[Browser, Jupyter]) -> Iterator[tuple[Lab, list[int]]]:
    """JupyterLab after a cell that opens 5,000 widgets and others; how many comms there were after each."""
    with opened_notebook(bed, "crowd.ipynb", WIDGETS) as opened:
        counts = opened.page.evaluate("() => bed.counted()")
        opened.settle()
        yield opened, counts


def test_a_cell_with_5000_widgets_gets_one_note(crowded: tuple[Lab, list[int]]) -> None:
    opened, counts = crowded
    text = said(opened, "widgets")
    assert text.count(_NOTE) == 1
    assert "blocked" not in text
    assert 8_000 < counts[1] < MOST


def test_a_notebook_has_so_many_comms_and_new_ones_once_some_are_closed(crowded: tuple[Lab, list[int]]) -> None:
    opened, counts = crowded
    text = said(opened, "more widgets")
    assert text.count("blocked: too many comms open") == 1
    assert counts[2] == MOST
    assert f"({5_000 - (MOST - counts[1])} times)" in text
    assert counts[3] == MOST - 1_000
    assert counts[4] == MOST
    assert said(opened, "again") == ""


def test_the_page_goes_on_with_so_many(crowded: tuple[Lab, list[int]]) -> None:
    assert "still here" in crowded[0].page.locator(f".jp-Cell >> nth={1 + len(WIDGETS)}").inner_text()
