"""``agentvm report``: the record of a notebook as a document, and whether one is as it was made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ReportError
from agentvm_kernel.terminal import plain


def report(
    notebook: Annotated[
        Path, typer.Argument(help="The notebook; or `verify`, followed by a report's file.", show_default=False)
    ],
    file: Annotated[Path | None, typer.Argument(help="With `verify`: the report, a .zip.", show_default=False)] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to; beside the notebook by default.")
    ] = None,
    packed: Annotated[bool, typer.Option("--zip", help="Notebook, page and description, in one signed file.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="As a PDF, too; needs Chromium.")] = False,
    strip: Annotated[
        bool, typer.Option("--strip/--open-metadata", help="Leave what this package has written out of the notebook.")
    ] = False,
    author: Annotated[str, typer.Option(help="Name to put into the description; none by default.")] = "",
    key: Annotated[str, typer.Option(metavar="FINGERPRINT", help="With `verify`: whose key it must be.")] = "",
) -> None:
    """Make the report of a notebook: one page that shows what ran, what it reached, and what became of it.

    `agentvm report verify FILE` says whether a report is as it was made, and by whose key; it exits with 1 if not.
    """
    if notebook == Path("verify") and file is not None:
        raise typer.Exit(_verify(file, key))
    if file is not None or key:
        raise ReportError("That is too much.", "Valid is `agentvm report NOTEBOOK` or `agentvm report verify FILE`.")
    from agentvm_kernel.report.writing import Wanted, write_report  # noqa: PLC0415 - other commands need none of it

    wanted = Wanted(packed=packed, pdf=pdf, strip=strip, author=author)
    written = write_report(notebook, folder, wanted, Paths.of_user())
    for path in written.files:
        print(plain(str(path)))  # whoever made the notebook has named it
    if written.changed:
        print(written.warning(), file=sys.stderr)


def _verify(file: Path, key: str) -> int:
    from agentvm_kernel.report.verify import examine  # noqa: PLC0415 - other commands need none of it

    finding = examine(file, Paths.of_user().state, key)
    for line in finding.lines:
        print(line)
    return int(not finding.is_good)
