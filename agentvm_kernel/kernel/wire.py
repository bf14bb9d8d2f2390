"""Jupyter's wire format, on both sides of the router.

Towards the clients a message is signed with the connection's key. Towards the guest there are no identities and no
signature: nothing leaves the VM but through the link, and what comes out of it is checked here and signed anew.
Contents are passed on as the bytes they are; only headers are rewritten.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Final

from jupyter_client.session import DELIM, Session

from agentvm_kernel.kernel.jsoncheck import check_object, parse_object

HEADER_LIMIT: Final = 64 * 1024
METADATA_LIMIT: Final = 4 * 1024 * 1024
STDIN_LIMIT: Final = 1024 * 1024
_REMEMBERED_SIGNATURES: Final = 1 << 14

REPLIES: Final = frozenset(
    {
        "execute_reply",
        "inspect_reply",
        "complete_reply",
        "history_reply",
        "is_complete_reply",
        "comm_info_reply",
        "kernel_info_reply",
    }
)
FROM_GUEST: Final = {
    "shell": REPLIES,
    "control": REPLIES | {"debug_reply", "create_subshell_reply", "delete_subshell_reply", "list_subshell_reply"},
    "stdin": frozenset({"input_request"}),
    "iopub": frozenset(
        {
            "stream",
            "display_data",
            "update_display_data",
            "execute_input",
            "execute_result",
            "error",
            "status",
            "clear_output",
            "debug_event",
            "comm_open",
            "comm_msg",
            "comm_close",
        }
    ),
}
"""What a guest may say on each channel (`iopub_welcome` is the host's own to send, so the guest's is not passed on)."""


class WireError(ValueError):
    """A message is not acceptable; the text says why."""


@dataclass(slots=True)
class ClientMessage:
    """A verified message of a client.

    Attributes:
        idents: Routing identities, to answer it.
        header: The header.
        raw_header: The header's bytes, which become the parent header of everything that answers.
        parent: The parent header's bytes.
        metadata: The metadata's bytes.
        content: The content's bytes.
        buffers: Binary buffers.
    """

    idents: list[bytes]
    header: dict[str, object]
    raw_header: bytes
    parent: bytes
    metadata: bytes
    content: bytes
    buffers: list[bytes] = field(default_factory=list)

    @property
    def msg_type(self) -> str:
        """The message's type."""
        return str(self.header["msg_type"])

    @property
    def msg_id(self) -> str:
        """The message's id, as the client chose it."""
        return str(self.header["msg_id"])


@dataclass(frozen=True, slots=True)
class GuestMessage:
    """A checked message of the guest: well-formed, of an allowed type; what it claims is still only claimed.

    Attributes:
        msg_type: One of `FROM_GUEST`.
        parent_id: The msg_id in its parent header; empty when there is none.
        raw_header: Its header's bytes, to quote back to the guest as a parent header.
        metadata: The metadata's bytes.
        content: The content's bytes.
        buffers: Binary buffers.
    """

    msg_type: str
    parent_id: str
    raw_header: bytes
    metadata: bytes
    content: bytes
    buffers: list[bytes]

    @property
    def size(self) -> int:
        """Bytes of what it says."""
        return len(self.content) + len(self.metadata) + sum(map(len, self.buffers))


class Wire:
    """Verifies and signs messages with the connection's key.

    Args:
        session: Holds the key, and the ids that the host's own messages carry.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def unpack(self, frames: list[bytes]) -> ClientMessage:
        """Verify a client's message.

        Raises:
            WireError: it is malformed, unsigned, wrongly signed or a repetition.
        """
        try:
            border = frames.index(DELIM)
        except ValueError as error:
            raise WireError("no delimiter") from error
        idents, signature, body = frames[:border], frames[border + 1 : border + 2], frames[border + 2 :]
        if len(body) < 4:
            raise WireError("too few parts")
        self._verify(signature[0], body)
        try:
            header = parse_object(body[0])
        except ValueError as error:
            raise WireError(f"header: {error}") from error
        if not isinstance(header.get("msg_type"), str) or not isinstance(header.get("msg_id"), str):
            raise WireError("header without msg_type or msg_id")
        raw_header, parent, metadata, content = body[:4]
        return ClientMessage(idents, header, raw_header, parent, metadata, content, body[4:])

    def _verify(self, signature: bytes, body: list[bytes]) -> None:
        if not self.session.key:
            return
        if not compare_digest(signature, self.session.sign(body[:4])):
            raise WireError("invalid signature")
        if signature in self._seen:
            raise WireError("repeated signature")
        self._seen[signature] = None
        if len(self._seen) > _REMEMBERED_SIGNATURES:
            self._seen.popitem(last=False)

    def pack(
        self,
        msg_type: str,
        content: bytes | dict[str, object],
        *,
        parent: bytes = b"{}",
        metadata: bytes | dict[str, object] = b"{}",
        buffers: Sequence[bytes] = (),
    ) -> tuple[str, list[bytes]]:
        """Make a message of the host's own session.

        Returns:
            Its msg_id, and its frames from the delimiter on.
        """
        header = self.session.msg_header(msg_type)
        parts = [
            self.session.pack(header),
            parent,
            metadata if isinstance(metadata, bytes) else encode(metadata),
            content if isinstance(content, bytes) else encode(content),
        ]
        return str(header["msg_id"]), [DELIM, self.session.sign(parts), *parts, *buffers]


def encode(value: object) -> bytes:
    """Return a value as JSON bytes."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogateescape")


def check_guest(channel: str, parts: list[bytes]) -> GuestMessage:
    """Check what the guest sent on a channel.

    Args:
        channel: ``shell``, ``control``, ``stdin`` or ``iopub``.
        parts: Header, parent header, metadata, content and buffers.

    Raises:
        WireError: it is not a message that this channel may carry.
    """
    if len(parts) < 4:
        raise WireError(f"{len(parts)} parts instead of four or more")
    raw_header, raw_parent, metadata, content = parts[:4]
    if len(raw_header) > HEADER_LIMIT or len(raw_parent) > HEADER_LIMIT:
        raise WireError("header too long")
    if len(metadata) > METADATA_LIMIT or (channel == "stdin" and len(content) > STDIN_LIMIT):
        raise WireError("metadata or prompt too long")
    try:
        header, parent = parse_object(raw_header), parse_object(raw_parent)
        msg_type, parent_id = header.get("msg_type"), parent.get("msg_id", "")
        if not isinstance(msg_type, str) or msg_type not in FROM_GUEST[channel]:
            raise WireError(f"message type {str(msg_type)[:64]!r} is not allowed here")
        check_object(metadata)
        check_object(content)
    except WireError:
        raise
    except ValueError as error:
        raise WireError(str(error)[:200]) from error
    return GuestMessage(
        msg_type, parent_id if isinstance(parent_id, str) else "", raw_header, metadata, content, list(parts[4:])
    )
