"""The Jupyter server extension: what the JupyterLab extension asks for, and what it is told."""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Return what Jupyter Server finds here."""
    from agentvm_kernel.server.extension import AgentVMExtension  # noqa: PLC0415 - only there beside a Jupyter server

    return [{"module": "agentvm_kernel.server", "app": AgentVMExtension}]
