"""What the supervisor tells of its audit log."""

from __future__ import annotations

from pydantic import ConfigDict, Field, TypeAdapter

from agentvm_kernel.observe.chain import Record
from agentvm_kernel.observe.events.known import AnyEvent
from agentvm_kernel.supervisor.messages import Message


class AuditRecords(Message):
    """The newest records about a notebook, oldest first.

    Attributes:
        records: The records.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    records: tuple[Record, ...]


class AuditNews(Message):
    """Something that happened just now.

    Attributes:
        time: When, seconds since 1970.
        event: What.
        missed: How many events before it are left out, because this listener was too slow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    time: float
    event: AnyEvent
    missed: int = Field(default=0, ge=0)


news_adapter: TypeAdapter[AuditNews] = TypeAdapter(AuditNews)
