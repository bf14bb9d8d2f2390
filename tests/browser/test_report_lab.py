"""A notebook that a user ran in JupyterLab, and its report: found by name, each cell by its id, shown as recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest

from agentvm_kernel.config import Paths
from agentvm_kernel.report.make import make_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab_bed import CHROMIUM, chromium, jupyter, lab, write_notebook  # noqa: E402

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(600),
]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
CELLS = {
    "texts": "import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('more')\n'result\\nof two lines'",
    "picture": f"import base64\nfrom IPython.display import Image\nImage(base64.b64decode('{PNG}'))",
    "markup": "from IPython.display import HTML\nHTML('<b onclick=x()>bold</b>\\n<img src=https://evil.example/x.png>')",
    "json": "from IPython.display import JSON\nJSON({'b': [1, 2.5, None], 'a': 'x'})",
    "updated": "from IPython.display import display, update_display\n"
    "display('first', display_id='d')\nupdate_display('last', display_id='d')",
    "cleared": "from IPython.display import clear_output\nprint('gone')\nclear_output(wait=True)\nprint('kept')",
    "error": "1 / 0",
    "nothing": "pass",
    "bar": "print('10 %', end='\\r')\nprint('20 %')",
}


def test_what_jupyterlab_has_saved_is_as_recorded(
    tmp_path: Path, vm_paths: Paths, vm_environment: Mapping[str, str]
) -> None:
    with chromium() as browser, jupyter(tmp_path, vm_environment) as server, lab(browser, server) as opened:
        path = server.folder / "analysis.ipynb"
        write_notebook(path, CELLS, "agentvm")
        opened.open("analysis.ipynb", "agentvm")
        opened.run()
        opened.settle()
        opened.save()
        opened.shut_down()
        report = make_report(path, vm_paths)
        assert report.found.by == "name"
        standings = dict(zip(CELLS, (match.standing for match in report.matches), strict=True))
        assert standings == dict.fromkeys(CELLS, "as recorded") | {"bar": "not recorded"}
        ids = {cell["id"] for cell in json.loads(path.read_text())["cells"]}
        assert {run.cell for session in report.found.sessions for run in session.runs} == ids

        node = nbformat.read(path, as_version=4)
        node.cells[0].outputs[0].text = "0ut\n"
        nbformat.write(node, path)
        assert make_report(path, vm_paths).matches[0].standing == "changed"
