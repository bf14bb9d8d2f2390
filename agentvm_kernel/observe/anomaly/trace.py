"""Traces: what was measured of a VM for a while, to be looked at again. A JSON list a line, after a line on the whole.

A reading is a list of numbers; a connection is a list that begins with ``"c"``. Times count from the trace's beginning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agentvm_kernel.observe.anomaly.reading import Contact, Reading

_CONTACT = "c"
Step = tuple[Reading, tuple[Contact, ...]]


@dataclass(frozen=True)
class Trace:
    """One of them.

    Attributes:
        name: What goes on in it.
        kind: What that is an example of.
        begins: When the attack begins, seconds from the beginning; ``None`` for ordinary work.
        is_recorded: It was measured of a real VM.
        steps: Readings, each with the connections of the time since the one before.
    """

    name: str
    kind: str
    begins: float | None
    is_recorded: bool
    steps: tuple[Step, ...]

    @property
    def hours(self) -> float:
        """How long it is, hours."""
        return (self.steps[-1][0].time - self.steps[0][0].time) / 3600

    def dump(self) -> Iterator[str]:
        """Yield its lines."""
        yield json.dumps({"name": self.name, "kind": self.kind, "begins": self.begins, "recorded": self.is_recorded})
        for reading, contacts in self.steps:
            for contact in contacts:
                yield json.dumps([_CONTACT, round(contact.time, 2), *contact[1:]], separators=(",", ":"))
            yield json.dumps([_short(value) for value in reading], separators=(",", ":"))

    @classmethod
    def load(cls, lines: Iterable[str]) -> Trace:
        """Return the trace of these lines."""
        reading = iter(lines)
        about = json.loads(next(reading))
        steps: list[Step] = []
        contacts: list[Contact] = []
        for line in reading:
            values = json.loads(line)
            if values[0] == _CONTACT:
                contacts.append(Contact(*values[1:]))
            else:
                steps.append((Reading(*values), tuple(contacts)))
                contacts = []
        return cls(about["name"], about["kind"], about["begins"], about["recorded"], tuple(steps))


def _short(value: float) -> float:
    rounded = round(value, 2)
    return int(rounded) if rounded == int(rounded) else rounded
