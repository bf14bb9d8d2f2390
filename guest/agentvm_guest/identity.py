"""The identity step: what makes a clone a VM of its own, before anything of the user's runs in it.

Everybody waits for it, in a VM that was just loaded: where code is emulated, all of it has to be translated anew then,
so that the step costs what it runs for the first time. Hence no regular expressions, hashes or files through `io` here.
"""

from __future__ import annotations

from dataclasses import dataclass

_HEX = "0123456789abcdefABCDEF"
_LOWER_HEX = "0123456789abcdef"
_LABEL = "abcdefghijklmnopqrstuvwxyz0123456789-"
_MODES = ("diverge", "common", "keep")


class RequestError(Exception):
    """A request's field is missing or not valid."""


@dataclass(frozen=True)
class Identity:
    """What the owner gives a clone.

    Attributes:
        epoch: The clone's number.
        key: The link's key, 32 bytes.
        time_ns: The time, in nanoseconds since 1970.
        entropy: 64 random bytes for the kernel's generator.
        hostname: The host name.
        machine_id: The machine id, 32 hexadecimal digits.
        randomness: What happens to the generators of the user's Python: ``diverge`` (seeded from the kernel's),
            ``common`` (seeded from the seed) or ``keep`` (left as they are). OpenSSL's is always renewed.
        seed: 64 bytes for ``common``; otherwise empty.
        fork: The fork's number, which the user's Python is told; 0 for a clone that is none.
    """

    epoch: int
    key: bytes
    time_ns: int
    entropy: bytes
    hostname: str
    machine_id: str
    randomness: str
    seed: bytes
    fork: int = 0


def parse_identity(request: dict[str, object]) -> Identity:
    """Read an ``identity`` request.

    Raises:
        RequestError: naming the field that is not valid.
    """
    randomness = _read_text(request, "randomness", "diverge")
    if randomness not in _MODES:
        raise RequestError("randomness is not diverge, common or keep")
    return Identity(
        read_integer(request, "epoch", 1 << 32),
        _read_hex(request, "key", 32),
        read_integer(request, "time_ns", 1 << 63),
        _read_hex(request, "entropy", 64),
        _read_hostname(request),
        _read_machine_id(request),
        randomness,
        _read_hex(request, "seed", 64) if randomness == "common" else b"",
        read_integer(request, "fork", 1 << 16) if "fork" in request else 0,
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


def read_network(request: dict[str, object]) -> str | None:
    """Return what a request says about the network, ``filtered`` or ``none``; None when it says nothing.

    Raises:
        RequestError: it says something else.
    """
    value = request.get("network")
    if value is None:
        return None
    if value not in ("filtered", "none"):
        raise RequestError("network is not filtered or none")
    return str(value)


def _read_text(request: dict[str, object], field: str, default: str = "") -> str:
    value = request.get(field, default)
    if not isinstance(value, str):
        raise RequestError(f"{field} is not valid")
    return value


def _read_hex(request: dict[str, object], field: str, size: int) -> bytes:
    value = request.get(field)
    if not isinstance(value, str) or len(value) != 2 * size or value.strip(_HEX):
        raise RequestError(f"{field} is not {size} bytes in hexadecimal")
    return bytes.fromhex(value)


def _read_hostname(request: dict[str, object]) -> str:
    value = _read_text(request, "hostname")
    if not 1 <= len(value) <= 63 or value.strip(_LABEL) or value[0] == "-" or value[-1] == "-":
        raise RequestError("hostname is not valid")
    return value


def _read_machine_id(request: dict[str, object]) -> str:
    value = _read_text(request, "machine_id")
    if len(value) != 32 or value.strip(_LOWER_HEX):
        raise RequestError("machine_id is not valid")
    return value
