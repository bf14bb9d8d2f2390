"""A VM that floods the browser ends in a note: JupyterLab goes on to answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Lab, chromium, jupyter, lab, write_notebook

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(900),
]

# The kernel's own session, because what a flood costs the guest is not the point here.
_SAY = """
from IPython import get_ipython
kernel = get_ipython().kernel
def say(kind, content):
    kernel.session.send(kernel.iopub_socket, kind, content, parent=kernel.get_parent(), ident=kind.encode())
"""
_WIDGET = (
    '{"comm_id": f"c{n}", "target_name": "jupyter.widget", "data": {"state": {"_model_name": "TextModel",'
    ' "_model_module": "@jupyter-widgets/controls", "_model_module_version": "2.0.0"}, "buffer_paths": []}}'
)
FLOODS = {
    "displays": 'for n in range(10_000): say("display_data", {"data": {"text/plain": str(n)}, "metadata": {}})',
    "comms": f'for n in range(12_000): say("comm_open", {_WIDGET})',
}
_NOTE = "The rest of this cell's output is left out"


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory, vm_environment: Mapping[str, str]) -> Iterator[Lab]:
    """JupyterLab after the floods, and a cell that ran behind them."""
    cells = {"prepare": _SAY} | FLOODS | {"after": "print('still', 'here')"}
    with jupyter(tmp_path_factory.mktemp("jupyter"), vm_environment) as server, chromium() as browser:
        write_notebook(server.folder / "flood.ipynb", cells, "agentvm")
        with lab(browser, server) as opened:
            opened.open("flood.ipynb", "agentvm")
            assert opened.run() == []
            opened.settle()
            yield opened
            opened.close()


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_ends_in_one_note(flooded: Lab, flood: str) -> None:
    said = "".join("".join(output["text"]) for output in flooded.kept(flood) if output.get("name") == "stderr")
    assert said.count(_NOTE) == 1


def test_the_page_goes_on(flooded: Lab) -> None:
    last = flooded.page.locator(f".jp-Cell >> nth={1 + len(FLOODS)}")
    assert "still here" in last.inner_text()
