"""`%adopt`: go on in a fork."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Final

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics.call import Call, UsageError

HELP = """%adopt K | min | max

Make fork K of the last %%fork the notebook's VM: the notebook goes on with what the cell did there. What has happened
in the notebook's own VM since the fork is left behind, as by %rollback.

  min, max   the fork whose result is the least, or the greatest, number

Example:

  %adopt 3
  %adopt min"""

_VALID: Final = "%adopt K, with the number of a fork of the last %%fork, or %adopt min, or %adopt max"
_BEST: Final[dict[str, Callable[..., int]]] = {"min": min, "max": max}
_NUMBER: Final = re.compile(r"[1-9][0-9]?", re.ASCII)


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: the supervisor refused, and the VM goes on; or the fork cannot be reached.
    """
    if len(call.words) != 1:
        raise call.wrong(_VALID)
    fork = _choose(call, host.timeline.scores)
    loop = asyncio.get_running_loop()
    start = loop.time()
    await host.adopt(fork)
    host.timeline.scores = {}
    return {"text/plain": f"Fork {fork} is the notebook's VM now ({loop.time() - start:.2f} s)."}


def _choose(call: Call, scores: dict[int, float]) -> int:
    (word,) = call.words
    if word in _BEST:
        if not scores:
            raise UsageError(f"%adopt {word}: no fork of the last %%fork gave a number.", "Let its cell end with one.")
        return _BEST[word](scores, key=scores.__getitem__)
    if not _NUMBER.fullmatch(word):
        raise call.wrong(_VALID)
    return int(word)
