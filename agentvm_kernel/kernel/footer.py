"""The line under a cell that says what it cost."""

from __future__ import annotations

import html
from typing import Final

from agentvm_kernel.kernel.facts import CellFacts
from agentvm_kernel.snapshots.quota import readable_size

_HOSTS: Final = 3
_NAME: Final = 80
_STYLE: Final = "opacity: 0.65; font-size: 85%"


def line(facts: CellFacts) -> str:
    """Return what a cell cost, as far as it was measured and is more than nothing.

    Args:
        facts: The cell's.
    """
    parts = (_time(facts), _memory(facts), _network(facts), _disk(facts), _hosts(facts), _snapshots(facts))
    return "; ".join(filter(None, parts))


def content(facts: CellFacts) -> dict[str, object]:
    """Return the line as the content of a `display_data` message; its metadata tells it from outputs of the cell.

    Args:
        facts: The cell's.
    """
    text = line(facts)
    markup = f'<div style="{_STYLE}">{html.escape(text)}</div>'
    return {"data": {"text/plain": text, "text/html": markup}, "metadata": {"agentvm": {"facts": True}}}


def _time(facts: CellFacts) -> str:
    cpu = "" if facts.cpu_seconds is None else f", CPU {facts.cpu_seconds:.2f} s"
    return f"{facts.seconds:.2f} s{cpu}"


def _memory(facts: CellFacts) -> str:
    if facts.memory_peak is None:
        return ""
    grown = f", {readable_size(facts.memory_grown)} more" if facts.memory_grown else ""
    return f"memory {readable_size(facts.memory_peak)}{grown}"


def _network(facts: CellFacts) -> str:
    if not facts.network_sent and not facts.network_received:
        return ""
    return f"sent {readable_size(facts.network_sent or 0)}, received {readable_size(facts.network_received or 0)}"


def _disk(facts: CellFacts) -> str:
    done = ((facts.disk_read, "read"), (facts.disk_written, "written"))
    told = ", ".join(f"{readable_size(amount)} {verb}" for amount, verb in done if amount)
    return f"disk {told}" if told else ""


def _hosts(facts: CellFacts) -> str:
    if not facts.hosts:
        return ""
    named = [_plain(name) for name in facts.hosts[:_HOSTS]]
    more = (facts.host_count or 0) - len(named)
    return "hosts " + ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _snapshots(facts: CellFacts) -> str:
    before, after = facts.snapshot_before or "the image's own", facts.snapshot_after
    if not after:
        return ""
    return f"snapshot {after}" if after == facts.snapshot_before else f"snapshot {before} to {after}"


def _plain(name: str) -> str:
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in name[:_NAME])
