"""Writing snapshots into a file."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, cast

from agentvm_kernel.durable import sync
from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.snapshots.archive import DESCRIPTION, FORMAT, Description, Entry
from agentvm_kernel.snapshots.reading import Stored
from agentvm_kernel.snapshots.shelf import storing
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.snapshots.tree import Tree

_GZIP_LEVEL = 1  # memory shrinks well at once; more effort gains little


def export_snapshot(store: SnapshotStore, tree: Tree, snapshot: str, path: Path) -> list[Stored]:
    """Write a snapshot and all that it descends from into a file; its golden snapshot is only named.

    Args:
        store: The store.
        tree: The notebook's tree.
        snapshot: The snapshot's id.
        path: File to create, with mode 0600; compressed by gzip if its name ends in ``.gz`` or ``.tgz``.

    Returns:
        The snapshots in the file, oldest first.

    Raises:
        SnapshotError: there is no such snapshot, it is damaged, or the file cannot be written.
    """
    with ExitStack() as files:
        with store.frozen():
            by_id = {one.id: one for one in tree.snapshots()}
            lineage = [by_id[one.id] for one in tree.find(snapshot).snapshot.lineage[1:]]
            opened = [
                (one, name, files.enter_context((one.snapshot.folder / name).open("rb")))
                for one in lineage
                for name in one.snapshot.manifest.files
            ]
        entries = tuple(Entry(id=one.id, manifest=one.snapshot.manifest, notes=one.notes) for one in lineage)
        description = Description(format=FORMAT, notebook=tree.notebook or tree.id, snapshots=entries)
        with storing(path.parent), _new_archive(path) as tar:
            content = description.model_dump_json(indent=1).encode()
            tar.addfile(_member(DESCRIPTION, len(content)), io.BytesIO(content))
            for one, name, source in opened:
                _add(tar, one, name, source)
    return lineage


def _add(tar: tarfile.TarFile, one: Stored, name: str, source: IO[bytes]) -> None:
    expected = one.snapshot.manifest.files[name]
    reader = _Digesting(source)
    tar.addfile(_member(f"{one.id}/{name}", expected.size), reader)  # type: ignore[arg-type]  # only read is called
    if reader.digest.hexdigest() != expected.sha256:
        raise SnapshotError(
            f"The snapshot {one.id} is damaged: {name} has another content than when it was stored.",
            "See `agentvm snapshot verify`.",
        )


class _Digesting:
    """Computes the digest of what is read."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        content = self._source.read(size)
        self.digest.update(content)
        return content


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o600
    return member


@contextmanager
def _new_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """Provide an archive to fill; the file is there only if the block ends well."""
    if path.exists():
        raise SnapshotError(f"{path} is there already.", "Remove it, or choose another name.")
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with (
            os.fdopen(descriptor, "wb") as file,
            _packed(file, path.name) as plain,
            tarfile.open(fileobj=plain, mode="w|", format=tarfile.GNU_FORMAT) as tar,
        ):
            yield tar
        sync(partial)
        partial.rename(path)
    except BaseException:
        partial.unlink()
        raise


def _packed(file: IO[bytes], name: str) -> AbstractContextManager[IO[bytes]]:
    if not name.endswith((".gz", ".tgz")):
        return nullcontext(file)
    packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=_GZIP_LEVEL, mtime=0)
    return cast(AbstractContextManager[IO[bytes]], packed)
