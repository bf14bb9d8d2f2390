"""`%pull`: copy a file or a folder out of the VM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics import show
from agentvm_kernel.magics.call import Call
from agentvm_kernel.run.files import get

HELP = """%pull REMOTE [LOCAL]

Copy a file or a folder out of the VM to this computer. It is complete here, or absent. Left out, and said, are links
that lead out of the folder, devices, named pipes, and names that cannot be shown.

  REMOTE  what to copy; a relative path begins in the VM's home folder, where cells run
  LOCAL   what it becomes; a relative path begins where the notebook lies; by default it keeps its name. A file there
          is replaced, a folder that is not empty is an error.

Example:

  %pull results"""

_VALID = "%pull REMOTE [LOCAL]"


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: it could not be copied.
    """
    read = call.read(_VALID, most=2)
    name = PurePosixPath(read.words[0]).name if read.words else ""
    if not read.words or (len(read.words) == 1 and name in ("", "..")):
        raise call.wrong(_VALID)
    local = Path((*read.words[1:], name)[0]).expanduser()
    received = await get(host.machine, read.words[0], local)
    lines = [f"{read.words[0]} is here as {local}: {received.count} files, {show.size(received.size)}."]
    lines += [f"Left out: {line}" for line in received.left_out]
    if (more := received.left_out_count - len(received.left_out)) > 0:
        lines.append(f"Left out: {more} more")
    return {"text/plain": "\n".join(lines)}
