"""What the user has allowed; in the configuration only, never in a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.reasons import Reason


@dataclass(frozen=True)
class Policy:
    """Of one notebook.

    Attributes:
        mode: How much is let through.
        frame_hosts: Hosts that HTML with scripts may load from.
        widget_modules: Widget modules allowed besides ipywidgets' own.
        comm_targets: Comm targets allowed besides widgets.
        mime_types: MIME types allowed besides the known ones, passed on unchanged.
    """

    mode: Mode = Mode.STANDARD
    frame_hosts: tuple[str, ...] = ()
    widget_modules: tuple[str, ...] = ()
    comm_targets: tuple[str, ...] = ()
    mime_types: tuple[str, ...] = ()


_REMEDIES: Final = {
    Reason.MIME: "[output] mime_types allows types",
    Reason.SCRIPT: 'HTML with <script> is shown in a frame, but in mode "strict"',
    Reason.REMOTE: "give it as data",
    Reason.RENDERER: 'mode = "trusted" in [output] shows it',
    Reason.COMM: "[output] comm_targets allows targets",
    Reason.WIDGET: "[output] widget_modules allows modules",
    Reason.SIZE: "write it to a file in the VM, and fetch that with %pull FILE",
}
_MOST_LINES: Final = 8


def note(blocked: dict[tuple[Reason, str], int]) -> str:
    """Return the lines under a cell: what was blocked, how often, and what can be done.

    Args:
        blocked: How often, by reason and words.
    """
    lines = []
    for (reason, words), count in list(blocked.items())[:_MOST_LINES]:
        times = f" ({count} times)" if count > 1 else ""
        remedy = f"; {_REMEDIES[reason]}" if reason in _REMEDIES and "[output]" not in words else ""
        lines.append(f"blocked: {words}{times}{remedy}\n")
    if len(blocked) > _MOST_LINES:
        lines.append(f"blocked: {len(blocked) - _MOST_LINES} kinds more; %vm security counts all\n")
    return "".join(lines)
