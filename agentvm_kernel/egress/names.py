"""Names of hosts, and the patterns that stand for them in rules."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Self

import idna

from agentvm_kernel.errors import AgentVMError

_LONGEST: Final = 253
"""Characters of a name without its trailing dot (RFC 1035, section 2.3.4)."""

_LONGEST_LABEL: Final = 63
_LONGEST_SHOWN: Final = 80
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LOOK_ALIKE: Final = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC"})
"""Scripts whose letters pass for each other's; no honest label mixes them (Unicode TR 39, section 5)."""


class NameRefusedError(AgentVMError):
    """A text is not the name of a host that may be connected to."""

    code = "name"


def shown(text: str) -> str:
    """Return a guest's text as it can be shown and logged: printable ASCII, bounded.

    Args:
        text: Any text.
    """
    plain = ascii(text[: _LONGEST + 1])[1:-1]
    return plain if len(plain) <= _LONGEST_SHOWN else f"{plain[: _LONGEST_SHOWN - 3]}..."


def normalize(text: str) -> str:
    """Return a host's name in the one form in which names are compared, resolved and logged.

    That is lower case, international labels as A-labels (``xn--``, RFC 5891), no trailing dot. What is not plainly the
    name of a host is refused, numbers that systems read as addresses (``127.1``, ``0x7f000001``) among it.

    Args:
        text: The name, from a user or a guest.

    Raises:
        NameRefusedError: it is no such name.
    """
    if not text or len(text) > _LONGEST + 1:
        raise _refused(text, "is empty" if not text else f"is longer than {_LONGEST} characters")
    if not text.isascii():
        text = _encoded(text)
    name = text.lower().removesuffix(".")
    if len(name) > _LONGEST:
        raise _refused(text, f"is longer than {_LONGEST} characters")
    labels = name.split(".")
    for label in labels:
        _check(text, label)
    if _NUMBER.fullmatch(labels[-1]):
        raise _refused(text, "ends in a number, as addresses do")
    return name


def _refused(text: str, why: str) -> NameRefusedError:
    return NameRefusedError(f"{shown(text)!r} {why}.", "Use the host's name, like pypi.org.")


def _encoded(text: str) -> str:
    try:
        return idna.encode(text, uts46=True, std3_rules=True).decode()
    except (idna.IDNAError, UnicodeError) as error:
        raise _refused(text, "is no valid international name") from error


def _check(text: str, label: str) -> None:
    if not label:
        raise _refused(text, "has an empty label")
    if len(label) > _LONGEST_LABEL:
        raise _refused(text, f"has a label of more than {_LONGEST_LABEL} characters")
    if not _LABEL.fullmatch(label):
        raise _refused(text, "has something other than letters, digits and inner hyphens in a label")
    if label.startswith("xn--"):
        _check_international(text, label)
    elif label[2:4] == "--":
        raise _refused(text, "has a label with hyphens where only xn-- may have them")


def _check_international(text: str, label: str) -> None:
    try:
        decoded = idna.ulabel(label)
        honest = idna.alabel(decoded).decode() == label
    except (idna.IDNAError, UnicodeError) as error:
        raise _refused(text, "has an international label that is not valid") from error
    scripts = {unicodedata.name(character, "").partition(" ")[0] for character in decoded if character.isalpha()}
    if not honest or len(scripts & _LOOK_ALIKE) > 1:
        raise _refused(text, "has a label that passes for another")


@dataclass(frozen=True)
class Pattern:
    """Which hosts and ports a rule is about.

    Attributes:
        name: The normalised name, without its wildcard.
        wildcard: Empty: exactly that name. ``*``: names with one label more. ``**``: with one or more labels more.
        ports: The ports; None for the usual ones.
    """

    name: str
    wildcard: str = ""
    ports: frozenset[int] | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern as users write it: ``pypi.org``, ``*.example.org:443``, ``**.example.org:80,443``.

        Args:
            text: The pattern.

        Raises:
            NameRefusedError: it is none.
        """
        if "//" in text:
            raise NameRefusedError(f"{shown(text)!r} is an address of a page.", "Give the host only, like example.org.")
        host, colon, numbers = text.strip().partition(":")
        ports = _parse_ports(text, numbers) if colon else None
        first, _, rest = host.partition(".")
        if first in {"*", "**"}:
            return cls(normalize(rest), first, ports)
        if "*" in host:
            raise NameRefusedError(
                f"{shown(text)!r} has a star inside of a name.",
                "Use *.example.org for one label, **.example.org for any number of them.",
            )
        return cls(normalize(host), "", ports)

    def matches(self, name: str) -> bool:
        """Return whether a name is one of these hosts'.

        Args:
            name: A normalised name.
        """
        if not self.wildcard:
            return name == self.name
        front, dot, _ = name.removesuffix(self.name).rpartition(".")
        if not name.endswith(f".{self.name}") or not dot:
            return False
        return self.wildcard == "**" or "." not in front

    def __str__(self) -> str:
        host = f"{self.wildcard}.{self.name}" if self.wildcard else self.name
        return host if self.ports is None else f"{host}:{','.join(map(str, sorted(self.ports)))}"


def _parse_ports(text: str, numbers: str) -> frozenset[int]:
    ports = [int(number) for number in numbers.split(",") if re.fullmatch(r"[0-9]{1,5}", number)]
    if len(ports) != numbers.count(",") + 1 or not all(0 < port < 1 << 16 for port in ports):
        raise NameRefusedError(f"{shown(text)!r} has ports that are none.", "Use numbers like :443 or :80,443.")
    return frozenset(ports)
