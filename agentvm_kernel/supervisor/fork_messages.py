"""What the supervisor and its clients say to each other about forks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.messages import Granted, Message, Progress


class ForkRequest(Message):
    """Clone the leased VM several times. The forks of an earlier request end.

    Attributes:
        count: How many.
        randomness: ``diverge``: the generators of each fork are seeded differently; ``common``: all alike (but the
            kernel's, which always differs).
        seed: From what they are seeded, so that forks can be repeated; empty for something new.
        cell: What was run last.
    """

    count: int = Field(ge=1, le=64)
    randomness: Literal["diverge", "common"] = "diverge"
    seed: str = Field(default="", pattern=r"^([0-9a-f]{32})?$")
    cell: Cell = Cell()


class ForkGranted(Message):
    """One fork is there, running.

    Attributes:
        fork: Its number, from 1.
        granted: Its VM.
    """

    event: Literal["fork"] = "fork"
    fork: int
    granted: Granted


class ForkEnded(Message):
    """One fork's VM is gone, or could not be had.

    Attributes:
        fork: Its number, from 1.
        code: Code of the error.
        reason: What happened.
        hint: The remedy.
    """

    event: Literal["fork_ended"] = "fork_ended"
    fork: int
    code: str
    reason: str
    hint: str = ""


ForkEvent = Annotated[Progress | ForkGranted | ForkEnded, Field(discriminator="event")]

fork_event_adapter: TypeAdapter[Progress | ForkGranted | ForkEnded] = TypeAdapter(ForkEvent)
