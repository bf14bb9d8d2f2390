"""A notebook's sessions as the supervisor writes them into a real audit log."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, Literal

from agentvm_kernel.config import Paths
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.observe.events.execution import (
    ExecutionCompleted,
    ExecutionFailed,
    ExecutionStarted,
    FilesCopied,
    OutputBlocked,
    OutputShown,
)
from agentvm_kernel.observe.events.network import NetworkConnectionAllowed, NetworkConnectionBlocked
from agentvm_kernel.observe.events.snapshot import ForksMade, SnapshotCreated, SnapshotRestored
from agentvm_kernel.observe.events.vm import LeaseAcquired, LeaseReleased, VMStarted
from agentvm_kernel.observe.fields import Event, claimed
from agentvm_kernel.observe.outputs import digest_of_outputs
from agentvm_kernel.supervisor.execution_messages import digest_of

NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z
IMAGE = "1" * 64
_ids = itertools.count()
Output = dict[str, Any]


def text(words: str, name: str = "stdout") -> Output:
    return {"output_type": "stream", "name": name, "text": words}


def code(source: str, *outputs: Output, count: int | None = None, name: str = "", **metadata: Any) -> dict[str, Any]:
    cell = {
        "cell_type": "code", "source": source, "outputs": list(outputs), "execution_count": count, "metadata": metadata
    }  # fmt: skip
    return cell | {"id": name or f"c{next(_ids)}"}


def markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": source, "metadata": {}, "id": f"m{next(_ids)}"}


def notebook(path: Path, *cells: dict[str, Any], **metadata: Any) -> Path:
    """Write a notebook's file."""
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path


class Bed:
    """A state folder with an audit log.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder / "cache", folder / "state", folder / "run", folder / "config.toml")
        self.now = NOON
        self.log = AuditLog(self.paths.state / "audit", clock=lambda: self.now)
        self._runs = 0
        self.lease = self.vm = self.notebook = ""

    def record(self, event: Event) -> None:
        self.log.record(event)
        self.now += 1

    @property
    def subject(self) -> dict[str, Any]:
        return {"vm": self.vm, "lease": self.lease, "notebook": self.notebook}

    def begin(self, lease: str = "lease-1", notebook: str = "", vm: str = "vm-1", **more: Any) -> None:
        """Lease a VM."""
        self.lease, self.vm, self.notebook, self._runs = lease, vm, notebook, 0
        self.record(VMStarted(vm=vm, snapshot="golden", image=IMAGE))
        given = {"image": IMAGE, "profile": "standard", "accelerator": "tcg", "hypervisor": "qemu 10, libvirt 11"}
        self.record(LeaseAcquired(**self.subject, **(given | {"vcpus": 2, "memory_mib": 2048} | more)))

    def run(
        self, source: str, *shown: Output, count: int | None = None, cell: str = "", error: str = "", fork: int = 0,
        vm: str = "", tells_outputs: bool = True,
    ) -> int:  # fmt: skip
        """Run a cell; return the run's number."""
        self._runs += 1
        subject = self.subject | ({"vm": vm} if vm else {})
        about: dict[str, Any] = {**subject, "run": self._runs, "digest": digest_of(source), "fork": fork}
        self.record(ExecutionStarted(**about, cell=cell))
        if tells_outputs:
            self.record(OutputShown(**about, outputs=digest_of_outputs(shown)))
        ended = ExecutionFailed if error else ExecutionCompleted
        self.record(
            ended(
                **about, seconds=0.5, cpu_seconds=0.25, memory_grown=2_000_000, network_sent=0, network_received=0,
                count=count, error=claimed(error),
            )
        )  # fmt: skip
        return self._runs

    def snapshot(self, name: str, label: str = "") -> None:
        self.record(SnapshotCreated(**self.subject, snapshot=name, label=label))

    def back(self, name: str, vm: str) -> None:
        """Go back to a snapshot."""
        self.record(VMStarted(vm=vm, snapshot=name, image=IMAGE))
        before, self.vm = self.vm, vm
        self.record(SnapshotRestored(**self.subject, snapshot=name, before=before))

    def forks(self, count: int, seed: str = "", randomness: Literal["diverge", "common"] = "diverge") -> None:
        made = ForksMade(**self.subject, count=count, seed=seed, randomness=randomness, run=self._runs)
        self.record(made)

    def copied(self, way: Literal["push", "pull"], path: str, digest: str = "c" * 64) -> None:
        self.record(FilesCopied(**self.subject, way=way, path=path, digest=digest, size=1234, run=self._runs))

    def refused(self, name: str, run: int = 0) -> None:
        self.record(
            NetworkConnectionBlocked(**self.subject, run=run, name=claimed(name), port=443, reason=claimed("no"))
        )

    def allowed(self, name: str, run: int = 0) -> None:
        self.record(NetworkConnectionAllowed(**self.subject, run=run, name=claimed(name), port=443, rule="a.example"))

    def blocked(self, run: int, count: int = 1) -> None:
        self.record(OutputBlocked(**self.subject, reason=Reason.SCRIPT, count=count, run=run))

    def record_release(self) -> None:
        """Give the VM back."""
        self.record(LeaseReleased(**self.subject))

    def end(self) -> None:
        """Give the VM back, and close the log."""
        self.record_release()
        self.log.close()
