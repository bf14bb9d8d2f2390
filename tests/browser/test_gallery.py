"""What users need is not lost: output of common libraries, from a VM, seen in JupyterLab.

Screenshots of every cell lie in the folder that AGENTVM_GALLERY names, for a human to look at.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Lab, chromium, jupyter, lab, write_notebook

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(900),
]

GALLERY = tomllib.loads((Path(__file__).parent / "gallery.toml").read_text())

# What the image "standard" does not have, with what it needs besides. Altair 6 speaks Vega-Lite 6, which JupyterLab 4.6
# does not draw.
WHEELS = [
    *("altair<6", "attrs", "jsonschema", "jsonschema-specifications", "narwhals", "referencing", "rpds-py"),
    *("bokeh", "pyyaml", "xyzservices", "jinja2", "markupsafe", "typing-extensions"),
    *("folium", "branca", "requests", "urllib3", "idna", "certifi", "charset-normalizer"),
    *("plotly", "tqdm", "rich", "markdown-it-py", "mdurl"),
]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The libraries, for the guest's Python: the VM has no network."""
    folder = tmp_path_factory.mktemp("gallery") / "wheels"
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.13", f"--dest={folder}"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *WHEELS], check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, vm_environment: Mapping[str, str], wheels: Path) -> Iterator[Lab]:
    """JupyterLab that has run the gallery."""
    environment = {**vm_environment, "AGENTVM_IMAGE": "standard"}
    install = "!pip install --quiet --no-index --no-deps --no-compile /tmp/wheels/*.whl"
    cells = {"push": f"%push {wheels} /tmp/wheels", "install": install}
    cells |= {name: entry["code"].strip() for name, entry in GALLERY.items()}
    with jupyter(tmp_path_factory.mktemp("jupyter"), environment) as server, chromium() as browser:
        write_notebook(server.folder / "gallery.ipynb", cells, "agentvm")
        with lab(browser, server) as opened:
            opened.open("gallery.ipynb", "agentvm")
            assert opened.run() == []
            opened.settle()
            yield opened
            opened.close()


@pytest.mark.parametrize("name", GALLERY)
def test_output_is_drawn(gallery: Lab, name: str) -> None:
    entry = GALLERY[name]
    cell = gallery.page.locator(f".jp-Cell >> nth={2 + list(GALLERY).index(name)}")
    cell.scroll_into_view_if_needed()
    try:
        found = gallery.find(cell, entry["selector"])
        assert found is not None
        if "color" in entry:
            assert entry["color"] in found.evaluate_all("all => all.map(it => getComputedStyle(it).backgroundColor)")
        shown = cell.locator(".jp-Cell-outputArea").inner_text()
        assert entry.get("text", "") in shown
        assert shown.count("blocked:") == ("note" in entry)
        assert entry.get("note", "") in shown
    finally:
        if folder := os.environ.get("AGENTVM_GALLERY"):
            cell.screenshot(path=Path(folder) / f"{name}.png")
