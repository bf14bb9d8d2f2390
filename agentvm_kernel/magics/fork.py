"""`%%fork`: run a cell in several clones of the present."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Literal, cast

from agentvm_kernel.kernel.execution import LINK_LIMITS
from agentvm_kernel.kernel.forks import ForkProgress, ForkResult, run_forks
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics import columns
from agentvm_kernel.magics.call import Call, UsageError
from agentvm_kernel.magics.outcome import draw
from agentvm_kernel.supervisor.fork_messages import ForkRequest

HELP = """%%fork N [--randomness diverge|common] [--seed HEX] [--timeout S]

Run the lines below in N clones of the notebook's VM at the same time, each a machine of its own, and show what came of
each. The notebook's VM stays as it is; %adopt K goes on in fork K, %adopt max in the one with the greatest result.
In fork K, os.environ["AGENTVM_FORK"] is K, as a text.

  N             1 to 64; what does not fit into this host at once waits
  --randomness  diverge (default): random numbers differ between the forks; common: random, NumPy and torch give the
                same in all of them, for comparing in pairs
  --seed HEX    32 hexadecimal digits, by which the same forks draw the same random numbers again; a new one by default,
                which the metadata of the cell's reply has
  --timeout S   seconds after which a fork's cell is interrupted; by default the deadline of cells (%limits timeout=S)

Example:

  %%fork 4 --timeout 60
  import random
  score = random.random()
  score"""

_VALID: Final = (
    "%%fork N [--randomness diverge|common] [--seed HEX] [--timeout S], N from 1 to 64, HEX of 32 digits, S from 1 to"
    " 86400"
)
_LONGEST: Final = 40
_MOST_FORKS: Final = 64
_MOST_SECONDS: Final = 86_400
_SEED: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)


async def run(call: Call, host: Host) -> Mapping[str, object]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call, or there are no lines below.
        AgentVMError: there could be no forks at all.
    """
    read = call.read(_VALID, most=1, texts={"--randomness", "--seed", "--timeout"})
    count = _number(call, "".join(read.words), _MOST_FORKS)
    given = read.texts.get("--timeout")
    timeout = _number(call, given, _MOST_SECONDS) if given else host.machine.limits.now.cell_deadline
    randomness = read.texts.get("--randomness", "diverge")
    if randomness not in {"diverge", "common"}:
        raise call.wrong(_VALID)
    seed = read.texts.get("--seed") or secrets.token_hex(16)
    if not _SEED.fullmatch(seed):
        raise call.wrong(_VALID)
    if not call.body.strip():
        raise UsageError("%%fork needs the lines to run below it.", "%%fork? has an example.")
    request = ForkRequest(
        count=count, randomness=cast("Literal['diverge', 'common']", randomness), seed=seed, cell=host.timeline.cell
    )
    host.told["forks"] = {"count": count, "randomness": randomness, "seed": seed}
    results = await _forked(host, request, call.body, timeout)
    host.timeline.forked, host.timeline.scores = host.request.run, scores(results)
    return {**draw(results), columns.MIME: columns.bundle(results, host.request.run)}


def scores(results: Iterable[ForkResult]) -> dict[int, float]:
    """Return the results of the forks that are kept and gave a finite number."""
    found = {}
    for one in results:
        with suppress(ValueError):
            number = float(one.cell.result) if len(one.cell.result) <= _LONGEST else math.nan
            if one.kept and math.isfinite(number):
                found[one.fork] = number
    return found


async def _forked(host: Host, request: ForkRequest, code: str, timeout: float) -> list[ForkResult]:
    machine = host.machine

    def show(progress: ForkProgress) -> None:
        machine.stage, machine.done = progress.stage, None
        if progress.running or progress.finished:
            machine.stage = f"{progress.running} running, {progress.finished} of {progress.count} done"
            machine.done = progress.finished / progress.count

    connect = partial(machine.connect, limits=LINK_LIMITS)
    return await machine.fork(
        lambda supervisor, lease: run_forks(
            supervisor,
            lease,
            connect,
            request,
            code,
            timeout=timeout,
            on_progress=show,
            report=machine.network.report,
            policy=machine.firewall.policy,
        )
    )


def _number(call: Call, text: str, most: int) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > most:
        raise call.wrong(_VALID)
    return int(text)
