"""Runs as a cell in a clone of a snapshot, never on the host: lists what is there. Standard library only.

The clone is thrown away afterwards, so it does not matter what this leaves behind. No method of the user's objects is
called: a class may do anything when it is asked for its length or its text.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import marshal
import pathlib
import subprocess
import sys
import types
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

MOST_FILES = 24 << 20  # bytes of the list
MOST = {"packages": 5000, "processes": 2000, "variables": 2000}
LONGEST = 200
PIECE = 128 << 10

_MOST_ELEMENTS = 20_000  # of one variable, or rows
_MOST_BYTES = 4 << 20  # of one text
_DEEPEST = 20
_SMALL = 60  # characters of a number
_BITS = 128


def clean(text: str, most: int = LONGEST) -> str:
    """Return the beginning of a text as it may stand in JSON."""
    return text[:most].encode("utf-8", "replace").decode()


def list_files(most: int = MOST_FILES) -> tuple[bytes, bool]:
    """Return what the root file system has but folders, as ``SIZE CHANGED PATH`` ending in NUL, and if it was cut."""
    command = ["find", "/", "-xdev", "!", "-type", "d", "-printf", "%s %C@ %p\\0"]
    environment, nothing = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing) as process:
        assert process.stdout is not None  # for the type checker
        listed = process.stdout.read(most)
        is_cut = bool(process.stdout.read(1))
        process.kill()
    return listed[: listed.rfind(b"\0") + 1], is_cut


def list_packages(folders: list[str] | None = None, status: str = "/var/lib/dpkg/status") -> Iterator[list[str]]:
    """Yield ``SOURCE NAME VERSION`` of Python's packages, from the names of their folders, and of Debian's."""
    seen = set()
    for folder in sys.path if folders is None else folders:
        with contextlib.suppress(OSError):
            for path in sorted(pathlib.Path(folder or ".").iterdir()):
                name, _, version = path.stem.partition("-")
                if path.suffix in (".dist-info", ".egg-info") and version and name not in seen:
                    seen.add(name)
                    yield ["python", clean(name), clean(version.partition("-")[0])]
    with contextlib.suppress(OSError):
        text = pathlib.Path(status).read_text(encoding="utf-8", errors="replace")
        for block in text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and line[0] != " ")
            if fields.get("Status", "").endswith(" installed") and "Package" in fields:
                yield ["debian", clean(fields["Package"]), clean(fields.get("Version", ""))]


def list_processes(folder: str = "/proc") -> Iterator[list[int | str]]:
    """Yield pid, start and command of each process; the kernel's own have no command."""
    for process in sorted(pathlib.Path(folder).glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError, IndexError, ValueError):
            command = (process / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
            start = (process / "stat").read_bytes().rpartition(b")")[2].split()[19]
            if command:
                yield [int(process.name), int(start), clean(command[: 4 * LONGEST].decode("utf-8", "replace"))]


def list_variables(namespace: dict[str, Any]) -> Iterator[list[str]]:
    """Yield name, type, summary and digest of the user's variables."""
    shell = namespace.get("get_ipython")
    hidden = dict(getattr(shell(), "user_ns_hidden", {})) if isinstance(shell, types.MethodType) else {}
    for name, value in list(namespace.items()):
        if type(name) is str and not name.startswith("_") and hidden.get(name, hidden) is not value:
            digest = Digest()
            with contextlib.suppress(Exception):  # another thread may change it meanwhile
                digest.feed(value)
            yield [clean(name), type_name(type(value)), summary(value), digest.text()]


def type_name(kind: type) -> str:
    """Return a class's name without asking a metaclass for it."""
    parts = [type.__getattribute__(kind, name) for name in ("__module__", "__qualname__")]
    return clean(".".join(part for part in parts if type(part) is str and part != "builtins"))


def summary(value: Any) -> str:
    """Say how large a value of a known type is, or which a small number is; never what a text or a container holds."""
    kind, rows = type(value), array_shape(value)
    if kind is int and value.bit_length() > _BITS:
        return f"{value.bit_length()} bits"
    if kind in (int, float, complex, bool, type(None)):
        return repr(value)[:_SMALL]
    if kind is str:
        return f"{len(value)} characters"
    if kind in (bytes, bytearray):
        return f"{len(value)} bytes"
    if kind in (list, tuple, set, frozenset, dict):
        return f"{len(value)} items"
    return clean(rows) if rows else ""


def known(module: str, name: str) -> Any:
    """Return a class of a module that has been imported, if it has."""
    return getattr(sys.modules.get(module), name, None)


def array_shape(value: Any) -> str:
    """Return the shape of an array or a table; empty if it is neither."""
    kind = type(value)
    if kind is known("numpy", "ndarray"):
        return f"{value.shape}, {value.dtype}"
    if kind in (known("pandas", "DataFrame"), known("pandas", "Series")):
        return f"{value.shape}"
    return ""


class Digest:
    """A digest of a value: of what it holds where its type is known, else of which object it is."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)
        self._left = _MOST_ELEMENTS

    def text(self) -> str:
        """Return it."""
        return self._hash.hexdigest()

    def feed(self, value: Any, depth: int = 0) -> None:
        """Take a value; of large ones only the beginning."""
        self._left -= 1
        kind = type(value)
        self._add(type_name(kind).encode())
        if kind is int:
            self._add(value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)[:_MOST_BYTES])
        elif kind in (float, complex, bool, type(None)):
            self._add(repr(value).encode())
        elif kind is str:
            self._add(b"%d" % len(value) + value[:_MOST_BYTES].encode("utf-8", "surrogatepass"))
        elif kind in (bytes, bytearray):
            self._add(b"%d" % len(value) + bytes(value[:_MOST_BYTES]))
        elif kind in (list, tuple, set, frozenset, dict) and depth < _DEEPEST:
            self._container(value, depth)
        elif kind is types.FunctionType:
            self._add(marshal.dumps(value.__code__))
        else:
            self._other(value)

    def _add(self, data: bytes) -> None:
        self._hash.update(b"%d " % len(data) + data)

    def _container(self, value: Any, depth: int) -> None:
        self._add(b"%d" % len(value))
        for item in value.items() if type(value) is dict else value:
            if self._left <= 0:
                return
            self.feed(item, depth + 1)

    def _other(self, value: Any) -> None:
        shape = array_shape(value)
        self._add(shape.encode() or b"%d" % id(value))
        if type(value) is known("numpy", "ndarray"):
            self._add(value.flat[:_MOST_ELEMENTS].tobytes())
        elif shape:
            hashed = sys.modules["pandas"].util.hash_pandas_object(value.iloc[:_MOST_ELEMENTS])
            self._add(hashed.to_numpy().tobytes())


def cut(items: Iterable[Any], most: int) -> tuple[list[Any], bool]:
    """Return the first items, and whether there were more."""
    kept: list[Any] = []
    for item in items:
        if len(kept) == most:
            return kept, True
        kept.append(item)
    return kept, False


def show(mark: str, namespace: dict[str, Any]) -> None:
    """Print everything, packed, in lines that begin with a mark; the last one is the mark and a dot."""
    parts: dict[str, Iterable[Any]] = {
        "processes": list_processes(),
        "variables": list_variables(namespace),
        "packages": list_packages(),
    }
    found = {name: cut(items, MOST[name]) for name, items in parts.items()}
    files, is_cut = list_files()
    head: dict[str, list[Any]] = {name: items for name, (items, _) in found.items()}
    head["cut"] = [name for name, (_, is_more) in found.items() if is_more] + ["files"] * is_cut
    packed = base64.b64encode(zlib.compress(json.dumps(head).encode() + b"\n" + files, 1)).decode()
    for begin in range(0, len(packed), PIECE):
        sys.stdout.write(f"\n{mark}{packed[begin : begin + PIECE]}\n")
        sys.stdout.flush()
    sys.stdout.write(f"\n{mark}.\n")
    sys.stdout.flush()
