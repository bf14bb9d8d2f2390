"""What QEMU's agent in a guest says of it. Nobody vouches for it: root in the VM can make it up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_MOST_SIZE: Final = 1 << 53  # larger numbers do not survive JSON elsewhere
_MOST_LISTED: Final = 16

_Word = Annotated[str, Field(max_length=200)]
_Size = Annotated[int, Field(ge=0, le=_MOST_SIZE)]


class _Claim(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


_Model = TypeVar("_Model", bound=_Claim)


class System(_Claim):
    """Its operating system."""

    pretty_name: _Word = Field(default="", alias="pretty-name")
    kernel_release: _Word = Field(default="", alias="kernel-release")
    machine: _Word = ""


class FileSystem(_Claim):
    """A mounted file system; of some it does not say how full they are."""

    mountpoint: _Word
    type: _Word
    used_bytes: _Size | None = Field(default=None, alias="used-bytes")
    total_bytes: _Size | None = Field(default=None, alias="total-bytes")


class User(_Claim):
    """Somebody who has logged in."""

    user: _Word


class Description(BaseModel):
    """Facts about a guest. What is told in no sensible way is left out.

    Attributes:
        version: QEMU's agent's.
        system: The operating system.
        file_systems: Those that are mounted, at most 16.
        users: Who has logged in, at most 16.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = ""
    system: System = System()
    file_systems: tuple[FileSystem, ...] = ()
    users: tuple[User, ...] = ()

    @classmethod
    def of(cls, answer: Mapping[str, object]) -> Self:
        """Return what a guest agent's answer claims.

        Args:
            answer: Hostile: anything that is JSON. By commands of QEMU's agent, what it has returned.
        """
        about = answer.get("guest-info")
        version = about.get("version") if isinstance(about, Mapping) else None
        return cls(
            version=version if isinstance(version, str) and len(version) <= _MOST_LISTED else "",
            system=(*_sensible(System, [answer.get("guest-get-osinfo")]), System())[0],
            file_systems=_sensible(FileSystem, answer.get("guest-get-fsinfo")),
            users=_sensible(User, answer.get("guest-get-users")),
        )


def _sensible(model: type[_Model], values: object) -> tuple[_Model, ...]:
    found: list[_Model] = []
    for value in values[:_MOST_LISTED] if isinstance(values, list) else []:
        try:
            found.append(model.model_validate(value))
        except ValidationError:
            continue
    return tuple(found)
