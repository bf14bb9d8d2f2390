"""Makes the report of a notebook: from its file, the audit log, and what this host knows besides."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import host_error
from agentvm_kernel.image.store import ImageStore
from agentvm_kernel.observe.curves import FOLDER
from agentvm_kernel.observe.outputs import digest_of_outputs
from agentvm_kernel.observe.verify import Verdict, verify
from agentvm_kernel.report.content import make_content
from agentvm_kernel.report.curves import curves_of
from agentvm_kernel.report.document import Document, read_document
from agentvm_kernel.report.environment import Environment, environments
from agentvm_kernel.report.hosts import hosts_of
from agentvm_kernel.report.matching import Match, match
from agentvm_kernel.report.page import render
from agentvm_kernel.report.record import Found, find_sessions
from agentvm_kernel.supervisor.execution_messages import digest_of


@dataclass(frozen=True)
class Gathered:
    """What is known of a notebook.

    Attributes:
        document: The notebook.
        found: What the audit log has of it.
        matches: Its code cells' runs.
        images: Of its sessions.
        log: What was found of the audit log.
        made: When that was looked up, seconds since 1970.
    """

    document: Document
    found: Found
    matches: tuple[Match, ...]
    images: tuple[Environment, ...]
    log: Verdict
    made: float


@dataclass(frozen=True)
class Report(Gathered):
    """A report.

    Attributes:
        page: The page.
    """

    page: str


def make_report(notebook: Path, paths: Paths) -> Report:
    """Make the report of a notebook; blocks.

    Args:
        notebook: Its file.
        paths: Where the audit log and the images are.

    Raises:
        ReportError: the notebook cannot be read.
        HostError: the audit log cannot.
    """
    known = gather(notebook, paths)
    try:
        hosts = hosts_of(known.found.sessions, paths.state / "connections")
        curves = curves_of(known.found.sessions, paths.state / FOLDER)
    except OSError as error:
        raise host_error(error) from error
    content = make_content(
        known.document, known.found, known.matches, hosts, curves, known.images, known.log, known.made
    )  # fmt: skip
    return Report(known.document, known.found, known.matches, known.images, known.log, known.made, page=render(content))


def gather(notebook: Path, paths: Paths) -> Gathered:
    """Look up what is known of a notebook; blocks.

    Args:
        notebook: Its file.
        paths: Where the audit log and the images are.

    Raises:
        ReportError: the notebook cannot be read.
        HostError: the audit log cannot.
    """
    now = time.time()
    document = read_document(notebook)
    codes = {digest_of(cell.source) for cell in document.cells if cell.kind == "code" and cell.source.strip()}
    outputs = {digest_of_outputs(cell.outputs) for cell in document.cells if cell.outputs} - {""}
    names = {str(notebook.absolute()), str(notebook.resolve())}
    folder = paths.state / "audit"
    try:
        found = find_sessions(folder, names, codes, outputs)
        log = verify(folder)
        images = tuple(environments((one.acquired.image for one in found.sessions), ImageStore(paths.cache)))
    except OSError as error:
        raise host_error(error) from error
    return Gathered(document, found, tuple(match(document.cells, found.sessions)), images, log, now)
