"""Every error this project raises on purpose.

Each class is something a user or a caller can tell apart. The message says what happened, ``hint`` says what to do
about it, ``code`` is the name by which scripts and the supervisor's API know it.
"""

from __future__ import annotations

from typing import ClassVar


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


class HostError(AgentVMError):
    """This host lacks something that virtual machines need."""

    code = "host"


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


class SnapshotError(VMError):
    """A snapshot could not be taken, found, kept or gone back to."""

    code = "snapshot"


class DiskFullError(SnapshotError):
    """There is no room on the disk for a snapshot."""

    code = "disk_full"


class QuotaError(SnapshotError):
    """The user's snapshots would take more than they may."""

    code = "quota"


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


class SupervisorError(AgentVMError):
    """The supervisor could not be reached or refused a request."""

    code = "supervisor"


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
