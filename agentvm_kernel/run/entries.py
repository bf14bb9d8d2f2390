"""Reads what a guest sends of files; it may be anything. `agentvm_kernel.run.carrier` says how it is written."""

from __future__ import annotations

import json
import os
from binascii import crc32
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from agentvm_kernel.errors import TransferError

_MAX_LINE: Final = 64 << 10
_MAX_MANIFEST: Final = 16 << 20
_MAX_SIZE: Final = 1 << 60
_MAX_TIME: Final = (1 << 63) - 1

_Size = Annotated[int, Field(ge=0, le=_MAX_SIZE)]
_Check = Annotated[int, Field(ge=0, le=0xFFFFFFFF)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Model = TypeVar("_Model", bound=BaseModel)


def _name(value: object) -> str:
    """Take any text: names of files need not be Unicode, which pydantic's own strings have to be."""
    if not isinstance(value, str):
        raise ValueError("no text")
    os.fsencode(value)  # a ValueError for what no file can be called
    return value


_Name = Annotated[str, PlainValidator(_name)]


class Total(BaseModel):
    """How much is to come, as the guest claims.

    Attributes:
        size: Bytes of content.
        count: Files, folders and links.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: _Size
    count: _Size


class Entry(BaseModel):
    """A file, a folder or a link.

    Attributes:
        path: Its path below what is copied; empty for that itself.
        kind: What it is; ``other`` is a device or a named pipe.
        mode: Permissions.
        mtime: Nanoseconds since 1970.
        size: A file's length in bytes.
        offset: How much of it is here already.
        target: What a link leads to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: _Name
    kind: Literal["file", "folder", "link", "other"]
    mode: Annotated[int, Field(ge=0, le=0o777)]
    mtime: Annotated[int, Field(ge=-_MAX_TIME, le=_MAX_TIME)]
    size: _Size = 0
    offset: _Size = 0
    target: _Name = ""


class End(BaseModel):
    """The end of it.

    Attributes:
        check: CRC-32 of all content that passed, as the guest claims.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    check: _Check


class EntryStream:
    """Reads what is sent from its beginning to its end.

    Args:
        pieces: What is sent.

    Attributes:
        check: CRC-32 of the content that has come.
    """

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.check = 0
        self._pieces = pieces
        self._data = b""
        self._left = 0

    async def total(self) -> Total:
        """Return how much is to come.

        Raises:
            TransferError: it is nothing of the kind.
        """
        return _read(Total, await self._line())

    async def next(self) -> Entry | End:
        """Return what comes next; a file's content has to be read to its end before.

        Raises:
            TransferError: it is nothing of the kind.
        """
        line = await self._line()
        if line.startswith(b'{"check"'):
            end = _read(End, line)
            if self._data or await anext(self._pieces, b""):
                raise TransferError("What the VM sends goes on after its end.")
            return end
        entry = _read(Entry, line)
        if entry.offset > entry.size or (entry.size and entry.kind != "file"):
            raise _damaged()
        self._left = entry.size - entry.offset
        return entry

    async def content(self) -> AsyncIterator[bytes]:
        """Yield the content of the file that came last, in pieces.

        Raises:
            TransferError: it is cut off.
        """
        while self._left:
            if not self._data:
                await self._more()
            piece, self._data = self._data[: self._left], self._data[self._left :]
            self._left -= len(piece)
            self.check = crc32(piece, self.check)
            yield piece

    async def _line(self) -> bytes:
        while b"\n" not in self._data:
            if len(self._data) > _MAX_LINE:
                raise TransferError("The VM sent a file with too long a path.")
            await self._more()
        line, _, self._data = self._data.partition(b"\n")
        return line

    async def _more(self) -> None:
        try:
            self._data += await anext(self._pieces)
        except StopAsyncIteration:
            raise TransferError("What the VM sends is cut off.") from None


class Arrived(End):
    """The end of what was received.

    Attributes:
        path: What it has become.
    """

    path: Annotated[str, Field(max_length=4096)]


_MANIFEST: Final = TypeAdapter(dict[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")], tuple[_Size, _Digest]])


async def read_manifest(pieces: AsyncIterator[bytes]) -> dict[str, tuple[int, str]]:
    """Read what a guest that is to receive says first: what it has already.

    Raises:
        TransferError: it is nothing of the kind.
    """
    said = bytearray()
    async for piece in pieces:
        said += piece
        if said.endswith(b"\n") or len(said) > _MAX_MANIFEST:
            break
    try:
        return _MANIFEST.validate_json(bytes(said))
    except ValidationError:
        raise _damaged() from None


def read_arrived(said: bytes) -> Arrived:
    """Read what a guest that has received says at last.

    Raises:
        TransferError: it is nothing of the kind.
    """
    return _read(Arrived, said)


def _read(model: type[_Model], line: bytes) -> _Model:
    try:
        value: Any = json.loads(line)
        return model.model_validate(value)
    except (ValueError, RecursionError):
        raise _damaged() from None


def _damaged() -> TransferError:
    return TransferError("What the VM sent is damaged, or nothing that is known here.")
