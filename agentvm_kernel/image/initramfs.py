"""The initramfs: busybox, the kernel modules that a boot needs, ``init`` and the guest code."""

from __future__ import annotations

import lzma
import stat
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from agentvm_kernel.errors import ImageError

_FOLDER = stat.S_IFDIR | 0o755
_FILE = stat.S_IFREG | 0o644
_PROGRAM = stat.S_IFREG | 0o755


class Archive:
    """Writes a cpio archive of the kind the kernel unpacks ("newc", see buffer-format in the kernel's documentation).

    Owners, times and inode numbers are constant, so that the same content gives the same bytes. It is not compressed:
    the host hands over megabytes at once, while an emulated guest would take seconds to unpack them.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._folders: set[str] = set()

    def file(self, name: str, content: bytes, mode: int = _FILE) -> None:
        """Add a file and the folders it lies in."""
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            self.folder("/".join(parts[:depth]))
        self._entry(name, mode, content)

    def folder(self, name: str) -> None:
        """Add a folder, once."""
        if name not in self._folders:
            self._folders.add(name)
            self._entry(name, _FOLDER, b"")

    def close(self) -> None:
        """Write the trailer."""
        self._entry("TRAILER!!!", 0, b"")

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        label = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device and rdevice (major, minor each), name's length, checksum
        fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(label), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        for block in (header + label, content):
            self._out.write(block + b"\0" * (-len(block) % 4))


def load_order(dependencies: str, wanted: Iterable[str]) -> list[str]:
    """Return the module files to load, each after what it depends on.

    Args:
        dependencies: Text of ``modules.dep``.
        wanted: Module names; those that are not in the text are built into the kernel, or not there.
    """
    graph: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        graph[path] = rest.split()
        names[_module_name(path)] = path
    order: list[str] = []

    def visit(path: str) -> None:
        for dependency in graph[path]:
            visit(dependency)
        if path not in order:
            order.append(path)

    for name in wanted:
        if name in names:
            visit(names[name])
    return order


def write_initramfs(
    target: Path, *, init: bytes, busybox: bytes, modules: Path, wanted: Sequence[str], code: Iterable[tuple[str, Path]]
) -> None:
    """Write an initramfs.

    Args:
        target: File to write.
        init: The script that becomes ``/init``.
        busybox: A static busybox.
        modules: Tar file of the kernel's module folder.
        wanted: Modules to load at boot.
        code: Names and files of the guest code.

    Raises:
        ImageError: a wanted module is neither in the tar file nor in the kernel.
    """
    with tarfile.open(modules) as tar, target.open("wb") as out:
        archive = Archive(out)
        for folder in ("dev", "proc", "sys", "root"):
            archive.folder(folder)
        archive.file("init", init, _PROGRAM)
        archive.file("bin/busybox", busybox, _PROGRAM)
        order = load_order(_text(tar, "modules.dep"), wanted)
        present = {_module_name(path) for path in [*order, *_text(tar, "modules.builtin").split()]}
        if missing := sorted(set(wanted) - present):
            raise ImageError(
                f"The guest kernel lacks modules that the recipe names: {', '.join(missing)}.",
                "Correct the list of modules in guest/image/recipe.toml.",
            )
        for path in order:
            archive.file(f"modules/{_module_name(path)}.ko", _module(tar, path))
        archive.file("modules/order", "".join(f"{_module_name(path)}.ko\n" for path in order).encode())
        for name, source in code:
            archive.file(f"guest/{name}", source.read_bytes())
        archive.close()


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", maxsplit=1)[0].replace("-", "_")


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(f"./{name}")
    if member is None:
        raise ImageError(f"{name} in the kernel's modules is not a file.", "Remove the image and build it again.")
    return member.read()


def _text(tar: tarfile.TarFile, name: str) -> str:
    return _read(tar, name).decode()


def _module(tar: tarfile.TarFile, path: str) -> bytes:
    content = _read(tar, path)
    # busybox's insmod does not unpack.
    return lzma.decompress(content) if path.endswith(".xz") else content
