"""The panel in JupyterLab's own test framework, galata, over a real server, supervisor and VMs.

One process of Playwright runs what lies in labextension/machine/ui-tests; its packages are installed there, by its lock
file.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import jupyterlab
from lab_bed import CHROMIUM, FLAGS, jupyter, write_notebook
from ui_packages import SUITE, node, ui_packages

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(900),
]

CELLS = {"one": "x = 1", "two": "x = 2", "say": "print('x is', x)", "mine": "print('mine', mine)"}


def test_the_main_actions_with_galata(tmp_path: Path, vm_environment: Mapping[str, str]) -> None:
    packages = ui_packages()
    helpers = f"--LabServerApp.extra_labextensions_path={Path(jupyterlab.__file__).parent / 'galata'}"
    (tmp_path / "jupyter").mkdir()
    with jupyter(tmp_path / "jupyter", vm_environment, options=[helpers]) as server:
        write_notebook(server.folder / "machine.ipynb", CELLS, "agentvm")
        told = subprocess.run(
            [node() / "bin/node", packages / "@playwright/test/cli.js", "test"],
            cwd=SUITE, capture_output=True, text=True, check=False, timeout=600,
            env=os.environ | {
                "TARGET_URL": server.url, "UI_TESTS_TOKEN": server.token, "UI_TESTS_CHROMIUM": str(CHROMIUM),
                "UI_TESTS_FLAGS": json.dumps(FLAGS), "UI_TESTS_OUTPUT": str(tmp_path / "results"),
            },
        )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    assert "1 passed" in told.stdout
