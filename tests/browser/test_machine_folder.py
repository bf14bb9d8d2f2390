"""A machine that shares a folder, in JupyterLab: who goes back from the panel is told where it is not shared again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Browser, jupyter, lab, write_notebook
from panel_bed import PATIENCE, Visit
from playwright.sync_api import expect
from vms import environment_of

from agentvm_kernel.config import Paths

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(600),
]

CELLS = {"share": "%workspace data", "say": "import os; print(os.listdir('/workspace/shared'))"}
WARNING = "The VM does not have the shared folder"


@pytest.fixture
def visit(tmp_path_factory: pytest.TempPathFactory, paths: Paths, browser: Browser) -> Iterator[Visit]:
    environment = {**environment_of(paths), "AGENTVM_IMAGE": "standard"}
    with jupyter(tmp_path_factory.mktemp("jupyter"), environment) as server:
        (server.folder / "data").mkdir()
        (server.folder / "data" / "table.csv").touch()
        write_notebook(server.folder / "sharing.ipynb", CELLS, "agentvm")
        with lab(browser, server) as opened:
            opened.page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
            opened.open("sharing.ipynb", "agentvm")
            yield Visit(server, opened, paths)


def test_a_folder_that_is_not_shared_again_is_told_of_until_it_was_read(visit: Visit) -> None:
    visit.lab.run_one("share")
    visit.runs()
    visit.take("shared")
    warnings = visit.page.get_by_role("alert").filter(has_text=WARNING)
    visit.go_back(visit.row("shared"))
    assert "table.csv" in visit.said()
    expect(warnings).to_have_count(0)
    folder = visit.server.folder / "data"
    folder.rename(folder.with_name("elsewhere"))
    visit.go_back(visit.row("shared"))
    expect(warnings).to_have_count(1, timeout=PATIENCE)
    expect(warnings).to_contain_text("%workspace PATH shares it again")
    visit.picture("unshared", with_news=True)
