"""Hostile outputs in a real browser: live from a VM, saved and opened again elsewhere, and converted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from urllib.request import Request, urlopen

import nbformat
import pytest
from canary import Canary, canary
from hostile_corpus import Target, cases, groups, prepare
from nbconvert import HTMLExporter
from output_checker import Checker

from agentvm_kernel.kernel.guestside import GuestSide

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, Error, Jupyter, Lab, Traffic, chromium, jupyter, lab, write_notebook  # noqa: E402

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(900),
]

needs_firewall = pytest.mark.skipif(
    "firewall" not in signature(GuestSide).parameters, reason="the output firewall is not wired in yet"
)

# How many cases at least take effect in JupyterLab as it is, in the groups in which many do. Of the others, it draws
# SVG as an image and leaves out of TeX what is more than mathematics, but other front ends do not; navigation ends the
# page.
CONTROL = {"html_script": 40, "html_remote": 40, "html_reach": 20, "messages": 20, "widgets": 10}

SAVED = "saved.ipynb"

FRONT_ENDS = {"JupyterLab": "lab/tree", "Notebook": "notebooks", "nbclassic": "nbclassic/notebooks"}
"""Where each shows a notebook."""

TEMPLATES = ["lab", "classic", "basic"]
"""Of nbconvert."""

Effects = dict[str, set[str]]
"""Names of cases that took effect, by kind of effect."""


@dataclass(frozen=True)
class Bed:
    """All that hostile output could reach."""

    server: Jupyter
    browser: playwright.Browser
    canary: Canary

    @property
    def target(self) -> Target:
        return Target(self.canary.address, self.server.url)

    def reached(self, names: set[str]) -> Effects:
        """Return which cases had the browser ask a server for something."""
        return {"canary": self.canary.asked_by(names), "server": self.server.asked_by(names)}


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory, vm_environment: Mapping[str, str]) -> Iterator[Bed]:
    with (
        canary() as found,
        jupyter(tmp_path_factory.mktemp("jupyter"), vm_environment) as server,
        chromium() as browser,
    ):
        yield Bed(server, browser, found)


@pytest.fixture(scope="module")
def control_bed(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The same, but for the servers that count: what fires here must not be counted there."""
    with canary() as found, jupyter(tmp_path_factory.mktemp("control"), {}) as server:
        yield Bed(server, bed.browser, found)


@pytest.fixture(scope="module")
def live(bed: Bed) -> dict[str, Effects]:
    """Every group, run in a VM and shown in JupyterLab."""
    return {group: show(bed, group, "agentvm") for group in groups()}


@pytest.fixture(scope="module")
def control(control_bed: Bed) -> dict[str, Effects]:
    """Groups that work, run by a plain ipykernel."""
    return {group: show(control_bed, group, "python3") for group in CONTROL}


def show(bed: Bed, group: str, kernel: str) -> Effects:
    """Run a group and return what took effect."""
    wanted = cases(group, bed.target)
    names = {case.id for case in wanted}
    path = bed.server.folder / f"{group}-{kernel}.ipynb"
    write_notebook(path, {"prepare": prepare(group)} | {case.id: case.source for case in wanted}, kernel)
    effects: Effects = {}
    with lab(bed.browser, bed.server) as opened:
        try:
            effects |= look(opened, path.name, kernel, names)
        except Error as error:
            effects["broken"] = {str(error)}
    return {kind: found for kind, found in (effects | bed.reached(names)).items() if found}


def look(opened: Lab, path: str, kernel: str, names: set[str]) -> Effects:
    opened.open(path, kernel)
    broken = set(opened.run())
    opened.settle()
    effects = opened.fired(sorted(names)) | {"broken": broken}
    opened.close()
    return effects


@needs_firewall
@pytest.mark.parametrize("group", groups())
def test_no_output_of_a_vm_takes_effect_in_jupyterlab(live: dict[str, Effects], group: str) -> None:
    assert live[group] == {}


@needs_firewall
def test_every_group_was_shown(bed: Bed, live: dict[str, Effects]) -> None:
    assert sum(len(cases(group, bed.target)) for group in live) >= 120
    for group in live:
        cells = nbformat.read(bed.server.folder / f"{group}-agentvm.ipynb", as_version=4).cells
        answered = [cell.metadata.case for cell in cells if cell.execution_count is not None]
        assert answered == ["prepare", *(case.id for case in cases(group, bed.target))]


@needs_firewall
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_what_was_saved_does_nothing_in_any_front_end(bed: Bed, live: dict[str, Effects], front_end: str) -> None:
    names = merge(bed, list(live), "agentvm")
    assert scripts_run_in(bed, address_in(bed, front_end), ".jp-OutputArea-output, .output_area") == set()
    assert bed.reached(names) == {"canary": set(), "server": set()}


@needs_firewall
@pytest.mark.parametrize("template", TEMPLATES)
def test_what_was_saved_does_nothing_once_converted(bed: Bed, live: dict[str, Effects], template: str) -> None:
    names = merge(bed, list(live), "agentvm")
    assert scripts_run_in(bed, convert(bed, template), "body") == set()
    assert bed.reached(names) == {"canary": set(), "server": set()}


@needs_firewall
@pytest.mark.parametrize("group", groups())
def test_a_plain_client_is_given_nothing_that_any_renderer_would_run(
    bed: Bed, live: dict[str, Effects], group: str
) -> None:
    assert problems(bed.server.folder / f"{group}-agentvm.ipynb") == {}


@pytest.mark.parametrize("group", CONTROL)
def test_the_checker_sees_what_a_plain_client_is_given_without_the_firewall(
    control_bed: Bed, control: dict[str, Effects], group: str
) -> None:
    # Messages of widgets are not kept in a notebook.
    assert (
        len(problems(control_bed.server.folder / f"{group}-python3.ipynb")) >= (group != "widgets") * CONTROL[group] / 2
    )


@pytest.mark.parametrize("group", CONTROL)
def test_the_same_outputs_take_effect_without_the_firewall(control: dict[str, Effects], group: str) -> None:
    fired = set().union(*(found for kind, found in control[group].items() if kind != "broken"))
    assert len(fired) >= CONTROL[group]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_without_the_firewall_what_was_saved_runs_in_any_front_end(
    control_bed: Bed, control: dict[str, Effects], front_end: str
) -> None:
    merge(control_bed, list(control), "python3")
    assert scripts_run_in(control_bed, address_in(control_bed, front_end), ".jp-OutputArea-output, .output_area")


@pytest.mark.parametrize("template", TEMPLATES)
def test_without_the_firewall_what_was_saved_runs_once_converted(
    control_bed: Bed, control: dict[str, Effects], template: str
) -> None:
    merge(control_bed, list(control), "python3")
    assert scripts_run_in(control_bed, convert(control_bed, template), "body")


def problems(path: Path) -> dict[str, list[str]]:
    """Return what a checker that knows nothing of cleaning has against the outputs that clients were sent, by case."""
    found = {}
    for cell in nbformat.read(path, as_version=4).cells:
        checker = Checker()
        said = [
            problem
            for output in cell.get("outputs", [])
            for problem in checker.output(
                output.output_type, {key: value for key, value in output.items() if key != "output_type"}
            )
        ]
        if said:
            found[cell.metadata.case] = said
    return found


def merge(bed: Bed, names: list[str], kernel: str) -> set[str]:
    """Put what was saved of some groups into one notebook, trusted by the user; return the names of their cases."""
    whole = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "", "language": ""}})
    for name in names:
        whole.cells += nbformat.read(bed.server.folder / f"{name}-{kernel}.ipynb", as_version=4).cells
    assert any(cell.outputs for cell in whole.cells)
    nbformat.write(whole, bed.server.folder / SAVED)
    request = Request(f"{bed.server.url}/api/contents/{SAVED}/trust", method="POST")
    request.add_header("Authorization", f"token {bed.server.token}")
    with urlopen(request) as answer:
        assert answer.status == 201
    return {case.id for name in names for case in cases(name, bed.target)}


def address_in(bed: Bed, front_end: str) -> str:
    return f"{bed.server.url}/{FRONT_ENDS[front_end]}/{SAVED}?token={bed.server.token}"


def convert(bed: Bed, template: str) -> str:
    """Convert what was saved to HTML; return the file's address."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your element with mimetype", UserWarning)  # some outputs are JSON alone
        text, _ = HTMLExporter(template_name=template).from_filename(str(bed.server.folder / SAVED))
    target = bed.server.folder / f"{template}.html"
    target.write_text(text)
    return target.as_uri()


def scripts_run_in(bed: Bed, address: str, content: str) -> set[str]:
    """Open a page, wait until it has drawn some content, and return which cases' scripts ran in it."""
    context = bed.browser.new_context(viewport={"width": 1400, "height": 1000})
    try:
        # Converted notebooks load libraries from the internet.
        context.route(lambda url: not url.startswith(("http://127.", "file:", "data:", "blob:")), lambda it: it.abort())
        page = context.new_page()
        traffic = Traffic(page)
        page.goto(address, timeout=120_000)
        page.wait_for_selector(content, timeout=120_000, state="attached")
        traffic.settle()
        return set(page.evaluate("() => window.__canary ?? []"))
    finally:
        context.close()
