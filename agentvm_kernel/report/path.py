"""The recorded path as data: which cells ran in which order, what they showed, in what machine."""

from __future__ import annotations

from typing import Any, Final

from agentvm_kernel.observe.events.execution import FilesCopied
from agentvm_kernel.report.environment import Environment
from agentvm_kernel.report.make import Gathered
from agentvm_kernel.report.record import Run, Session, name_of

_OF_LEASE: Final = (
    "image", "profile", "accelerator", "hypervisor", "version", "vcpus", "memory_mib", "disk_gb", "limits", "network"
)  # fmt: skip

_PATH: Final = 300


def recorded(report: Gathered) -> dict[str, Any]:
    """Return what a program needs to run a notebook as it was run."""
    cells = {id(match.run): place for place, match in enumerate(report.matches) if match.run}
    return {
        "format": 1,
        "made": report.made,
        "log": {"digest": report.log.last.digest, "records": report.log.records, "problems": len(report.log.problems)},
        "cells": [
            {"digest": match.run.digest if match.run else "", "standing": match.standing} for match in report.matches
        ],
        "sessions": [_session(session, cells) for session in report.found.sessions],
        "images": {one.digest: _image(one) for one in report.images},
    }


def _image(image: Environment) -> dict[str, Any]:
    """Return what tells later which packages another image has differently."""
    kinds = {"Python packages": "python_packages", "Debian packages": "debian_packages"}
    return {"flavour": image.flavour, "packages": {kinds[title]: dict(found) for title, found in image.packages}}


def _session(session: Session, cells: dict[int, int]) -> dict[str, Any]:
    acquired = session.acquired
    way = session.way
    return {
        **{name: getattr(acquired, name) for name in _OF_LEASE},
        "began": session.began,
        "ended": session.ended,
        "runs": [_run(run, cells.get(id(run)), run in way) for run in session.runs],
        "snapshots": [
            {"id": one.id, "parent": one.parent, "label": one.label, "kind": one.kind, "time": one.time, "run": one.run}
            for one in session.snapshots
        ],
        "returns": [
            {"time": one.time, "from": one.source, "to": one.target, "run": one.run} for one in session.returns
        ],
        "forks": [
            {"time": time, "run": one.run, "count": one.count, "randomness": one.randomness, "seed": one.seed}
            for time, one in session.forks
        ],
        "copies": [_copy(time, one) for time, one in session.copies],
        "relabelled": [{"time": time, "id": name, "label": label} for time, name, label in session.relabelled],
        "removed": [{"time": time, "ids": list(names), "count": count} for time, names, count in session.removed],
    }


def _copy(time: float, one: FilesCopied) -> dict[str, Any]:
    """Return what was copied; of paths on the host only the name, since the rest may tell of users."""
    told = {"time": time, "run": one.run, "way": one.way, "name": name_of(one.path), "sha256": one.digest}
    return {**told, "size": one.size} | ({"path": one.path[:_PATH]} if one.way == "pull" else {})


def _run(run: Run, cell: int | None, is_on_way: bool) -> dict[str, Any]:
    told = {
        "run": run.number, "fork": run.fork, "digest": run.digest, "outputs": run.outputs, "cell": cell,
        "began": run.began, "outcome": run.outcome, "snapshot": run.snapshot, "on_the_way": is_on_way,
    }  # fmt: skip
    return told | ({"seconds": run.end.seconds} if run.end else {})
