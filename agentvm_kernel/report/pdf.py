"""Prints a page as a PDF, by a Chromium without a window."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import ReportError

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SECONDS: Final = 180
_FLAGS: Final = (
    "--headless", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


def print_page(page: str) -> bytes:
    """Return a page as a PDF.

    Args:
        page: HTML that loads nothing.

    Raises:
        ReportError: there is no Chromium, or it failed.
    """
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        raise ReportError("A PDF needs Chromium.", "Install it, or print the page from your browser.")
    with tempfile.TemporaryDirectory(prefix="agentvm-report-") as name:
        folder = Path(name)
        (folder / "page.html").write_text(page, encoding="utf-8")
        flags = [*_FLAGS, f"--user-data-dir={folder / 'profile'}", f"--print-to-pdf={folder / 'page.pdf'}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # root has none; the page runs nothing
        command = [program, *flags, (folder / "page.html").as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise ReportError(f"Chromium did not print the page within {_SECONDS} s.") from error
        if not (folder / "page.pdf").is_file():
            raise ReportError(f"Chromium did not print the page (status {done.returncode}).", "Try it without --pdf.")
        return (folder / "page.pdf").read_bytes()
