"""`%timetravel`: a snapshot after every cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics import show
from agentvm_kernel.magics.call import Call

HELP = """%timetravel [on | off]

Take a snapshot now and after every cell, so that %undo can take cells back. A snapshot costs the time in which the VM
stands still for it, and disk for the memory that the cell wrote. Without on or off: say which it is.

Example:

  %timetravel on"""

_VALID: Final = "%timetravel on and %timetravel off"


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: no snapshot could be taken, so that time travel stays off.
    """
    timeline = host.timeline
    match call.words:
        case ():
            line = f"Time travel is {'on' if timeline.travelling else 'off'}."
        case ("on",) if timeline.travelling:
            line = "Time travel is on already."
        case ("on",):
            info = await host.snapshot(kind="auto")
            timeline.travelling = True
            await host.machine.network.travelling(True)
            line = f"Time travel is on: a snapshot after every cell, beginning with {show.name(info)}."
        case ("off",):
            timeline.travelling = timeline.unseen = False
            await host.machine.network.travelling(False)
            line = "Time travel is off; the snapshots are still there."
        case _:
            raise call.wrong(_VALID)
    return {"text/plain": line}
