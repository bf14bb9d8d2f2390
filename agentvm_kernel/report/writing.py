"""Writes a report where it is wanted, in the forms that are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentvm_kernel.config import Paths
from agentvm_kernel.durable import Disk
from agentvm_kernel.errors import ReportError, host_error
from agentvm_kernel.report.make import make_report
from agentvm_kernel.report.pack import pack
from agentvm_kernel.report.pdf import print_page
from agentvm_kernel.report.signature import own_key

_SHOWN: Final = 10


@dataclass(frozen=True)
class Wanted:
    """In which forms.

    Attributes:
        packed: As one file with the notebook, signed.
        pdf: As a PDF, too.
        strip: Without what this package has written into the notebook.
        author: Who is named; empty for nobody.
    """

    packed: bool = False
    pdf: bool = False
    strip: bool = False
    author: str = ""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        files: The files.
        changed: Numbers of the code cells, from 1, that show something else than their runs showed.
    """

    files: tuple[Path, ...]
    changed: tuple[int, ...]

    def warning(self) -> str:
        """Return what a reader should know before the report goes to others; empty if nothing."""
        if not self.changed:
            return ""
        which = ", ".join(map(str, self.changed[:_SHOWN])) + (", …" if len(self.changed) > _SHOWN else "")
        return f"Changed since they ran, as the report says: the outputs of {len(self.changed)} code cells ({which})."


def write_report(notebook: Path, folder: Path | None, wanted: Wanted, paths: Paths) -> Written:
    """Make a report and write it; blocks.

    Args:
        notebook: The notebook's file.
        folder: Where to; beside the notebook if None.
        wanted: In which forms.
        paths: Where the audit log and the images are.

    Returns:
        What was written.

    Raises:
        ReportError: the notebook cannot be read, the folder is none, or there is nothing that makes PDFs.
        HostError: a file cannot be read or written.
    """
    target = notebook.absolute().parent if folder is None else folder
    if not target.is_dir():
        raise ReportError(f"There is no folder {target}.", "Make it, or name another with -o.")
    report = make_report(notebook, paths)
    stem = f"{notebook.stem}.report"
    files = {f"{stem}.html": report.page.encode()}
    if wanted.pdf:
        files[f"{stem}.pdf"] = print_page(report.page)
    if wanted.packed:
        pdf = files.get(f"{stem}.pdf")
        files = {f"{stem}.zip": pack(report, own_key(paths.state), strip=wanted.strip, author=wanted.author, pdf=pdf)}
    try:
        for name, content in files.items():
            Disk().replace(target / name, content)
    except OSError as error:
        raise host_error(error) from error
    changed = tuple(number for number, one in enumerate(report.matches, 1) if one.standing == "changed")
    return Written(tuple(target / name for name in files), changed)
