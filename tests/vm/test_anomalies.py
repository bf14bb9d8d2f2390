"""What computes in a real VM although no cell runs is found, audited, and told in the notebook."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from vms import environment_of, own_supervisor

from agentvm_kernel import Session
from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.messages import VMInfo
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

pytestmark = pytest.mark.timeout(500)

SECONDS = 120
SHORT = """
[anomalies]
warning = "{response}"
[anomalies.rules.unattended-cpu]
window = 5
"""
BURN = "import subprocess; burner = subprocess.Popen(['sh', '-c', 'while :; do :; done'])"


def audited(paths: Paths, event: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for file in sorted(paths.state.rglob("*.jsonl")):
        entries = (json.loads(line) for line in file.read_text().splitlines())
        found += [entry for entry in entries if entry.get("event") == event]
    return found


@contextmanager
def kernel(paths: Paths, folder: Path) -> Iterator[BlockingKernelClient]:
    manager = KernelManager(kernel_name="agentvm-test")
    manager._kernel_spec = spec()
    manager.start_kernel(cwd=str(folder), env={**environment(), **environment_of(paths)})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
