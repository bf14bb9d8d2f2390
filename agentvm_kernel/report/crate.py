"""Describes a report for machines: an RO-Crate of the Workflow Run profiles (RO-Crate 1.1, Workflow Run Crate 0.5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from agentvm_kernel import __version__
from agentvm_kernel.report.make import Report
from agentvm_kernel.report.record import Session

_CONTEXT: Final = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
_CRATE: Final = "https://w3id.org/ro/crate/1.1"
_PROFILES: Final = (
    ("https://w3id.org/ro/wfrun/process/0.5", "Process Run Crate", "0.5"),
    ("https://w3id.org/ro/wfrun/workflow/0.5", "Workflow Run Crate", "0.5"),
    ("https://w3id.org/workflowhub/workflow-ro-crate/1.0", "Workflow RO-Crate", "1.0"),
)
_KINDS: Final = {
    "report.html": ("Report", "text/html"),
    "report.pdf": ("Report, for printing", "application/pdf"),
    "record.json": ("Recorded path: what ran, in which order, in which machine", "application/json"),
}
_PYTHON: Final = "#python"
_KERNEL: Final = "#agentvm-kernel"

Entity = dict[str, Any]


def describe(report: Report, notebook: str, files: dict[str, int], author: str) -> dict[str, Any]:
    """Return what is in ``ro-crate-metadata.json``.

    Args:
        report: The report.
        notebook: The name under which the notebook is packed.
        files: Lengths of the files that are described, bytes, by name.
        author: Who is named; empty for nobody.
    """
    actions = [_action(session, place, notebook, files) for place, session in enumerate(report.found.sessions, 1)]
    parts = [{"@id": name} for name in files]
    made = _moment(report.made)
    root: Entity = {
        "@id": "./", "@type": "Dataset", "name": f"Report of {report.document.name}",
        "description": "A notebook as it was run in virtual machines by AgentVM Kernel, and the record of that.",
        "datePublished": made, "license": "No license is stated; ask whoever gave you this.",
        "conformsTo": [{"@id": profile} for profile, *_ in _PROFILES], "hasPart": parts,
        "mainEntity": {"@id": notebook}, **_listed("mentions", [action["@id"] for action in actions]),
    }  # fmt: skip
    people: list[Entity] = []
    if author:
        people = [{"@id": "#author", "@type": "Person", "name": author}]
        root["author"] = {"@id": "#author"}
        actions = [action | {"agent": {"@id": "#author"}} for action in actions]
    entities = [
        _metadata(), root, *map(_profile, _PROFILES), _notebook(notebook, files[notebook]), *_software(), *people,
        *(_file(name, length) for name, length in files.items() if name != notebook), *actions,
    ]  # fmt: skip
    return {"@context": _CONTEXT, "@graph": entities}


def _metadata() -> Entity:
    return {
        "@id": "ro-crate-metadata.json", "@type": "CreativeWork", "about": {"@id": "./"},
        "conformsTo": [{"@id": _CRATE}, {"@id": _PROFILES[-1][0]}],
    }  # fmt: skip


def _profile(profile: tuple[str, str, str]) -> Entity:
    identifier, name, version = profile
    return {"@id": identifier, "@type": "CreativeWork", "name": name, "version": version}


def _notebook(name: str, length: int) -> Entity:
    return {
        "@id": name, "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"], "name": name,
        "contentSize": str(length), "encodingFormat": "application/x-ipynb+json",
        "programmingLanguage": {"@id": _PYTHON}, "softwareRequirements": {"@id": _KERNEL},
    }  # fmt: skip


def _software() -> list[Entity]:
    return [
        {
            "@id": _PYTHON, "@type": "ComputerLanguage", "name": "Python (Jupyter notebook)",
            "url": {"@id": "https://jupyter.org/"},
        },
        {
            "@id": _KERNEL, "@type": "SoftwareApplication", "name": "AgentVM Kernel", "softwareVersion": __version__,
        },
    ]  # fmt: skip


def _file(name: str, length: int) -> Entity:
    title, kind = _KINDS[name]
    return {"@id": name, "@type": "File", "name": title, "contentSize": str(length), "encodingFormat": kind}


def _action(session: Session, place: int, notebook: str, files: dict[str, int]) -> Entity:
    failed = sum(run.outcome in {"failed", "timeout"} for run in session.runs)
    has_failed = any(run.outcome in {"failed", "timeout"} for run in session.way)
    machine = session.acquired
    said = f"{len(session.runs)} runs of cells, {failed} failed, {len(session.returns)} ways back"
    described = f"image {machine.image}, profile {machine.profile}, {machine.accelerator}, {machine.hypervisor}"
    action: Entity = {
        "@id": f"#session-{place}", "@type": "CreateAction", "name": f"Session {place} of {notebook}",
        "description": f"{said}; {described}", "instrument": {"@id": notebook}, "startTime": _moment(session.began),
        **_listed("result", [name for name in files if name != notebook]),
        "actionStatus": f"http://schema.org/{'Failed' if has_failed else 'Completed'}ActionStatus",
    }  # fmt: skip
    ended = session.ended or max((run.ended or run.began for run in session.runs), default=session.began)
    return action | {"endTime": _moment(ended)}


def _listed(name: str, identifiers: list[str]) -> Entity:
    """Return what a property refers to; a single thing stands without a list, as the profile wants it."""
    known = [{"@id": one} for one in identifiers]
    return {name: known[0] if len(known) == 1 else known} if known else {}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
