"""Cassettes: HTTP exchanges written down beside a notebook, and answered from there later. See docs/cassettes.md."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentvm_kernel.errors import CassetteError, host_error

FORMAT: Final = "agentvm-cassette"
VERSION: Final = 1
LARGEST_BODY: Final = 16 << 20
"""Bytes of a request's or a response's body."""

REDACTED: Final = "REDACTED"

_LARGEST: Final = 64 << 20
_MOST: Final = 10_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PRIVATE: Final = re.compile(r"(?i)(proxy-)?authorization|cookie|(.*[-_])?(api[-_]?key|token|secret|signature)")
_PRIVATE_QUERY: Final = re.compile(
    r"(?i)([?&](?:[^=&#]*[-_])?(?:key|apikey|token|secret|signature|sig|password)=)[^&#]*"
)
_COOKIE: Final = re.compile(r"^([^=;]*)=[^;]*")
_FRAMING: Final = frozenset({"connection", "content-length", "keep-alive", "trailer", "transfer-encoding", "upgrade"})

HeaderList = list[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """What a guest's program asked.

    Attributes:
        method: ``GET`` and so on.
        url: All of it.
        headers: As the guest sent them, so with placeholders for secrets.
        body: The body, without its transfer encoding.
    """

    method: str
    url: str
    headers: HeaderList
    body: bytes


@dataclass(frozen=True)
class Response:
    """What it was answered.

    Attributes:
        status: The status code.
        reason: The reason phrase.
        headers: None of those that only frame the body on its connection.
        body: The body, without its transfer encoding.
    """

    status: int
    reason: str
    headers: HeaderList
    body: bytes


_HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$")]
_HeaderValue = Annotated[str, Field(pattern=r"^[\t\x20-\x7e\x80-\xff]{0,16384}$")]
_Headers = Annotated[list[tuple[_HeaderName, _HeaderValue]], Field(max_length=256)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    headers: _Headers
    body: str
    encoding: Literal["utf-8", "base64"]

    @property
    def content(self) -> bytes:
        return base64.b64decode(self.body, validate=True) if self.encoding == "base64" else self.body.encode()


class _Request(_Part):
    method: str = Field(pattern=r"^[A-Z]{1,32}$")
    url: str = Field(pattern=r"^https?://[!-~]{1,16384}$")


class _Response(_Part):
    status: int = Field(ge=200, le=599)
    reason: str = Field(pattern=r"^[\t\x20-\x7e]{0,256}$")


class _Exchange(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    request: _Request
    response: _Response


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["agentvm-cassette"]
    version: int


class Cassette:
    """One cassette, being recorded or replayed. Made by ``record`` or ``replay``, kept in `Access.cassette`.

    Attributes:
        path: The file.
        exchanges: How many are recorded, or how many are still to be replayed.
    """

    def __init__(self, path: Path, descriptor: int | None, recorded: Iterable[_Exchange] = ()) -> None:
        self.path = path
        self.exchanges = 0
        self._descriptor = descriptor
        self._size = 0
        self._recorded: defaultdict[tuple[str, str, bytes], deque[_Exchange]] = defaultdict(deque)
        for exchange in recorded:
            request = exchange.request
            self._recorded[_key(request.method, request.url, request.content)].append(exchange)
            self.exchanges += 1

    @classmethod
    def record(cls, folder: Path, name: str) -> Self:
        """Begin a recording.

        Args:
            folder: Where the notebook is.
            name: The recording's name.

        Raises:
            CassetteError: name or folder is not valid, or there is one of that name.
            HostError: the file cannot be written.
        """
        path = _path(folder, name)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise CassetteError(
                f"There is a recording {path} already.",
                f"Replay it (%net replay {name}), remove it, or take another name.",
            ) from error
        except OSError as error:
            raise host_error(error) from error
        made = cls(path, descriptor)
        made._append({"format": FORMAT, "version": VERSION})
        return made

    @classmethod
    def replay(cls, folder: Path, name: str) -> Self:
        """Read a recording; may take a second.

        Args:
            folder: Where the notebook is.
            name: The recording's name.

        Raises:
            CassetteError: there is none, or it is not a whole and valid one.
            HostError: the file cannot be read.
        """
        path = _path(folder, name)
        lines = _read(path).split(b"\n")
        if lines.pop():
            raise _not_valid(path, len(lines) + 1, "it is cut off")
        if not lines or len(lines) > _MOST + 1:
            raise _not_valid(path, 1, f"it has no line, or more than {_MOST} exchanges")
        _check_head(path, lines[0])
        return cls(path, None, [_parse(path, number, line) for number, line in enumerate(lines[1:], start=2)])

    @property
    def recording(self) -> bool:
        """Whether exchanges are added; otherwise all is answered from what is there."""
        return self._descriptor is not None

    def add(self, request: Request, response: Response) -> None:
        """Write an exchange down; what looks like a credential is blotted out.

        Raises:
            CassetteError: the cassette is full or was closed.
            HostError: the file cannot be written.
        """
        if self.exchanges >= _MOST:
            raise CassetteError(f"{self.path} has {_MOST} exchanges; it takes no more.", "Record into another one.")
        url = _clean_url(request.url)
        asked = {"method": request.method, "url": url, "headers": _clean(request.headers), **_text(request.body)}
        framing = _FRAMING - {"content-length"} if request.method == "HEAD" else _FRAMING
        headers = [(name, value) for name, value in _clean(response.headers) if name.lower() not in framing]
        answered = {"status": response.status, "reason": response.reason, "headers": headers, **_text(response.body)}
        self._append({"request": asked, "response": answered})
        self.exchanges += 1

    def answer(self, request: Request) -> Response:
        """Return what a request was answered when it was recorded; the same one asked again gets the next answer.

        Raises:
            CassetteError: it was not recorded, or not so often.
        """
        waiting = self._recorded.get(_key(request.method, _clean_url(request.url), request.body))
        if not waiting:
            often = "so often" if waiting is not None else "with this content"
            raise CassetteError(
                f"{request.method} {_clean_url(request.url)} was not recorded {often} in {self.path.name}.",
                "Record anew, or begin the replay from its start.",
            )
        found = waiting.popleft().response
        self.exchanges -= 1
        framing = _FRAMING - {"content-length"} if request.method == "HEAD" else _FRAMING
        headers = [(name, value) for name, value in found.headers if name.lower() not in framing]
        return Response(found.status, found.reason, headers, found.content)

    def close(self) -> None:
        """End it; what was recorded is safe on disk then."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _append(self, value: object) -> None:
        if self._descriptor is None:
            raise CassetteError(f"The recording into {self.path} has ended.", "Begin another one: %net record NAME.")
        line = json.dumps(value).encode() + b"\n"
        if self._size + len(line) > _LARGEST:
            raise CassetteError(f"{self.path} would be over {_LARGEST >> 20} MiB.", "Record into another one.")
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):  # the disk is full; half a line would spoil all that is there
                os.ftruncate(self._descriptor, self._size)
                raise CassetteError(f"There is no room for {self.path}.", "Make room on that disk.")
        except OSError as error:
            raise host_error(error) from error
        self._size += len(line)


def _path(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise CassetteError(f"{name[:80]!r} is no name for a recording.", "Use letters, digits, - and _, at most 64.")
    try:
        is_there = folder.is_absolute() and folder.is_dir()
    except OSError:  # its name is too long, or what it lies in may not be looked into
        is_there = False
    if not is_there:
        raise CassetteError(f"{str(folder)!a:.200} is no absolute path of a folder that is there.", "Name one.")
    return folder / f"{name}.cassette.jsonl"


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CassetteError(f"There is no recording {path}.", "Make one: %net record NAME.") from error
    except OSError as error:
        raise host_error(error) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise CassetteError(f"{path} is no file of at most {_LARGEST >> 20} MiB.", "Record anew.")
        return file.read(_LARGEST)


def _check_head(path: Path, line: bytes) -> None:
    try:
        head = _Head.model_validate_json(line)
    except ValidationError as error:
        raise _not_valid(path, 1, "it does not begin as a recording does") from error
    if head.version != VERSION:
        raise CassetteError(f"{path} has version {head.version}; this is for {VERSION}.", "Record anew.")


def _parse(path: Path, number: int, line: bytes) -> _Exchange:
    try:
        exchange = _Exchange.model_validate_json(line)
        largest = max(len(exchange.request.content), len(exchange.response.content))
    except (ValidationError, binascii.Error) as error:
        raise _not_valid(path, number, "this is no exchange") from error
    if largest > LARGEST_BODY:
        raise _not_valid(path, number, f"a body is over {LARGEST_BODY >> 20} MiB")
    return exchange


def _not_valid(path: Path, line: int, what: str) -> CassetteError:
    return CassetteError(f"{path}:{line}: {what}.", "Record anew; the format is in docs/cassettes.md.")


def _key(method: str, url: str, body: bytes) -> tuple[str, str, bytes]:
    return method, url, hashlib.sha256(body).digest()


def _clean_url(url: str) -> str:
    return _PRIVATE_QUERY.sub(rf"\1{REDACTED}", url)


def _clean(headers: HeaderList) -> HeaderList:
    return [(name, _clean_value(name.lower(), value)) for name, value in headers]


def _clean_value(name: str, value: str) -> str:
    if name == "set-cookie":
        return _COOKIE.sub(rf"\1={REDACTED}", value)
    return REDACTED if _PRIVATE.fullmatch(name) else value


def _text(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode(), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "encoding": "base64"}
