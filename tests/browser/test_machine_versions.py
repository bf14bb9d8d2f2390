"""The extension as a wheel brings it, in each JupyterLab and Notebook that it is for: a path that everyone takes.

Over real servers, one supervisor and VMs. Environments with other versions borrow what they do not have from this one;
the newest has nothing but what the wheel brings.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Browser, Jupyter, Lab, jupyter, lab, write_notebook
from panel_bed import PATIENCE, Visit
from playwright.sync_api import Locator, Page, expect
from vms import environment_of
from wheel_bed import ISOLATED, build_wheel, install_wheel, make_environment

from agentvm_kernel.config import Paths

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(900),
]

NOTEBOOKS = {"4.4": "7.4", "4.5": "7.5", "4.6": "7.6"}
"""The version of Notebook that goes with each JupyterLab."""

NEWEST = "4.6"
_SANITIZER = """
import sys
from pathlib import Path
from jupyterlab.commands import get_app_dir
from jupyterlab_server.settings_utils import get_settings
app = Path(get_app_dir())
name = "@jupyterlab/apputils-extension:sanitizer"
found, _ = get_settings(str(app / "settings"), str(app / "schemas"), sys.argv[1], schema_name=name)
print(found["schema"]["properties"]["allowCommandLinker"]["default"])
"""
CELLS = {"one": "x = 1", "two": "x = 2", "say": "print('x is', x)"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module", params=NOTEBOOKS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def python(version: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has this JupyterLab, Notebook, and the wheel."""
    wanted = [f"jupyterlab=={version}.*", f"notebook=={NOTEBOOKS[version]}.*"]
    is_newest = version == NEWEST
    try:
        made = make_environment(tmp_path_factory.mktemp("lab"), *wanted, borrows=not is_newest)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{' and '.join(wanted)} cannot be installed: {error}")
    install_wheel(made, wheel, alone=not is_newest)
    return made


@pytest.fixture(scope="module")
def server(python: Path, paths: Paths, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    environment = environment_of(paths) | ISOLATED
    with jupyter(tmp_path_factory.mktemp("jupyter"), environment, python=str(python)) as running:
        write_notebook(running.folder / "lab.ipynb", CELLS, "agentvm")
        write_notebook(running.folder / "notebook.ipynb", CELLS, "agentvm")
        yield running


def told(python: Path, *arguments: str | Path) -> str:
    """What a program says."""
    run = subprocess.run([python, *arguments], env=os.environ | ISOLATED, capture_output=True, text=True, check=True)
    return run.stdout + run.stderr


def takes_a_snapshot(button: Locator) -> None:
    expect(button).to_be_visible(timeout=PATIENCE)
    expect(button).not_to_have_attribute("aria-disabled", "true", timeout=PATIENCE)
    button.click()
    expect(button).to_have_class(re.compile("avm-mod-done"), timeout=PATIENCE)


def goes_back(visit: Visit) -> None:
    """Go back in the panel to the only snapshot, which the machine goes on from."""
    row = visit.tree.get_by_role("treeitem").nth(1)
    row.click()
    expect(visit.panel.get_by_role("button", name="Remove …", exact=True)).to_be_disabled()
    expect(visit.panel).to_contain_text("The machine goes on from it")
    visit.go_back(row)


def test_the_wheel_activates_both_extensions(python: Path) -> None:
    # `labextension check` knows of no prebuilt extension, whoever's it is.
    assert re.search(r"agentvm-kernel v\S+ .*enabled.*OK", told(python, "-m", "jupyterlab.labextensions", "list"))
    extensions = told(python, "-m", "jupyter_server.extension.serverextension", "list")
    assert re.search(r"agentvm_kernel\.server.*enabled", extensions), extensions
    assert re.search(r"agentvm_kernel\.server .*OK", extensions), extensions


def test_a_link_in_a_notebook_carries_out_no_command(python: Path, tmp_path: Path) -> None:
    assert told(python, "-c", _SANITIZER, tmp_path) == "False\n"


def test_jupyterlab_has_the_panel_the_status_the_button_and_the_way_back(
    server: Jupyter, browser: Browser, paths: Paths, version: str
) -> None:
    with lab(browser, server) as opened:
        visit = Visit(server, opened, paths)
        assert opened.page.evaluate("() => jupyterapp.version").startswith(version)
        opened.page.evaluate("() => jupyterapp.commands.execute('agentvm:open-panel')")
        opened.open("lab.ipynb", "agentvm")
        opened.run_one("one")
        visit.runs()
        expect(visit.status).to_contain_text(re.compile(r"VM · \d+ % · [\d.]+ MiB · filtered"), timeout=PATIENCE)
        takes_a_snapshot(opened.page.locator(".jp-NotebookPanel [data-command='agentvm:snapshot']").first)
        assert len(visit.snapshots) == 1
        opened.run_one("two")
        assert "x is 2" in visit.said()
        goes_back(visit)
        assert "x is 1" in visit.said()
        visit.picture(f"lab_{version}")
        opened.close()


def test_notebook_has_the_panel_the_button_and_the_way_back(
    server: Jupyter, browser: Browser, paths: Paths, version: str
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    try:
        page = context.new_page()
        page.goto(f"{server.url}/notebooks/notebook.ipynb?token={server.token}")
        visit = Visit(server, Lab(page), paths)
        button = page.locator("[data-command='agentvm:snapshot']").first
        expect(button).to_be_visible(timeout=PATIENCE)
        assert run(page, 0) == ""
        takes_a_snapshot(button)
        assert len(visit.snapshots) == 1
        run(page, 1)
        assert run(page, 2) == "x is 2"
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        for item in ("Virtual Machine", "Show the Virtual Machine"):
            page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()
        visit.runs()
        goes_back(visit)
        assert run(page, 2) == "x is 1"
    finally:
        context.close()
        server.end_kernels()


def run(page: Page, number: int) -> str:
    """Run a cell by the keyboard; return what it shows once it has ended."""
    cell = page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{number}']")
    prompt = cell.locator(".jp-InputPrompt")
    before = prompt.inner_text()
    cell.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    expect(prompt).not_to_have_text(before, timeout=PATIENCE)
    expect(prompt).to_have_text(re.compile(r"\[\d+\]"), timeout=PATIENCE)
    return cell.locator(".jp-Cell-outputArea").inner_text().strip()
