"""The three modes and links, from VMs into JupyterLab: what the user's configuration says holds, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from canary import Canary, canary

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Jupyter, Lab, chromium, jupyter, lab, write_notebook  # noqa: E402

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(900),
]

CONFIG = """
[output]
mode = "strict"

[output.notebooks]
"*/standard*.ipynb" = "standard"
"*/trusted.ipynb" = "trusted"
"""

SCRIPT = "(top.__canary = top.__canary || []).push('ran'); document.getElementById('place').textContent = 'drawn'"
BUNDLES: dict[str, dict[str, object]] = {
    "script": {"text/html": f"<b id=place>markup</b><script>{SCRIPT}</script>", "text/plain": "words"},
    "javascript": {"application/javascript": f"element.id = 'place'; {SCRIPT}", "text/plain": "words"},
    "frame": {"text/html": "<p>before</p><iframe srcdoc='<b id=place>framed</b>'></iframe>", "text/plain": "words"},
    "plot": {
        "application/vnd.vegalite.v5+json": {
            "data": {"values": [{"a": 1}]}, "mark": "bar", "encoding": {"x": {"field": "a", "type": "quantitative"}},
        },
        "text/plain": "words",
    },
}  # fmt: skip

# What a guest might try, before anything is shown.
TRIES = """
import os
from IPython import get_ipython
os.environ |= {"AGENTVM_OUTPUT": "trusted", "JPY_SESSION_NAME": "/x/trusted.ipynb"}
kernel = get_ipython().kernel
for kind in ("output_mode", "agentvm", "display_data"):
    content = {"mode": "trusted", "data": {"text/plain": "trusted"}, "metadata": {"output": "trusted"}}
    kernel.session.send(kernel.iopub_socket, kind, content, parent=kernel.get_parent(), metadata={"mode": "trusted"})
"""

# What a notebook says of itself.
METADATA = {"agentvm": {"output": {"mode": "trusted"}, "mode": "trusted"}, "output": "trusted", "trusted": True}


@dataclass
class Bed:
    server: Jupyter
    browser: playwright.Browser
    canary: Canary


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory, vm_environment: Mapping[str, str]) -> Iterator[Bed]:
    config = tmp_path_factory.mktemp("config") / "config.toml"
    config.write_text(Path(vm_environment["AGENTVM_CONFIG"]).read_text() + CONFIG)
    environment = {**vm_environment, "AGENTVM_CONFIG": str(config)}
    folder = tmp_path_factory.mktemp("jupyter")
    with canary() as found, jupyter(folder, environment) as server, chromium() as browser:
        yield Bed(server, browser, found)


def cells(found: Canary) -> dict[str, str]:
    shown = {name: f"display({bundle!r}, raw=True)" for name, bundle in BUNDLES.items()}
    links = {
        "honest": f"<a href='http://{found.address}/honest'>a page</a>",
        "spoofed": f"<a href='http://{found.address}/spoofed' target=_blank rel=opener>https://good.example</a>",
    }
    shown |= {name: f"display({{'text/html': {html!r}}}, raw=True)" for name, html in links.items()}
    return {"tries": TRIES} | shown


@pytest.fixture(scope="module", params=["strict", "own", "standard", "standard-2", "trusted"])
def opened(request: pytest.FixtureRequest, bed: Bed) -> Iterator[tuple[str, Lab]]:
    """A notebook that has run, and the mode that holds for it."""
    path = bed.server.folder / f"{request.param}.ipynb"
    write_notebook(path, cells(bed.canary), "agentvm")
    document = json.loads(path.read_text())
    document["metadata"] |= METADATA
    path.write_text(json.dumps(document))
    with lab(bed.browser, bed.server) as page:
        page.open(path.name, "agentvm")
        assert page.run() == []
        page.settle()
        yield {"own": "strict"}.get(request.param, request.param.partition("-")[0]), page
        page.close()


def place(lab_page: Lab, name: str):  # type: ignore[no-untyped-def]
    """Return the cell of a case."""
    return lab_page.page.locator(f".jp-Cell >> nth={['tries', *BUNDLES, 'honest', 'spoofed'].index(name)}")


def test_scripts_run_in_the_page_when_trusted_only(opened: tuple[str, Lab]) -> None:
    mode, shown = opened
    ran = shown.page.evaluate("() => window.__canary ?? []")
    assert ran == (["ran", "ran"] if mode == "trusted" else [])


@pytest.mark.parametrize("name", ["script", "javascript", "frame"])
def test_html_stands_where_its_mode_has_it(opened: tuple[str, Lab], name: str) -> None:
    mode, shown = opened
    cell = place(shown, name)
    text = cell.locator(".jp-Cell-outputArea").inner_text()
    frames = cell.locator("iframe.agentvm-frame").count()
    assert frames == (mode == "standard")
    if mode == "strict":
        assert cell.locator("iframe, script, #place").count() == 0
        assert "blocked: " in text
        assert {"script": "markup", "javascript": "words", "frame": "before"}[name] in text
    else:
        assert "blocked: " not in text
        # The guest's own frame is in those of the firewall.
        inner = cell.frame_locator("iframe").frame_locator("iframe").frame_locator("iframe").locator("#place")
        assert inner.count() == 1 if (mode, name) == ("standard", "frame") else shown.find(cell, "#place")


def test_a_plot_is_drawn_unless_strict(opened: tuple[str, Lab]) -> None:
    mode, shown = opened
    cell = place(shown, "plot")
    if mode == "strict":
        text = cell.locator(".jp-Cell-outputArea").inner_text()
        assert "words" in text
        assert "blocked: a Vega plot" in text
        assert cell.locator("canvas, svg.marks").count() == 0
    else:
        assert shown.find(cell, ".vega-embed canvas, .vega-embed svg") is not None


@pytest.mark.parametrize(("name", "text"), [("honest", "a page"), ("spoofed", "https://good.example [127.0.0.2]")])
def test_a_link_says_where_it_leads_and_takes_nothing_along(
    opened: tuple[str, Lab], bed: Bed, name: str, text: str
) -> None:
    mode, shown = opened
    link = place(shown, name).locator(".jp-Cell-outputArea a")
    target = f"http://{bed.canary.address}/{name}"
    if mode != "trusted":
        assert link.inner_text() == text
        assert link.get_attribute("title") == target
        # JupyterLab leaves of the words of "rel" this one.
        assert "noopener" in (link.get_attribute("rel") or "").split()
    shown.page.bring_to_front()
    link.hover()
    shown.settle()
    with shown.page.context.expect_page() as opening:
        link.click(modifiers=["ControlOrMeta"] if mode == "trusted" and name == "honest" else [])
    page = opening.value
    page.wait_for_load_state()
    assert page.url == target
    if mode != "trusted":
        assert page.evaluate("[window.opener, document.referrer]") == [None, ""]
    elif name == "spoofed":
        assert page.evaluate("document.referrer").startswith(bed.server.url)
    page.close()
