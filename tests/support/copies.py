"""Runs `agentvm cp` as users do."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from jupyter_core.paths import jupyter_runtime_dir

COMMAND = [sys.executable, "-c", "from agentvm_kernel.cli import main; main()", "cp"]
SECONDS = 240


class Copies:
    """Starts `agentvm cp` in a folder.

    Args:
        folder: Where.
        environment: With a supervisor.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = {**os.environ, **environment}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *words], cwd=self.folder, env=self._environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str) -> str:
        """Return what it says when it succeeds."""
        with self.start(*words) as process:
            out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, err) == (0, ""), err
        return out

    def fails(self, *words: str) -> str:
        """Return what it says when it fails."""
        with self.start(*words) as process:
            out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, out) == (1, "")
        return err


def connection_file() -> str:
    """Where a Jupyter server puts a kernel's connection file."""
    folder = Path(jupyter_runtime_dir())
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"kernel-{uuid.uuid4()}.json")
