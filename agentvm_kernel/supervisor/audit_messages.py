"""What the supervisor tells a session of its audit log."""

from __future__ import annotations

from agentvm_kernel.observe.chain import Record
from agentvm_kernel.supervisor.messages import Message


class AuditRecords(Message):
    """The newest records about a notebook, oldest first.

    Attributes:
        model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    records: The records.
    """

    records: tuple[Record, ...]
