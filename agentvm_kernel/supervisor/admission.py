"""Who may have a VM: as many as are allowed and the host has memory for; the rest wait, in turns between sessions."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from agentvm_kernel.supervisor.operator_messages import WaitingInfo

# The host's memory changes without telling anybody.
_LOOK_SECONDS: Final = 1.0


class Slot:
    """The right to have one VM.

    Args:
        session: Whose it is.
        leave: Gives it back.
        settle: Notes that its VM is there, and counts in what the host has available.
    """

    def __init__(self, session: str, leave: Callable[[Slot], None], settle: Callable[[Slot], None]) -> None:
        self.session = session
        self._leave = leave
        self._settle = settle

    def started(self) -> None:
        """Note that its VM is there: the memory that it takes can be seen."""
        self._settle(self)

    def leave(self) -> None:
        """Give it back. Idempotent."""
        self._leave(self)


@dataclass(eq=False)
class _Waiting:
    session: str
    owner: str
    notice: Callable[[str], None]
    since: float = field(default_factory=time.monotonic)
    admitted: asyncio.Future[Slot] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    told: str = ""


class Admission:
    """Counts VMs that are out and lets no more be than there may.

    Args:
        most: VMs that may be out at the same time.
        room: Tells for how many more the host has memory.
    """

    def __init__(self, most: int, room: Callable[[], int]) -> None:
        self.most = most
        self._room = room
        self._out: set[Slot] = set()
        self._starting: set[Slot] = set()
        self._waiting: list[_Waiting] = []
        self._looking: asyncio.Task[None] | None = None

    @property
    def out(self) -> int:
        """How many VMs are out."""
        return len(self._out)

    @property
    def waiting(self) -> tuple[WaitingInfo, ...]:
        """Who waits, in the order in which they would be let in now."""
        now, reason = time.monotonic(), self._obstacle()
        return tuple(
            WaitingInfo(place=place, owner=one.owner, seconds=now - one.since, reason=reason)
            for place, one in enumerate(self._order(), 1)
        )

    async def enter(self, session: str, owner: str, notice: Callable[[str], None]) -> Slot:
        """Wait for the right to have a VM.

        Of those who wait, the session that has the fewest comes first; of equal ones, who came first. To give up,
        cancel.

        Args:
            session: Who asks.
            owner: What for, for listings.
            notice: Told the place in the queue, and why there is one, whenever that changes.
        """
        one = _Waiting(session, owner, notice)
        self._waiting.append(one)
        self.look()
        try:
            return await one.admitted
        except asyncio.CancelledError:
            if one.admitted.done() and not one.admitted.cancelled():
                one.admitted.result().leave()
            raise
        finally:
            if one in self._waiting:
                self._waiting.remove(one)
                self.look()

    def look(self) -> None:
        """Let in who may be, and tell the others where they stand."""
        order = self._order()
        while order and not self._obstacle():
            self._admit(order[0])
            order = self._order()
        if order:
            self._tell(order)
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look_again())

    async def close(self) -> None:
        """Let nobody in any more."""
        for one in self._waiting:
            one.admitted.cancel()
        self._waiting.clear()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    def _admit(self, one: _Waiting) -> None:
        self._waiting.remove(one)
        slot = Slot(one.session, self._left, self._starting.discard)
        self._out.add(slot)
        self._starting.add(slot)
        one.admitted.set_result(slot)

    def _left(self, slot: Slot) -> None:
        self._starting.discard(slot)
        if slot in self._out:
            self._out.remove(slot)
            self.look()

    def _order(self) -> list[_Waiting]:
        """Return who waits, next first: simulated, so that those of one session do not all come before another's."""
        held = Counter(slot.session for slot in self._out)
        rest, order = [one for one in self._waiting if not one.admitted.done()], []
        while rest:
            chosen = min(rest, key=lambda one: held[one.session])  # the first of equals: they stand as they came
            rest.remove(chosen)
            order.append(chosen)
            held[chosen.session] += 1
        return order

    def _obstacle(self) -> str:
        """Return why nobody can be let in now; empty if somebody can."""
        if len(self._out) >= self.most:
            return f"max_vms allows no more than {self.most} at a time"
        if self._out and self._room() - len(self._starting) < 1:
            return "the host has no memory for another VM"
        return ""

    def _tell(self, order: list[_Waiting]) -> None:
        reason = self._obstacle()
        for place, one in enumerate(order, 1):
            text = f"waiting for a VM: place {place} of {len(order)} ({reason})"
            if text != one.told:
                one.told = text
                one.notice(text)

    async def _look_again(self) -> None:
        while self._waiting:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look()
