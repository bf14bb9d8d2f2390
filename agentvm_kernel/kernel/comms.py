"""Which comms and subshells the clients know, and since when: what a rollback has to end."""

from __future__ import annotations

from typing import Final

_MOST: Final = 10_000
_LONGEST: Final = 256


class Comms:
    """Numbers every comm and subshell as it is opened.

    A comm that is open now was open at an earlier moment if its number is not above the one that had been given last at
    that moment: so a number is all that a snapshot has to remember. Ten thousand of each are tracked; a guest that
    opens more has the rest to itself.

    Attributes:
        last: The number given last.
    """

    def __init__(self) -> None:
        self.last = 0
        self._open: dict[str, int] = {}
        self._subshells: dict[str, int] = {}
        self._gone: dict[str, None] = {}

    def note(self, msg_type: str, content: dict[str, object]) -> None:
        """Take notice of a comm message, of either side.

        Args:
            msg_type: ``comm_open`` or ``comm_close``; others change nothing.
            content: The message's content.
        """
        if msg_type == "comm_close":
            self._open.pop(_comm_id(content), None)
        elif msg_type == "comm_open":
            self._number(self._open, _comm_id(content))

    def subshell_opened(self, content: dict[str, object]) -> None:
        """Take notice of a ``create_subshell_reply``."""
        name = content.get("subshell_id")
        self._number(self._subshells, name if isinstance(name, str) else "")

    def is_gone(self, subshell: object) -> bool:
        """Whether a subshell that a client names went with a guest that is gone."""
        return subshell in self._gone

    def end_since(self, number: int) -> list[str]:
        """Forget what was opened after a moment; subshells are gone from then on.

        Args:
            number: `last` at that moment.

        Returns:
            The ids of the comms.
        """
        ended = [name for name, opened in self._open.items() if opened > number]
        for name in ended:
            del self._open[name]
        for name in [name for name, opened in self._subshells.items() if opened > number]:
            del self._subshells[name]
            self._gone[name] = None
        while len(self._gone) > _MOST:
            del self._gone[next(iter(self._gone))]
        return ended

    def _number(self, known: dict[str, int], name: str) -> None:
        if 0 < len(name) <= _LONGEST and len(known) < _MOST:
            self.last += 1
            known[name] = self.last


def _comm_id(content: dict[str, object]) -> str:
    name = content.get("comm_id")
    return name if isinstance(name, str) else ""
