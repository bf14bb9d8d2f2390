"""What a cell is told of something unusual that goes on in its VM."""

from __future__ import annotations

from typing import Final

from agentvm_kernel.anomalies import Action
from agentvm_kernel.supervisor.messages import Noticed

_DONE: Final[dict[Action, str]] = {
    "audit": "",
    "note": "",
    "slow": "It gets little CPU now; %vm resume takes that back.",
    "pause": "It is kept as a snapshot and stopped; %vm resume lets it run on, %rollback goes back.",
    "kill": "It is ended.",
}


def noticed(event: Noticed) -> str:
    """Return the note.

    Args:
        event: What the supervisor says; the host in it is the guest's word.
    """
    about = f" ({_plain(event.about)})" if event.about else ""
    says = "the VM, by its own account," if event.claimed else "the VM"
    figures = f"{event.value:.4g}, threshold {event.threshold:.4g}"
    done = _DONE[event.response]
    return (
        f"Anomaly {event.rule} ({event.severity}): {says} {event.text}{about}: {figures}.{' ' if done else ''}{done}\n"
    )


def _plain(text: str) -> str:
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
