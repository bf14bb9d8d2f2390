"""Runs one cleaner of the output firewall, and keeps what it blocks."""

from __future__ import annotations

from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.reasons import Reason


class Said:
    """A context, and the reasons that were given in it."""

    def __init__(self, mode: Mode = Mode.STANDARD, **options: tuple[str, ...]) -> None:
        self.reasons: list[Reason] = []
        self.words: list[str] = []
        self.context = Context(mode, self._block, **options)

    def _block(self, reason: Reason, words: str) -> None:
        self.reasons.append(reason)
        self.words.append(words)
