"""`%pull`: copy a file or a folder out of the VM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics import transfer
from agentvm_kernel.magics.call import Call
from agentvm_kernel.run.files import get
from agentvm_kernel.run.places import permitted

HELP = """%pull REMOTE [LOCAL] [--limit SIZE]

Copy a file or a folder out of the VM to this computer, with modes and times. It is complete here, or absent; what an
interrupted copy has left is gone on with when it is called again. Left out, and said, are links that lead out of the
folder, devices, named pipes, and names that cannot be shown.

  REMOTE        what to copy; a relative path begins in the VM's home folder, where cells run, which is /workspace,
                too
  LOCAL         what it becomes; a relative path begins where the notebook lies; by default it keeps its name. A file
                there is replaced, a folder that is not empty is an error.
  --limit SIZE  how much may be copied, such as 500MB or 10GiB; 4GiB by default

Example:

  %pull results"""

_VALID: Final = "%pull REMOTE [LOCAL] [--limit SIZE]"


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        PlaceError: a notebook may not use that place.
        AgentVMError: it could not be copied.
    """
    read = call.read(_VALID, most=2, texts=(transfer.LIMIT,))
    name = PurePosixPath(read.words[0]).name if read.words else ""
    if not read.words or (len(read.words) == 1 and name in ("", "..")):
        raise call.wrong(_VALID)
    remote, local = read.words[0], Path((*read.words[1:], name)[0]).expanduser()
    bounds, place = transfer.bounds(read.texts), permitted(local)
    with transfer.progress(host, f"Copying {transfer.title(remote)} out of the VM") as tell:
        received = await get(host.machine, remote, place, bounds, on_progress=tell)
    host.note_copy("pull", remote, received.digest, received.size)
    lines = [f"{remote} is here as {local}: {transfer.said(received, local.is_dir())}."]
    lines += transfer.left_out(received.left_out, received.left_out_count)
    return {"text/plain": "\n".join(lines)}
