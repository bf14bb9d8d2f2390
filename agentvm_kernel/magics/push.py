"""`%push`: copy a file or a folder of the host into the VM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics.call import Call
from agentvm_kernel.run.files import put

HELP = """%push LOCAL [REMOTE]

Copy a file or a folder of this computer into the VM. It is complete there, or absent.

  LOCAL   what to copy; a relative path begins where the notebook lies
  REMOTE  what it becomes; a relative path begins in the VM's home folder, where cells run; by default it keeps its
          name. A file there is replaced, a folder is an error.

Example:

  %push data/prices.csv"""

_VALID = "%push LOCAL [REMOTE]"


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: it could not be copied.
    """
    read = call.read(_VALID, most=2)
    if not read.words:
        raise call.wrong(_VALID)
    local, remote = Path(read.words[0]).expanduser(), (*read.words[1:], "")[0]
    await put(host.machine, local, remote)
    return {"text/plain": f"{local} is in the VM as {remote or local.resolve().name}."}
