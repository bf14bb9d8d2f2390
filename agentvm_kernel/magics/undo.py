"""`%undo`: take cells back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.kernel.machine import State
from agentvm_kernel.magics.call import Call
from agentvm_kernel.magics.rollback import go_back

HELP = """%undo [N]

Go back to before the last cell, or the last N cells, that ran in the VM. There has to be a snapshot from then: see
%timetravel. Host magics do not count.

Example:

  %undo 2"""

_VALID: Final = "%undo [N], with N from 1 to 9999"
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: there is no snapshot from then, or see `rollback.run`.
    """
    word = call.words[0] if call.words else "1"
    if len(call.words) > 1 or not _NUMBER.fullmatch(word):
        raise call.wrong(_VALID)
    if host.machine.state is State.ENDED:
        raise SnapshotError("The VM is gone, and the cell with it.", "%rollback goes back to the newest snapshot.")
    return {"text/plain": await go_back(host, host.timeline.before(int(word)))}
