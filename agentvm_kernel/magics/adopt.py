"""`%adopt`: go on in a fork."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Final

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics.call import Call

HELP = """%adopt K

Make fork K of the last %%fork the notebook's VM: the notebook goes on with what the cell did there. What has happened
in the notebook's own VM since the fork is left behind, as by %rollback.

Example:

  %adopt 3"""

_VALID: Final = "%adopt K, with the number of a fork of the last %%fork"
_NUMBER: Final = re.compile(r"[1-9][0-9]?", re.ASCII)


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: the supervisor refused, and the VM goes on; or the fork cannot be reached.
    """
    if len(call.words) != 1 or not _NUMBER.fullmatch(call.words[0]):
        raise call.wrong(_VALID)
    loop = asyncio.get_running_loop()
    start = loop.time()
    await host.adopt(int(call.words[0]))
    return {"text/plain": f"Fork {call.words[0]} is the notebook's VM now ({loop.time() - start:.2f} s)."}
