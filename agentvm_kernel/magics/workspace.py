"""`%workspace`: let the VM share a folder of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics import show
from agentvm_kernel.magics.call import Call
from agentvm_kernel.run.places import permitted
from agentvm_kernel.supervisor.workspace_messages import WorkspaceInfo, WorkspaceRequest
from agentvm_kernel.validation import checked

HELP = """%workspace [PATH [--rw] | off]

Share a folder of this computer with the VM, where cells find it as shared (/workspace/shared). What changes here is
seen there at once, and nothing is copied. It is read-only, unless you say otherwise.

  %workspace       show what is shared
  %workspace PATH  share this folder; a relative path begins where the notebook lies
  --rw             what runs in the VM may change, add and remove files, until the disk here is full
  %workspace off   share nothing any more

For each snapshot and fork the folder is taken away for a moment, which fails, and says why, while something in the VM
has it in use. Snapshots and forks do not have it; after a rollback the VM in its place gets it again.

Example:

  %workspace data"""

_VALID: Final = "%workspace, %workspace PATH, %workspace PATH --rw and %workspace off"
_CELLS: Final = 1000
"""Number of the user that cells run as."""


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        PlaceError: a notebook may not use that folder.
        AgentVMError: the folder cannot be shared, or is in use.
    """
    read = call.read(_VALID, most=1, flags=("--rw",))
    if not read.words:
        if read.flags:
            raise call.wrong(_VALID)
        return {"text/plain": said(await host.machine.workspace())}
    if read.words == ["off"]:
        if read.flags:
            raise call.wrong(_VALID)
        info = await host.machine.share(WorkspaceRequest())
    else:
        folder = str(permitted(read.words[0]))
        info = await host.machine.share(checked(WorkspaceRequest, folder=folder, writable="--rw" in read.flags))
    host.note_share(info.folder, writable=info.writable)
    return {"text/plain": said(info)}


def said(info: WorkspaceInfo) -> str:
    """Return what is shared, in words."""
    if not info.folder:
        return "No folder is shared with the VM."
    way = "to read and write" if info.writable else "read-only"
    folder = show.plain(info.folder, 300)
    if not info.is_there:
        return f"{folder} was shared {way}, but the VM has lost it; %workspace PATH shares it again."
    text = f"{folder} is shared {way}; in the VM it is {info.place}."
    if info.weakness:
        text += (
            "\nOnly QEMU keeps the VM from changing it, and root in the VM can make files there empty, because this"
            f" host makes no folder read-only for it: {show.plain(info.weakness, 200)}. Share a copy of what you need."
        )
    if info.writable and info.owner != _CELLS:
        text += (
            f"\nIt belongs to user {info.owner}, and cells run as user {_CELLS} of the VM: where its modes do not let"
            " others write, they need sudo."
        )
    return text
