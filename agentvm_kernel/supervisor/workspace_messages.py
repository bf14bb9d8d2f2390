"""What the supervisor and its clients say to each other about the folder of the host that a notebook's VM shares."""

from __future__ import annotations

from pydantic import Field

from agentvm_kernel.supervisor.messages import Message


class WorkspaceRequest(Message):
    """Share a folder of the host from now on, in place of another one.

    Attributes:
        folder: Its absolute path; empty for none.
        writable: Whether the VM may change it.
    """

    folder: str = Field(default="", max_length=4096)
    writable: bool = False


class WorkspaceInfo(Message):
    """What is shared.

    Attributes:
        folder: The folder's path, with links resolved; empty for none.
        writable: Whether the VM may change it.
        place: Where the VM has it.
        is_there: Whether the VM has it now; it has not if it could not be given back after a snapshot or a rollback.
        owner: Number of the user whose folder it is.
        weakness: Why nobody but QEMU keeps the VM from changing it; empty if the host's kernel does, or if it may.
    """

    folder: str = ""
    writable: bool = False
    place: str = ""
    is_there: bool = False
    owner: int = 0
    weakness: str = Field(default="", max_length=200)
