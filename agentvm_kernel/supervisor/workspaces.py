"""Which folder of the host a notebook's VM shares: only what its user has named, and never what is AgentVM's own."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.observe.events.supervisor import ConfigurationChanged
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.workspace_messages import WorkspaceInfo, WorkspaceRequest
from agentvm_kernel.vm.sharing import PLACE, Share, ShareError

_log = logging.getLogger(__name__)

_OF_THE_KERNEL: Final = (Path("/proc"), Path("/sys"), Path("/dev"))


class Workspaces:
    """Lets leases' VMs share folders.

    Args:
        paths: The user's folders, none of which is shared.
        audit: Takes note.
    """

    def __init__(self, paths: Paths, audit: AuditLog) -> None:
        self._private = tuple(path.resolve() for path in (paths.cache, paths.state, paths.runtime, paths.config))
        self._audit = audit

    @staticmethod
    def info(lease: Lease) -> WorkspaceInfo:
        """Return what a lease's VM shares."""
        share = lease.share
        if share is None:
            return WorkspaceInfo()
        try:
            owner = share.folder.stat().st_uid
        except OSError as error:
            raise ShareError(f"{share.folder}: {error.strerror}.", "%workspace off ends the sharing.") from error
        return WorkspaceInfo(
            folder=str(share.folder), writable=share.writable, place=PLACE, is_there=lease.vm.sharing.share == share,
            owner=owner, weakness=lease.vm.sharing.weakness[:200],
        )  # fmt: skip

    async def change(self, lease: Lease, wanted: WorkspaceRequest) -> WorkspaceInfo:
        """Let a lease's VM share a folder, or none.

        Raises:
            ShareError: the folder cannot be shared, or the VM does not let go of the one before.
            StoppedError: the VM is stopped.
        """
        share = await asyncio.to_thread(self._find, wanted) if wanted.folder else None
        async with lease.turn:
            lease.check_runs()
            await _give(lease, share)
        weakness = lease.vm.sharing.weakness if share else ""
        self._note(lease, f"{share or 'nothing'}{', by QEMU alone' if weakness else ''}")
        return self.info(lease)

    async def follow(self, lease: Lease) -> str:
        """Give a lease's folder to the VM that it has now; the caller has the lease's turn.

        Returns:
            Why that could not be done; empty if it could, or there is no folder.
        """
        if lease.share is None:
            return ""
        try:
            await lease.vm.sharing.begin(lease.share)
        except AgentVMError as error:  # the notebook goes on without
            _log.warning("%s does not share %s: %s", lease.vm.id, lease.share.folder, error)
            self._note(lease, f"nothing: {error.message}")
            return error.message
        return ""

    def _find(self, wanted: WorkspaceRequest) -> Share:
        """Return the folder that is meant.

        Raises:
            ShareError: there is none, or it must not be shared.
        """
        named = Path(wanted.folder)
        if not named.is_absolute():
            raise ShareError(f"{wanted.folder!a:.80} is not an absolute path.")
        try:
            folder = named.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise ShareError(f"There is no folder {wanted.folder!a:.200}.", "%workspace takes a folder.") from error
        if not folder.is_dir():
            raise ShareError(f"{str(folder)!a:.200} is not a folder.", "%workspace takes a folder; %push copies files.")
        for private in (*self._private, *_OF_THE_KERNEL):
            if folder == private or folder in private.parents:
                raise ShareError(f"{folder} is not shared: {private} is in it.", "Share a folder further down.")
            if private in folder.parents:
                raise ShareError(f"{folder} is not shared: it is in {private}.", "Share a folder of your own.")
        if folder == Path.home().resolve():
            raise ShareError(f"{folder} is not shared: it is your whole home folder.", "Share a folder further down.")
        return Share(folder, wanted.writable)

    def _note(self, lease: Lease, what: str) -> None:
        self._audit.record(ConfigurationChanged(**lease.subject, what=f"workspace: {what}"))


async def _give(lease: Lease, share: Share | None) -> None:
    if share is None:
        await lease.vm.sharing.end()
        lease.share = None
        return
    try:
        await lease.vm.sharing.begin(share)
    finally:
        lease.share = lease.vm.sharing.share
