"""`%audit`: what the audit log says of the notebook's sessions."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Final

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics import show
from agentvm_kernel.magics.call import Call
from agentvm_kernel.observe.chain import Record
from agentvm_kernel.observe.describe import describe

HELP = """%audit [N]

What the audit log says of this notebook, in this session and in earlier ones: the last 20 events, or the last N. It is
written on the host, where nothing that runs in a VM can reach it. `agentvm audit` in a terminal shows all of it, and
verifies that it is complete.

Example:

  %audit 50"""

_VALID: Final = "%audit [N], N from 1 to 999"
_USUAL: Final = 20
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)
_HEAD: Final = ("number", "time", "event", "VM", "run", "more")
_MORE: Final = 160


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: the supervisor refused, or there is no VM.
    """
    match call.words:
        case ():
            number = _USUAL
        case (text,) if _NUMBER.fullmatch(text):
            number = int(text)
        case _:
            raise call.wrong(_VALID)
    records = await host.machine.network.audit(number)
    if not records:
        return {"text/plain": "The audit log says nothing of this notebook."}
    return show.table(_HEAD, [_row(record) for record in records])


def _row(record: Record) -> tuple[str, ...]:
    event = record.event
    run = getattr(event, "run", 0)
    return (
        str(record.sequence), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.time)), event.event,
        show.plain(getattr(event, "vm", "")), str(run or ""), show.plain(describe(event, without={"run"}), _MORE),
    )  # fmt: skip
