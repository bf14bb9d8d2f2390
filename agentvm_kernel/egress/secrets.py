"""Secrets that VMs may use and never see: where they are kept, and which request gets which."""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

import keyring
import keyring.errors
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from agentvm_kernel.durable import Disk
from agentvm_kernel.egress.names import shown
from agentvm_kernel.egress.redaction import Redaction
from agentvm_kernel.errors import HostError, SecretError
from agentvm_kernel.private_file import read_private

FILE: Final = "secrets.json"
"""The list's name in the state folder."""

Headers = Sequence[tuple[bytes, bytes]]

_LARGEST: Final = 1 << 20
_PLACEHOLDER: Final = re.compile(rb"agentvm-secret-([A-Z][A-Z0-9_]{0,63})")

# A secret in one of these would change how the request is read, not who sends it.
_FRAMING: Final = (
    "connection|content-length|expect|host|keep-alive|proxy-connection|te|trailer|transfer-encoding|upgrade"
)

Name = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}\Z")]
Notebook = Annotated[str, Field(min_length=1, max_length=4096)]
Header = Annotated[str, Field(pattern=rf"^(?!(?i:{_FRAMING})$)[A-Za-z0-9!#$%&'*+.^_`|~-]{{1,64}}\Z")]


class Entry(BaseModel):
    """What is known of a secret without its value.

    Attributes:
        name: The environment variable that holds its placeholder in VMs.
        host: The only host that gets it, normalised.
        port: The only port.
        header: The only request header in which it is put.
        kept: Where the value is.
        value: The value, where it is kept in the file.
        notebooks: Whose VMs may use it, as sessions are named: a notebook's path; empty for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", regex_engine="python-re")

    name: Name
    host: str = Field(min_length=1, max_length=253)
    port: int = Field(default=443, ge=1, le=65535)
    header: Header
    kept: Literal["keyring", "file"]
    value: SecretStr | None = None
    notebooks: tuple[Notebook, ...] = Field(default=(), max_length=64)

    @property
    def placeholder(self) -> str:
        """What VMs have in its place."""
        return f"agentvm-secret-{self.name}"


class _Listing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    secrets: tuple[Entry, ...] = Field(default=(), max_length=256)


@dataclass(frozen=True)
class Secret:
    """A secret with its value.

    Attributes:
        entry: All else.
        value: The value; never in a representation.
    """

    entry: Entry
    value: bytes = field(repr=False)


class HostSecrets:
    """The secrets of one host and port.

    Args:
        secrets: Them.
    """

    def __init__(self, secrets: Iterable[Secret]) -> None:
        self._secrets = tuple(secrets)

    def __bool__(self) -> bool:
        return bool(self._secrets)

    def insert(self, headers: Headers) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
        """Put secrets in place of their placeholders, each in its own header only.

        Args:
            headers: A request's headers.

        Returns:
            The headers to send, and the values among them that hold a secret in an encoded form.
        """
        sent: list[tuple[bytes, bytes]] = []
        encoded: list[bytes] = []
        for name, value in headers:
            values = self._values_for(name)
            scheme, _, credentials = value.partition(b" ")
            if values and scheme.lower() == b"basic":
                replaced = _insert_basic(credentials.strip(), values)
                if replaced is not None:
                    encoded.append(replaced)
                    value = scheme + b" " + replaced  # noqa: PLW2901 - what is sent of it
            elif values:
                value = _insert(value, values)  # noqa: PLW2901
            sent.append((name, value))
        return sent, encoded

    def redaction(self, encoded: Iterable[bytes] = ()) -> Redaction:
        """Return what takes these secrets out of what the host answers.

        Args:
            encoded: Further texts that hold a secret.
        """
        needles = [(secret.value, secret.entry.placeholder.encode()) for secret in self._secrets]
        return Redaction(needles, encoded)

    def _values_for(self, header: bytes) -> dict[bytes, bytes]:
        wanted = header.lower()
        return {
            secret.entry.name.encode(): secret.value
            for secret in self._secrets
            if secret.entry.header.lower().encode() == wanted
        }


class SecretStore:
    """The user's secrets: a list in a private file, values in the host's keyring, or in that file where there is none.

    Args:
        folder: The state folder.
        tag: Tells this state folder's secrets from others' in the keyring.
    """

    def __init__(self, folder: Path, tag: str) -> None:
        self._path = folder / FILE
        self._service = f"agentvm-{tag}"
        self._stamp: tuple[int, ...] = ()
        self._entries: tuple[Entry, ...] = ()
        self._values: dict[tuple[tuple[int, ...], str], bytes] = {}

    def entries(self) -> tuple[Entry, ...]:
        """Return all secrets, without what the keyring holds; reads the file if it has changed.

        Raises:
            HostError: the file is open to others, or none of ours.
        """
        stamp = self._stat()
        if stamp != self._stamp:
            self._entries = self._read().secrets
            self._values.clear()
            self._stamp = stamp
        return self._entries

    def environment(self) -> dict[str, str]:
        """Return the variables that VMs get: placeholders by name.

        Raises:
            HostError: as ``entries``.
        """
        return {entry.name: entry.placeholder for entry in self.entries()}

    def has(self, host: str, port: int) -> bool:
        """Tell whether a host has a secret.

        Raises:
            HostError: as ``entries``.
        """
        return any((entry.host, entry.port) == (host, port) for entry in self.entries())

    def of_host(self, host: str, port: int, notebook: str = "") -> HostSecrets:
        """Return a host's secrets; may wait for the keyring.

        Args:
            host: The host, normalised.
            port: The port.
            notebook: Whose VM asks; secrets that are for others are left out.

        Raises:
            HostError: as ``entries``.
            SecretError: the keyring does not give them.
        """
        wanted = [
            entry
            for entry in self.entries()
            if (entry.host, entry.port) == (host, port) and (not entry.notebooks or notebook in entry.notebooks)
        ]
        return HostSecrets(Secret(entry, self._value(entry)) for entry in wanted)

    def put(self, name: str, host: str, port: int, header: str, value: str, *, notebooks: Sequence[str] = ()) -> Entry:
        """Keep a secret; one of the same name is replaced.

        Args:
            name: The environment variable in VMs, capitals.
            host: The host that gets it, normalised.
            port: The port.
            header: The request header.
            value: The value: 8 to 4,096 visible ASCII characters.
            notebooks: Whose VMs may use it; empty for all.

        Returns:
            What is known of it, and where it is kept.

        Raises:
            SecretError: something is not valid.
            HostError: the list cannot be read or written.
        """
        if not re.fullmatch(r"[!-~](?:[ -~]{6,4094})[!-~]", value):
            raise SecretError(
                "A secret's value must be 8 to 4096 visible ASCII characters.",
                "A shorter one could not be told from other text and taken out of answers.",
            )
        try:
            entry = Entry(
                name=name, host=host, port=port, header=header, kept="file", value=SecretStr(value),
                notebooks=tuple(notebooks),
            )  # fmt: skip
        except ValidationError as error:
            raise _not_valid(error) from error
        with self._locked():
            if self._to_keyring(name, value):
                entry = entry.model_copy(update={"kept": "keyring", "value": None})
            self._write([*(one for one in self.entries() if one.name != name), entry])
        return entry

    def remove(self, name: str) -> None:
        """Forget a secret.

        Raises:
            SecretError: there is none of that name, or the keyring does not let go of it.
            HostError: the list cannot be read or written.
        """
        with self._locked():
            entries = self.entries()
            found = next((entry for entry in entries if entry.name == name), None)
            if found is None:
                raise SecretError(f"There is no secret {shown(name)!r}.", "See `agentvm secret list`.")
            if found.kept == "keyring":
                self._from_keyring(name)
            self._write([entry for entry in entries if entry.name != name])

    def _value(self, entry: Entry) -> bytes:
        if entry.value is not None:
            return entry.value.get_secret_value().encode()
        # By the list's state, too: a thread may bring an old value when the list has just changed.
        key = self._stamp, entry.name
        if key not in self._values:
            try:
                value = keyring.get_password(self._service, entry.name)
            except keyring.errors.KeyringError as error:
                raise _locked(entry.name) from error
            if value is None:
                raise _locked(entry.name)
            self._values[key] = value.encode()
        return self._values[key]

    def _to_keyring(self, name: str, value: str) -> bool:
        try:
            keyring.set_password(self._service, name, value)
            # A keyring may take everything and keep nothing (keyring's "null" does).
            return keyring.get_password(self._service, name) == value
        except keyring.errors.KeyringError:
            return False

    def _from_keyring(self, name: str) -> None:
        try:
            if keyring.get_password(self._service, name) is not None:
                keyring.delete_password(self._service, name)
        except keyring.errors.KeyringError as error:
            raise _locked(name) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other commands from writing the list meanwhile: one of the changes would be lost."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _stat(self) -> tuple[int, ...]:
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return ()
        return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode, status.st_uid

    def _read(self) -> _Listing:
        content = read_private(self._path, _LARGEST)
        if content is None:
            return _Listing()
        try:
            return _Listing.model_validate_json(content)
        except ValidationError:
            # What is wrong is not shown: the values are in there.
            raise HostError(f"{self._path} is no list of secrets.", "Remove it and set them again.") from None

    def _write(self, entries: Iterable[Entry]) -> None:
        listing = _Listing(secrets=tuple(sorted(entries, key=lambda entry: entry.name)))
        plain = [
            entry.model_dump(exclude={"value"})
            | ({"value": entry.value.get_secret_value()} if entry.value is not None else {})
            for entry in listing.secrets
        ]
        Disk().replace(self._path, json.dumps({"version": 1, "secrets": plain}, indent=1).encode())


def _insert(value: bytes, values: dict[bytes, bytes]) -> bytes:
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), value)


def _insert_basic(credentials: bytes, values: dict[bytes, bytes]) -> bytes | None:
    """Return credentials (RFC 7617) with secrets in place, or None if they hold no placeholder."""
    try:
        text = base64.b64decode(credentials, validate=True)
    except binascii.Error:
        return None
    replaced = _insert(text, values)
    return None if replaced == text else base64.b64encode(replaced)


def _not_valid(error: ValidationError) -> SecretError:
    wrong = error.errors()[0]["loc"][0]
    remedies = {
        "name": "A name is that of an environment variable: capitals, digits and _, at most 64.",
        "header": "It is one header of a request, like Authorization; none that says how the request is read.",
        "port": "A port is a number from 1 to 65535.",
        "notebooks": "It can be restricted to at most 64 notebooks.",
    }
    return SecretError(f"The secret's {wrong} is not valid.", remedies.get(str(wrong), ""))


def _locked(name: str) -> SecretError:
    return SecretError(
        f"The host's keyring does not give the secret {name}.",
        f"Unlock the keyring, or set it again: agentvm secret set {name}.",
    )
