"""`%snapshots`: the notebook's snapshots."""

from __future__ import annotations

import time
from collections.abc import Mapping

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics.call import Call
from agentvm_kernel.magics.tree import draw

HELP = """%snapshots

Show the snapshots of this notebook as a tree: which descends from which, their names, ages and sizes, the cell that was
run last before each, and from which the present VM descends.

Example:

  %snapshots"""


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: the supervisor cannot be asked.
    """
    if call.words:
        raise call.wrong("%snapshots alone")
    tree = await host.machine.snapshots()
    if not tree.snapshots:
        return {"text/plain": "This notebook has no snapshots yet; %snapshot takes one."}
    return draw(tree, time.time())
