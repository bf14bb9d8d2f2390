"""What differs between two inventories. Its texts are the guests', made harmless; whether they are true is unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from agentvm_kernel.compare.inventory import Inventory, Part
from agentvm_kernel.terminal import plain

MOST: Final = 200
"""Entries of each list."""

_LONGEST: Final = 400


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Model):
    """A file that is there in one of the two.

    Attributes:
        path: Its path.
        size: Its size, bytes.
    """

    path: str
    size: int


class ChangedFile(_Model):
    """A file of another size or with another time of its last change; its content was not looked at.

    Attributes:
        path: Its path.
        size_before: Its size in the first.
        size_after: Its size in the second.
    """

    path: str
    size_before: int
    size_after: int


class Package(_Model):
    """A package that is there in one of the two.

    Attributes:
        source: Whose it is: Python's or Debian's.
        name: Its name.
        version: Its version.
    """

    source: Literal["python", "debian"]
    name: str
    version: str


class ChangedPackage(_Model):
    """A package of another version.

    Attributes:
        source: Whose it is: Python's or Debian's.
        name: Its name.
        before: Its version in the first.
        after: Its version in the second.
    """

    source: Literal["python", "debian"]
    name: str
    before: str
    after: str


class Variable(_Model):
    """A variable that is there in one of the two.

    Attributes:
        name: Its name.
        type: Its type.
        summary: How large it is, or which small number.
    """

    name: str
    type: str
    summary: str


class ChangedVariable(_Model):
    """A variable with another value.

    Attributes:
        name: Its name.
        before: Type and summary in the first.
        after: Type and summary in the second; may look the same.
    """

    name: str
    before: str
    after: str


_One = TypeVar("_One")
_Two = TypeVar("_Two")
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Difference(_Model, Generic[_One, _Two]):
    """What differs in one respect.

    Attributes:
        added: What is there only in the second; the first of it.
        removed: What is there only in the first, likewise.
        changed: What is another in the second, likewise.
        count: How much there is of all that.
        truncated: There is more than is listed, or more than could be looked at.
    """

    added: tuple[_One, ...]
    removed: tuple[_One, ...]
    changed: tuple[_Two, ...] = ()
    count: int
    truncated: bool


class Comparison(_Model):
    """What differs between two snapshots, as their guests claim.

    Attributes:
        a: Id of the first.
        b: Id of the second.
        claimed: Nobody vouches for it.
        files: What differs on the root file system.
        packages: What differs in packages.
        processes: Which have begun and ended.
        variables: What differs in the notebook's namespace.
    """

    a: str
    b: str
    claimed: Literal[True] = True
    files: Difference[File, ChangedFile]
    packages: Difference[Package, ChangedPackage]
    processes: Difference[str, str]
    variables: Difference[Variable, ChangedVariable]


def compare(a: str, before: Inventory, b: str, after: Inventory) -> Comparison:
    """Return what differs.

    Args:
        a: Id of the first snapshot.
        before: What it holds.
        b: Id of the second snapshot.
        after: What it holds.
    """

    def differ(
        part: Part,
        old: dict[_Key, _Value],
        new: dict[_Key, _Value],
        one: Callable[[_Key, _Value], _One],
        two: Callable[[_Key, _Value, _Value], _Two],
    ) -> Difference[_One, _Two]:
        # What is missing in a list that was cut may only have been cut off.
        added = [key for key in new if key not in old] if part not in before.cut else []
        removed = [key for key in old if key not in new] if part not in after.cut else []
        changed = [key for key in new if key in old and old[key] != new[key]]
        lists = tuple(_first(keys) for keys in (added, removed, changed))
        return Difference[_One, _Two](
            added=tuple(one(key, new[key]) for key in lists[0]),
            removed=tuple(one(key, old[key]) for key in lists[1]),
            changed=tuple(two(key, old[key], new[key]) for key in lists[2]),
            count=len(added) + len(removed) + len(changed),
            truncated=part in before.cut | after.cut or max(map(len, (added, removed, changed))) > MOST,
        )

    return Comparison(
        a=a, b=b,
        files=differ("files", before.files(), after.files(), _file, _changed_file),
        packages=differ("packages", before.packages, after.packages, _package, _changed_package),
        processes=differ(
            "processes", before.processes, after.processes, _process, lambda key, _, new: _process(key, new)
        ),
        variables=differ("variables", before.variables, after.variables, _variable, _changed_variable),
    )  # fmt: skip


def _first(keys: Iterable[_Key]) -> list[_Key]:
    return sorted(keys)[:MOST]  # type: ignore[type-var]


def _shown(text: str) -> str:
    """Return a guest's text without what could steer a terminal or hide something."""
    return plain(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\N{HORIZONTAL ELLIPSIS}")


def _file(path: bytes, found: tuple[int, bytes]) -> File:
    return File(path=_path(path), size=found[0])


def _changed_file(path: bytes, old: tuple[int, bytes], new: tuple[int, bytes]) -> ChangedFile:
    return ChangedFile(path=_path(path), size_before=old[0], size_after=new[0])


def _path(path: bytes) -> str:
    return _shown(path.decode("utf-8", "replace"))


def _package(key: tuple[str, str], version: str) -> Package:
    return Package.model_validate({"source": key[0], "name": _shown(key[1]), "version": _shown(version)})


def _changed_package(key: tuple[str, str], old: str, new: str) -> ChangedPackage:
    values = {"source": key[0], "name": _shown(key[1]), "before": _shown(old), "after": _shown(new)}
    return ChangedPackage.model_validate(values)


def _process(key: tuple[int, int], command: str) -> str:
    return f"{_shown(command)} (pid {key[0]})"


def _variable(name: str, value: tuple[str, str, str]) -> Variable:
    return Variable(name=_shown(name), type=_shown(value[0]), summary=_shown(value[1]))


def _changed_variable(name: str, old: tuple[str, str, str], new: tuple[str, str, str]) -> ChangedVariable:
    before, after = (", ".join(_shown(text) for text in value[:2] if text) for value in (old, new))
    return ChangedVariable(name=_shown(name), before=before, after=after)
