"""What a notebook keeps of its runs, under one key of the metadata: what the host says in its replies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ImageError
from agentvm_kernel.image.store import ImageStore
from agentvm_kernel.supervisor.status import LeaseInfo, Status

KEY: Final = "agentvm"
_MOST: Final = 2000
"""Bytes that a cell's record may have, as JSON."""

_NETWORK: Final = 1000
"""Characters of what a machine could reach."""

_OF_MAGICS: Final = ("forks", "copied", "shared")


def of_cell(reply: Mapping[str, Any], kernel: str) -> dict[str, Any] | None:
    """Return what is kept with a cell: the same as JupyterLab's extension keeps.

    Args:
        reply: The reply to it.
        kernel: The kernel's id.

    Returns:
        The run's number, its machine, the snapshots before and after, the kernel, the SHA-256 of its code, and what the
        run cost, as measured on the host; of a magic also the forks that it made, with their seed, the file that it
        copied, with its digest, or the folder that it shared. What there is no room for is left out. None if the host
        says nothing of it.
    """
    said = reply.get("metadata", {}).get(KEY)
    if not isinstance(said, Mapping) or not isinstance(said.get("run"), int):
        return None
    facts = dict(said.get("facts") or {})
    snapshot = said.get("snapshot", "")
    record = {
        "run": said["run"], "vm": said.get("vm", ""), "base": facts.pop("snapshot_before", snapshot),
        "after": facts.pop("snapshot_after", snapshot), "kernel": kernel, "code": said.get("code", ""),
    }  # fmt: skip
    more = {name: said[name] for name in _OF_MAGICS if isinstance(said.get(name), Mapping)} | {"facts": facts}
    for name, value in more.items():
        if len(json.dumps(record | {name: value})) <= _MOST:
            record[name] = value
    return record


def of_image(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of an image: what tells later in which packages of Python another one differs.

    Args:
        manifest: The image's; see `image.store.Image`.
    """
    return {name: manifest[name] for name in ("kernel", "python", "python_packages") if name in manifest}


def of_notebook(status: Status, lease: LeaseInfo) -> dict[str, Any]:
    """Return what is kept with a notebook: in what its cells ran. Blocks.

    Args:
        status: What the supervisor says while they can still run.
        lease: Theirs.
    """
    names = ("image", "flavour", "profile", "vcpus", "memory_mib", "disk_gb", "hypervisor")
    known: dict[str, Any] = {"version": status.version, "accelerator": status.accelerator}
    known |= {name: getattr(lease, name) for name in names}
    known |= {"limits": lease.limits.model_dump(exclude_none=True), "network": _cut(lease.network)}
    try:
        images = ImageStore(Paths.of_user().cache).images()
        image = next((one for one in images if one.digest == lease.image), None)
        return known | (of_image(image.manifest()) if image else {})
    except ImageError:  # what ran is kept all the same
        return known


def _cut(network: str) -> str:
    """Return what a machine could reach, without the rules for which there is no room."""
    return network if len(network) <= _NETWORK else network[:_NETWORK].rpartition("; ")[0]
