"""`%push`: copy a file or a folder of the host into the VM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics import transfer
from agentvm_kernel.magics.call import Call
from agentvm_kernel.run.files import put
from agentvm_kernel.run.places import permitted

HELP = """%push LOCAL [REMOTE] [--into] [--limit SIZE]

Copy a file or a folder of this computer into the VM, with modes and times. It is complete there, or absent; what an
interrupted copy has left is gone on with when it is called again. Left out, and said, are devices and named pipes.

  LOCAL         what to copy; a relative path begins where the notebook lies
  REMOTE        what it becomes; a relative path begins in the VM's home folder, where cells run, which is /workspace,
                too; by default it keeps its name. A file there is replaced, a folder is an error.
  --into        a folder there gets it, under its own name
  --limit SIZE  how much may be copied, such as 500MB or 10GiB; 4GiB by default

Example:

  %push data/prices.csv"""

_VALID: Final = "%push LOCAL [REMOTE] [--into] [--limit SIZE]"
_TOLD: Final = 20


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        PlaceError: a notebook may not use it.
        AgentVMError: it could not be copied.
    """
    read = call.read(_VALID, most=2, flags=("--into",), texts=(transfer.LIMIT,))
    if not read.words:
        raise call.wrong(_VALID)
    local, remote = Path(read.words[0]).expanduser(), (*read.words[1:], "")[0]
    place = permitted(local)
    bounds, into = transfer.bounds(read.texts), "--into" in read.flags
    with transfer.progress(host, f"Copying {transfer.title(local)} into the VM") as tell:
        sent = await put(host.machine, place, remote, bounds=bounds, on_progress=tell, into=into)
    host.note_copy("push", str(local), sent.digest, sent.size)
    lines = [f"{local} is in the VM as {sent.path}: {transfer.said(sent, local.is_dir())}."]
    lines += transfer.left_out([f"{path!a}" for path in sent.left_out[:_TOLD]], len(sent.left_out))
    return {"text/plain": "\n".join(lines)}
