"""What a cleaner has to know, and where it says what it took out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from agentvm_kernel.firewall.reasons import Reason

Block = Callable[[Reason, str], None]
"""Takes the reason and a few words of the host's own about what was blocked (never text of the guest unbounded)."""


class Mode(StrEnum):
    """How much is let through; chosen by the user's configuration or front end only."""

    STRICT = "strict"
    STANDARD = "standard"
    TRUSTED = "trusted"


@dataclass(frozen=True)
class Context:
    """Of one message.

    Attributes:
        mode: How much is let through.
        block: Called for everything that is taken out or changed for safety.
        frame_hosts: Hosts that rich output in an opaque frame may load from; none by default.
        widget_modules: Widget modules allowed besides the built-in ones.
        mime_types: MIME types allowed besides the built-in ones, passed on unchanged.
    """

    mode: Mode
    block: Block
    frame_hosts: tuple[str, ...] = ()
    widget_modules: tuple[str, ...] = ()
    mime_types: tuple[str, ...] = ()
