"""`%snapshot`: keep the VM as it is now."""

from __future__ import annotations

from collections.abc import Mapping

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics import show
from agentvm_kernel.magics.call import Call, UsageError
from agentvm_kernel.snapshots.label import check_label

HELP = """%snapshot [LABEL] [-m TEXT] [--now]

Keep the whole machine under this notebook as it is now: variables, files, processes. The VM stands still for a moment
and goes on; %rollback goes back, %snapshots shows what there is.

  LABEL    a name to go back to: up to 64 ASCII letters, digits, dots, underscores and dashes
  -m TEXT  a remark
  --now    do not wait for the running cell: freeze it in the middle (from another cell or client)

Example:

  %snapshot before-training -m the data is loaded"""

_VALID = "%snapshot [LABEL] [-m TEXT] [--now]"
_MOST_TEXT = 2000


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call, or the label is none.
        AgentVMError: no snapshot could be taken.
    """
    read = call.read(_VALID, most=1, flags={"--now"}, texts={"-m"})
    label = _label(read.words[0]) if read.words else ""
    text = read.texts.get("-m", "").encode(errors="replace").decode()
    if len(text) > _MOST_TEXT:
        raise UsageError(f"The text of a snapshot has at most {_MOST_TEXT} characters.")
    info = await host.snapshot(label, text)
    frozen = "; it froze a running cell" if info.busy else ""
    line = f"Snapshot {show.name(info)}: the VM stood still for {info.pause_ms:.1f} ms, {show.size(info.size)}{frozen}."
    return {"text/plain": line}


def _label(text: str) -> str:
    try:
        return check_label(text)
    except SnapshotError as error:
        raise UsageError(error.message) from error
