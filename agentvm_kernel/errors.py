"""Every error this project raises on purpose.

Each class is something a user or a caller can tell apart. The message says what happened, ``hint`` says what to do
about it, ``code`` is the name by which scripts and the supervisor's API know it.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Final


class AgentVMError(Exception):
    """Root of the tree.

    Args:
        message: What happened, one line.
        hint: What the reader can do about it, one line; empty when there is nothing to do.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(AgentVMError):
    """The configuration file, an environment variable or a name in them is not valid."""

    code = "config"


class RequestError(AgentVMError):
    """What was asked for is not valid."""

    code = "request"


class HostError(AgentVMError):
    """This host lacks something that virtual machines need."""

    code = "host"


_ELSEWHERE: Final = "set AGENTVM_STATE_DIR or AGENTVM_CACHE_DIR to a folder elsewhere."
_REMEDIES: Final = {
    errno.ENOSPC: f"Make room on that disk, or {_ELSEWHERE}",
    errno.EDQUOT: f"Make room within your quota, or {_ELSEWHERE}",
    errno.EROFS: f"Make it writable, or {_ELSEWHERE}",
    errno.EACCES: f"Make it accessible, or {_ELSEWHERE}",
    errno.EPERM: f"Make it accessible, or {_ELSEWHERE}",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or let fewer VMs run.",
    errno.ENFILE: "Let fewer programs run: the host has too many files open.",
    errno.ENOMEM: "Let fewer VMs run, or lower memory_share: the host's memory is used up.",
}


def host_error(error: OSError) -> HostError:
    """Return what a user is told when the host refuses to make, read or write a file.

    Args:
        error: How the kernel has put it.
    """
    where = f"{error.filename}: " if error.filename else ""
    return HostError(f"{where}{error.strerror or error}.", _REMEDIES.get(error.errno or 0, "See `agentvm doctor`."))


class ImageError(AgentVMError):
    """A guest image could not be built, found or trusted."""

    code = "image"


class VMError(AgentVMError):
    """A virtual machine could not be made, started or asked."""

    code = "vm"


class HypervisorError(VMError):
    """Libvirt or QEMU refused or failed a request."""

    code = "hypervisor"


class IdentityError(VMError):
    """A clone did not confirm its new identity, so nothing of the user's may run in it."""

    code = "identity"


class VMEndedError(VMError):
    """The virtual machine under a notebook is gone."""

    code = "vm_ended"


class FreshVMError(VMEndedError):
    """The virtual machine was thrown away on purpose, and a fresh one is on its way."""


class CellDeadlineError(FreshVMError):
    """A cell ran longer than its deadline and could not be stopped but with its virtual machine."""

    code = "cell_deadline"


class LimitError(AgentVMError):
    """There is no such limit, or it cannot have this value."""

    code = "limit"


class SnapshotError(VMError):
    """A snapshot could not be taken, found, kept or gone back to."""

    code = "snapshot"


class NoSnapshotError(SnapshotError):
    """There is no such snapshot."""

    code = "no_snapshot"


class NoForkError(SnapshotError):
    """There is no such fork, or none that rests."""

    code = "no_fork"


class CompareError(AgentVMError):
    """Two snapshots could not be compared."""

    code = "compare"


class LabelTakenError(SnapshotError):
    """Another snapshot of the notebook has that label."""

    code = "label_taken"


class DiskFullError(SnapshotError):
    """There is no room on the disk for a snapshot."""

    code = "disk_full"


class QuotaError(SnapshotError):
    """The user's snapshots would take more than they may."""

    code = "quota"


class RunError(AgentVMError):
    """What was to be run in a VM could not be."""

    code = "run"


class TransferError(AgentVMError):
    """Files could not be copied into a VM or out of it."""

    code = "files"


class LinkError(AgentVMError):
    """The connection between host and guest failed."""

    code = "link"


class LinkClosedError(LinkError):
    """The other end closed the connection."""

    code = "link_closed"


class ProtocolError(LinkError):
    """The other end sent something that the protocol does not allow."""

    code = "protocol"


class ProofError(LinkError):
    """The other end could not prove that it knows the VM's key."""

    code = "proof"


class HeartbeatError(LinkError):
    """The other end has not answered for too long."""

    code = "heartbeat"


class SecretError(AgentVMError):
    """A secret is not valid, not there, or cannot be read."""

    code = "secret"


class CassetteError(AgentVMError):
    """A recording cannot be made or read, or what was asked is not in it."""

    code = "cassette"


class AuditError(AgentVMError):
    """The audit log cannot be looked at as asked."""

    code = "audit"


class ReportError(AgentVMError):
    """A report could not be made, read or verified."""

    code = "report"


class SupervisorError(AgentVMError):
    """The supervisor could not be reached or refused a request."""

    code = "supervisor"


class NoLeaseError(SupervisorError):
    """There is no lease of that id: its session is over, or another supervisor's."""

    code = "no_lease"


class LeavingError(SupervisorError):
    """The supervisor is about to leave; the next one can be asked in a moment."""

    code = "leaving"


class ApiError(SupervisorError):
    """The supervisor answered with an error.

    Args:
        code: The error's code on the supervisor's side.
        message: What happened.
        hint: The remedy.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code  # type: ignore[misc]
