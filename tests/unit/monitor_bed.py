"""Measurements and connections as the supervisor tells of them, for tests of the monitor."""

from __future__ import annotations

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.supervisor.stats_messages import VMStats


def measured(time: float, vm: str = "vm-1", **changes: object) -> VMStats:
    values: dict[str, object] = {
        "vm": vm, "lease": "lease-1", "state": "leased", "time": time, "age": 1.0, "cpu_seconds": 1.0,
        "cpu_percent": 50.0, "memory": 100 << 20, "memory_private": 0, "memory_guest": 50 << 20, "disk_read": 0,
        "disk_written": 0, "disk_space": 0, "network_sent": 0, "network_received": 0, "connections": 1, "allowed": 2,
        "refused": 3, "snapshots": 0, "executing": False, "stale": False,
    }  # fmt: skip
    return VMStats.model_validate(values | changes)


def refused(number: int = 1, name: str = "data.example", port: int = 443, **changes: object) -> Connection:
    values: dict[str, object] = {
        "id": number, "time": float(number), "session": "lease-1", "vm": "vm-1", "cell": "3 get()", "name": name,
        "address": "", "port": port, "verdict": "refused", "rule": "", "reason": f"{name} is not allowed.",
        "hint": f"%net allow {name}", "duration": 0.0,
    }  # fmt: skip
    return Connection.model_validate(values | changes)
