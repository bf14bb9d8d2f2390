"""The identity step: what makes a clone a VM of its own, before anything of the user's runs in it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


class RequestError(Exception):
    """A request's field is missing or not valid."""


@dataclass(frozen=True)
class Identity:
    """What the owner gives a clone.

    Attributes:
        epoch: The clone's number.
        key: The link's key, 32 bytes.
        time_ns: The time, in nanoseconds since 1970.
        entropy: 64 random bytes.
        hostname: The host name.
        machine_id: The machine id, 32 hexadecimal digits.
        seed: What the generators of the user's Python are seeded from; None leaves them as they are. The kernel's and
            OpenSSL's are renewed from the entropy, whatever this is.
    """

    epoch: int
    key: bytes
    time_ns: int
    entropy: bytes
    hostname: str
    machine_id: str
    seed: bytes | None

    def derive(self, purpose: str) -> bytes:
        """Return 64 random bytes for one purpose; those for another tell nothing about them."""
        return _derive(self.entropy, purpose)


def parse_identity(request: dict[str, object]) -> Identity:
    """Read an ``identity`` request.

    Raises:
        RequestError: naming the field that is not valid.
    """
    entropy = _read_hex(request, "entropy", 64)
    return Identity(
        epoch=read_integer(request, "epoch", 1 << 32),
        key=_read_hex(request, "key", 32),
        time_ns=read_integer(request, "time_ns", 1 << 63),
        entropy=entropy,
        hostname=_read_text(request, "hostname", _HOSTNAME),
        machine_id=_read_text(request, "machine_id", _MACHINE_ID),
        seed=_read_seed(request, entropy),
    )


def read_integer(request: dict[str, object], field: str, limit: int) -> int:
    """Return a field that is an integer from 0 to below the limit.

    Raises:
        RequestError: it is not.
    """
    value = request.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise RequestError(f"{field} is not an integer from 0 to {limit - 1}")
    return value


def _read_seed(request: dict[str, object], entropy: bytes) -> bytes | None:
    """Return the seed of the mode: of a clone that differs, of clones that agree, or none for one that goes on."""
    randomness = request.get("randomness", "diverge")
    if randomness == "diverge":
        return _derive(entropy, "seed")
    if randomness == "common":
        return _read_hex(request, "seed", 64)
    if randomness == "keep":
        return None
    raise RequestError("randomness is not diverge, common or keep")


def _read_hex(request: dict[str, object], field: str, size: int) -> bytes:
    value = request.get(field)
    if not isinstance(value, str) or re.fullmatch(rf"[0-9a-fA-F]{{{2 * size}}}", value) is None:
        raise RequestError(f"{field} is not {size} bytes in hexadecimal")
    return bytes.fromhex(value)


def _derive(entropy: bytes, purpose: str) -> bytes:
    return hashlib.sha512(purpose.encode() + b"|" + entropy).digest()


def _read_text(request: dict[str, object], field: str, pattern: re.Pattern[str]) -> str:
    value = request.get(field)
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise RequestError(f"{field} is not valid")
    return value
