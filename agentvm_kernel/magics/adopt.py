"""`%adopt`: go on in a fork."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Final

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics.call import Call, UsageError
from agentvm_kernel.magics.rollback import unshared

HELP = """%adopt K | min | max [--of RUN]

Make fork K of the last %%fork the notebook's VM: the notebook goes on with what the cell did there. What has happened
in the notebook's own VM since the fork is left behind, as by %rollback.

  min, max   the fork whose result is the least, or the greatest, number
  --of RUN   only if the last %%fork was the run of that number: for programs that know it from the reply's metadata

Example:

  %adopt 3
  %adopt min"""

_VALID: Final = "%adopt K [--of RUN], with the number of a fork of the last %%fork, or min, or max, in K's place"
_BEST: Final[dict[str, Callable[..., int]]] = {"min": min, "max": max}
_NUMBER: Final = re.compile(r"[1-9][0-9]?", re.ASCII)
_RUN: Final = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: the supervisor refused, and the VM goes on; or the fork cannot be reached.
    """
    read = call.read(_VALID, most=1, texts={"--of"})
    if len(read.words) != 1:
        raise call.wrong(_VALID)
    if of := read.texts.get("--of"):
        _check_run(call, of, host.timeline.forked)
    fork = _choose(call, read.words[0], host.timeline.scores)
    loop = asyncio.get_running_loop()
    start = loop.time()
    replaced = await host.adopt(fork)
    host.timeline.forked, host.timeline.scores = 0, {}
    return {"text/plain": f"Fork {fork} is the notebook's VM now ({loop.time() - start:.2f} s).{unshared(replaced)}"}


def _check_run(call: Call, of: str, forked: int) -> None:
    if not _RUN.fullmatch(of):
        raise call.wrong(_VALID)
    if int(of) != forked:
        raise UsageError(f"The forks of run {of} are gone: others were made since, or one was adopted.")


def _choose(call: Call, word: str, scores: dict[int, float]) -> int:
    if word in _BEST:
        if not scores:
            raise UsageError(f"%adopt {word}: no fork of the last %%fork gave a number.", "Let its cell end with one.")
        return _BEST[word](scores, key=scores.__getitem__)
    if not _NUMBER.fullmatch(word):
        raise call.wrong(_VALID)
    return int(word)
