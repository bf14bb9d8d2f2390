"""The package as users get it: a wheel, in environments of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]

ISOLATED = {"PYTHONPATH": "", "JUPYTER_PATH": ""}
"""What keeps a process from finding the sources that are tested here."""

_SECONDS = 540


def build_wheel(folder: Path) -> Path:
    """Build the wheel of the sources as they are."""
    _pip(Path(sys.executable), "wheel", "--no-deps", f"--wheel-dir={folder}", str(ROOT))
    (wheel,) = folder.glob("agentvm_kernel-*.whl")
    return wheel


def make_environment(folder: Path, *requirements: str, borrows: bool) -> Path:
    """Make a virtual environment, and return its Python.

    Args:
        folder: Where.
        requirements: What is installed.
        borrows: What it lacks it takes from this process's environment, which saves minutes.

    Raises:
        subprocess.CalledProcessError: something cannot be installed.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    if borrows:
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        # A folder that is named here comes after the environment's own; what is named in it in turn is not followed.
        Path(own, "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    if requirements:
        _pip(python, "install", *requirements)
    return python


def install_wheel(python: Path, wheel: Path, *, alone: bool) -> None:
    """Install the wheel, alone or with all that it needs."""
    _pip(python, "install", *(["--no-deps"] if alone else []), str(wheel))


def _pip(python: Path, *arguments: str) -> None:
    environment = os.environ | ISOLATED
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, env=environment, check=True, timeout=_SECONDS, cwd=python.parent)
