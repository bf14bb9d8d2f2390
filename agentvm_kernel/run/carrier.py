"""Sends files from either end and receives them in the VM, where this file runs as a program with nothing beside it.

Whoever receives begins, with a line that says what is there of an earlier attempt. What is sent is a line that says how
much there is; then, for each file, folder and link, a line that says what it is, a file's followed by its content; and
a line with a check of all content. Lines are JSON. What has come so far lies in a folder beside its place (`Part`).

What passes is checked by CRC-32: it has to find faults, not forgery, which a guest could commit anyway, and SHA-256
takes long in an emulated guest. By SHA-256 it is found out whether what is there already is what is to be gone on with.

Imports cost time in an emulated guest: there are few, and what is seldom needed is imported where it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import stat
import sys
import time
from binascii import crc32

TYPE_CHECKING = False  # for type checkers it is true; the VM need not wait for typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

PART = ".agentvm-part-"
PART_SECONDS = 7 * 24 * 3600
DEEPEST = 100  # parts of a path
_CHUNK = 256 << 10
_FAILED = 66


class RefusedError(Exception):
    """It cannot be copied; the message says why."""


def key(path: str) -> str:
    """Return what the file of a path is called in a part's manifest."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:32]


def digest(sums: Mapping[str, str]) -> str:
    """Return the digest of files.

    It is what ``find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum`` prints in the folder.

    Args:
        sums: SHA-256 by path; the path of what is a file by itself is empty, and its digest is its own.
    """
    if list(sums) == [""]:
        return sums[""]
    summing = hashlib.sha256()
    for name, path in sorted((os.fsencode(path), path) for path in sums):
        shown = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        mark = b"\\" if shown != name else b""
        summing.update(mark + sums[path].encode() + b"  ./" + shown + b"\n")
    return summing.hexdigest()


def is_other(status: os.stat_result) -> bool:
    """Return whether something is neither file, folder nor link."""
    return not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode))


def line(**values: Any) -> bytes:
    """Return a line of what is sent."""
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


class _Folders:
    """Opens folders below a root, part by part: what becomes a link meanwhile leads nowhere else.

    Args:
        root: Where they begin; a link is followed.
        followed: Those that may be links.
    """

    def __init__(self, root: str, followed: set[str]) -> None:
        self._root = root
        self._followed = followed
        self._open: list[tuple[str, int]] = []

    def at(self, path: str) -> int:
        """Return a descriptor of a folder, good until the next call.

        Raises:
            OSError: there is none, or a link in its place.
        """
        parts = path.split("/") if path else []
        chain = ["/".join(parts[:count]) for count in range(len(parts) + 1)]
        while self._open and self._open[-1][0] not in chain:
            os.close(self._open.pop()[1])
        for inner in chain[len(self._open) :]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            if not self._open:
                held = os.open(self._root, flags)
            else:
                flags |= 0 if inner in self._followed else os.O_NOFOLLOW
                held = os.open(os.path.basename(inner), flags, dir_fd=self._open[-1][1])
            self._open.append((inner, held))
        return self._open[-1][1]

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.pop()[1])


class Source:
    """Files and folders that are sent.

    Args:
        root: What the paths begin at; a link is followed.
        paths: What is sent, with all that is in it.
        most: How many files, folders and links there may be.
        since: Only what was changed after this time, in nanoseconds since 1970.
        digested: Compute the digest.

    Attributes:
        members: Paths and what they are.
        size: Bytes of content.
        saved: Of these, how many were there already; known once they are sent.
        done: How many have been sent, or were there.
        check: CRC-32 of the content that was sent.
        digest: See `digest`; known once they are sent; empty if nobody asks for it.

    Raises:
        RefusedError: there are too many, or it is neither file nor folder.
        OSError: something cannot be looked at.
    """

    def __init__(
        self, root: str, paths: Iterable[str] = ("",), *, most: int, since: int | None = None, digested: bool = False
    ) -> None:
        self.members: list[tuple[str, os.stat_result]] = []
        self.size = self.saved = self.done = self.check = 0
        self.digest = ""
        self._root = root
        self._most = most
        self._since = since
        self._digested = digested
        paths = list(paths)
        named = [path.split("/") for path in paths]
        followed = {"/".join(parts[:count]) for parts in named for count in range(1, len(parts))}
        self._folders = _Folders(root, followed)
        try:
            for path in paths:
                self._list(path)
        finally:
            self._folders.close()

    def pieces(self, kept: Mapping[str, tuple[int, str]]) -> Iterator[bytes | memoryview]:
        """Yield what is sent, each piece good until the next.

        Args:
            kept: Size and SHA-256 of what is there already of files, by `key`.

        Raises:
            RefusedError: a file became shorter meanwhile.
            OSError: something cannot be read, or has become a link.
        """
        yield line(size=self.size, count=len(self.members))
        sums: dict[str, str] = {}
        try:
            for path, status in self.members:
                try:
                    yield from self._member(path, status, kept.get(key(path)), sums)
                except FileNotFoundError:
                    continue  # it was removed meanwhile
                except OSError as error:
                    error.filename = os.path.join(self._root, path)
                    raise
        finally:
            self._folders.close()
        self.digest = digest(sums) if self._digested else ""
        yield line(check=self.check)

    def _member(
        self, path: str, status: os.stat_result, there: tuple[int, str] | None, sums: dict[str, str]
    ) -> Iterator[bytes | memoryview]:
        about: dict[str, Any] = {
            "path": path, "mode": stat.S_IMODE(status.st_mode) & 0o777, "mtime": status.st_mtime_ns,
        }  # fmt: skip
        if stat.S_ISREG(status.st_mode):
            yield from self._file(about, there, sums)
        elif stat.S_ISLNK(status.st_mode):
            folder, name = os.path.split(path)
            yield line(**about, kind="link", target=os.readlink(name, dir_fd=self._folders.at(folder)))
        else:
            yield line(**about, kind="folder" if stat.S_ISDIR(status.st_mode) else "other")

    def _file(
        self, about: dict[str, Any], there: tuple[int, str] | None, sums: dict[str, str]
    ) -> Iterator[bytes | memoryview]:
        path = about["path"]
        with open(self._opened(path), "rb", buffering=0) as file:
            size, offset, summing = os.fstat(file.fileno()).st_size, 0, hashlib.sha256()
            if there and 0 < there[0] <= size:
                for piece in _read(file, there[0], path):
                    summing.update(piece)
                if summing.hexdigest() == there[1]:
                    offset = there[0]
                else:
                    summing = hashlib.sha256()
                    file.seek(0)
            self.saved += offset
            self.done += offset
            yield line(**about, kind="file", size=size, offset=offset)
            for piece in _read(file, size - offset, path):
                self.check = crc32(piece, self.check)
                if self._digested:
                    summing.update(piece)
                self.done += len(piece)
                yield piece
        if self._digested:
            sums[path] = summing.hexdigest()

    def _opened(self, path: str) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        if not path:
            return os.open(self._root, flags)
        folder, name = os.path.split(path)
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=self._folders.at(folder))

    def _list(self, path: str) -> None:
        folder, name = os.path.split(path)
        status = os.stat(name, dir_fd=self._folders.at(folder), follow_symlinks=False) if path else os.stat(self._root)
        if not path and is_other(status):
            raise RefusedError(f"{self._root} is neither a file nor a folder")
        if self._since is None or status.st_ctime_ns > self._since:
            self.members.append((path, status))
            self.size += status.st_size if stat.S_ISREG(status.st_mode) else 0
            if len(self.members) > self._most:
                raise RefusedError(f"there are more than {self._most} files, which is the most that is copied")
        if stat.S_ISDIR(status.st_mode):
            if path.count("/") >= DEEPEST:
                raise RefusedError("a folder is nested too deeply")
            for inner in sorted(os.listdir(self._folders.at(path))):
                if not inner.startswith(PART):
                    self._list(f"{path}/{inner}" if path else inner)


def _read(file: Any, size: int, path: str) -> Iterator[memoryview]:
    """Yield what is read, each piece good until the next: it lies in the same memory, which is faster than new."""
    space = memoryview(bytearray(min(size, _CHUNK)))
    while size:
        count = file.readinto(space[: min(size, _CHUNK)])
        if not count:
            raise RefusedError(f"{path or 'it'} became shorter while it was copied")
        size -= count
        yield space[:count]


class Part:
    """What has come so far of something, in a folder beside its place, where the next attempt finds it.

    Args:
        target: Its place.

    Attributes:
        content: Where it is written.
        kept: Size and SHA-256 of the files that an earlier attempt has left, by `key`.
    """

    def __init__(self, target: str) -> None:
        parent, name = os.path.split(target)
        self._parent = parent or "."
        self._folder = os.path.join(self._parent, PART + key(name)[:16])
        self._lock = -1
        self.content = os.path.join(self._folder, "content")
        self._earlier = os.path.join(self._folder, "kept")
        self.kept: dict[str, tuple[int, Any]] = {}

    def open(self) -> None:
        """Make the folder, or take up the one that an earlier attempt has left.

        Raises:
            RefusedError: another attempt is under way.
            OSError: it cannot be written.
        """
        os.makedirs(self._parent, exist_ok=True)
        _sweep(self._parent)
        while self._lock < 0:
            os.makedirs(self._folder, 0o700, exist_ok=True)
            self._lock = _lock(self._folder)
        os.utime(self._folder)
        for place in (self.content, self._earlier):
            if os.path.islink(place):
                os.unlink(place)  # whoever made the folder, what follows is to stay in it
        os.makedirs(self._earlier, 0o700, exist_ok=True)
        self._gather()
        for name in os.listdir(self._earlier):
            place = os.path.join(self._earlier, name)
            if stat.S_ISREG(os.lstat(place).st_mode):
                self.kept[name] = _summed(place)

    def manifest(self) -> dict[str, tuple[int, str]]:
        """Return what is told to whoever sends."""
        return {name: (size, summing.hexdigest()) for name, (size, summing) in self.kept.items()}

    def take_up(self, path: str, place: str, offset: int) -> Any:
        """Put the beginning of a file in its place; returns the hash that goes on after it.

        Raises:
            RefusedError: there is no such beginning.
        """
        size, summing = self.kept.pop(key(path), (0, None))
        if size != offset or os.path.lexists(place):
            raise RefusedError("what continues a file does not begin where that ends")
        os.rename(os.path.join(self._earlier, key(path)), place)
        return summing

    def forget(self) -> None:
        """Remove what an earlier attempt has left."""
        _remove(self._earlier)
        os.mkdir(self._earlier, 0o700)
        self.kept.clear()

    def settle(self, target: str) -> None:
        """Put what has come in its place.

        Raises:
            OSError: something else is there.
        """
        os.rename(self.content, target)
        self.discard()

    def close(self) -> None:
        """Leave what has come for the next attempt, if it is anything."""
        if self._lock >= 0 and not any(names for _, _, names in os.walk(self._folder)):
            self.discard()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def discard(self) -> None:
        """Remove the folder."""
        if self._lock >= 0:
            _remove(self._folder)
            os.close(self._lock)
            self._lock = -1

    def _gather(self) -> None:
        """Collect the files that have come, under names that nothing else can be in the way of."""
        if os.path.isfile(self.content):  # no link, see above
            self._keep(self.content, "")
        for at, _, names in os.walk(self.content):
            for name in names:
                place = os.path.join(at, name)
                if stat.S_ISREG(os.lstat(place).st_mode):
                    self._keep(place, os.path.relpath(place, self.content))
        if os.path.isdir(self.content):
            _remove(self.content)

    def _keep(self, place: str, path: str) -> None:
        os.chmod(place, 0o600)
        os.replace(place, os.path.join(self._earlier, key(path)))


def _summed(place: str) -> tuple[int, Any]:
    with open(place, "rb", buffering=0) as file:
        size, summing = os.fstat(file.fileno()).st_size, hashlib.sha256()
        for piece in _read(file, size, place):
            summing.update(piece)
    return size, summing


def _lock(folder: str) -> int:
    """Return a descriptor that locks a folder; -1 if somebody removes it just now."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(held)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise RefusedError(f"others can write to {folder}")
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = os.path.exists(folder) and os.path.samestat(status, os.lstat(folder))
    except BlockingIOError:
        os.close(held)
        raise RefusedError("it is being copied there already") from None
    except (RefusedError, OSError):
        os.close(held)
        raise
    if not is_there:
        os.close(held)
    return held if is_there else -1


def _sweep(parent: str) -> None:
    """Remove what was left long ago by attempts that nobody went on with."""
    for name in os.listdir(parent):
        folder = os.path.join(parent, name)
        try:
            if name.startswith(PART) and time.time() - os.lstat(folder).st_mtime > PART_SECONDS:
                held = _lock(folder)
                if held >= 0:
                    _remove(folder)
                    os.close(held)
        except (RefusedError, OSError):
            continue  # it is in use, not ours, or gone


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder)


class Receiver:
    """Receives, in the VM, what the host sends.

    Args:
        part: Where to.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._check = 0
        self._folders: list[tuple[str, dict[str, Any]]] = []

    def run(self, stream: Any) -> int:
        """Receive all of it, and return its check.

        Raises:
            RefusedError: it is not what was sent.
            EOFError: the host went away.
            OSError: it cannot be written.
        """
        stream.readline()
        while "check" not in (about := json.loads(stream.readline() or _gone())):
            self._take(about, stream)
        if self._check != about["check"]:
            raise RefusedError("what came is not what was sent")
        for place, folder in reversed(self._folders):
            # Whoever owns a folder can always go on to look into it, and remove it.
            os.chmod(place, folder["mode"] | 0o700)
            os.utime(place, ns=(folder["mtime"], folder["mtime"]))
        return self._check

    def _take(self, about: dict[str, Any], stream: Any) -> None:
        place = os.path.join(self._part.content, about["path"]) if about["path"] else self._part.content
        if about["kind"] == "file":
            self._write(place, about, stream)
        elif about["kind"] == "folder":
            os.makedirs(place, 0o700, exist_ok=True)
            self._folders.append((place, about))
        elif about["kind"] == "link":
            os.symlink(about["target"], place)
            os.utime(place, ns=(about["mtime"], about["mtime"]), follow_symlinks=False)

    def _write(self, place: str, about: dict[str, Any], stream: Any) -> None:
        if offset := about["offset"]:
            self._part.take_up(about["path"], place, offset)
        with open(place, "ab" if offset else "xb", buffering=0) as file:
            left = about["size"] - offset
            space = memoryview(bytearray(min(left, _CHUNK)))
            while left:
                piece = space[: stream.readinto(space[: min(left, _CHUNK)]) or _gone()]
                self._check = crc32(piece, self._check)
                left -= len(piece)
                while piece := piece[file.write(piece) :]:
                    pass
            os.fchmod(file.fileno(), about["mode"])
            os.utime(file.fileno(), ns=(about["mtime"], about["mtime"]))


def _gone() -> Any:
    raise EOFError


def receive(target: str, kind: str, into: str) -> None:
    """Be the VM's end of a copy into it."""
    if into and os.path.isdir(target):
        target = os.path.join(target, into)
    if os.path.isdir(target) or (kind == "folder" and os.path.lexists(target)):
        raise RefusedError(f"there is {target} already")
    part = Part(target)
    part.open()
    try:
        _say(line(**part.manifest()))
        found = Receiver(part).run(sys.stdin.buffer)
        part.settle(target)
    except (RefusedError, OSError, SystemExit):
        part.discard()
        raise
    _say(line(check=found, path=target))


def send(root: str, most: str, how: str, *words: str) -> None:
    """Be the VM's end of a copy out of it."""
    if not os.path.exists(root):
        raise RefusedError(f"there is no {root}")
    kept = json.loads(sys.stdin.buffer.readline() or b"{}")
    paths: Iterable[str] = ("",)
    since = None
    if how == "named":
        paths = ["" if word in (".", "./") else os.path.normpath(word) for word in words]
        for word in words:
            if not os.path.lexists(os.path.join(root, word)):
                raise RefusedError(f"there is no {word}")
    elif how == "changed":
        paths = sorted(os.listdir(root))
        since = os.stat(words[0]).st_mtime_ns
    for piece in Source(root, paths, most=int(most), since=since).pieces(kept):
        _say(piece)


def _say(data: bytes | memoryview) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def main(words: list[str]) -> None:
    """Carry out what the host asks for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_FAILED))
    try:
        (receive if words[0] == "receive" else send)(*words[1:])
    except RefusedError as error:
        sys.exit(_fail(str(error)))
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        sys.exit(_fail(f"{error.strerror or error}{place}"))
    except EOFError:
        sys.exit(_FAILED)


def _fail(reason: str) -> int:
    sys.stderr.buffer.write(os.fsencode(reason) + b"\n")
    return _FAILED


if __name__ == "__main__":
    main(sys.argv[1:])
