"""Fetches the guest's Python packages on the host, with the host's pip and its configuration."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from agentvm_kernel.errors import ImageError

# What wheels call a system with Debian 13's C library (2.41); 2_17 and older have names of their own.
_PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(41, 4, -1)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
]


def fetch(requirements: Sequence[str], *, python: str, target: Path, log: Path) -> None:
    """Download wheels for the guest's Python, with everything they need.

    The host does it because indexes, certificates, passwords and local folders of wheels that pip is configured with
    are visible there and not in the guest's tree.

    Args:
        requirements: What to fetch.
        python: The guest's Python version, ``major.minor``.
        target: Folder for the wheels.
        log: File that pip's messages are appended to.

    Raises:
        ImageError: pip is missing or failed.
    """
    command = [sys.executable, "-m", "pip", "download", "--dest", str(target), "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    command += ["--implementation", "cp", "--python-version", python]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run(
        [*command, *requirements], capture_output=True, text=True, errors="replace", check=False, cwd=target
    )
    with log.open("a", encoding="utf-8") as out:
        out.write(done.stdout + done.stderr)
    if done.returncode != 0:
        errors = re.findall(r"^(?:ERROR: )?(.*\S)", done.stderr, re.MULTILINE)
        raise ImageError(
            f"Fetching the guest's Python packages failed: {errors[-1] if errors else 'pip said nothing'}",
            f"The log is {log}. `pip config list` shows which index is asked.",
        )
