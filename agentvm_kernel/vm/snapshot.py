"""A snapshot: memory file, device state, disk layer and a manifest; immutable once it is there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentvm_kernel.durable import Disk, sync
from agentvm_kernel.errors import SnapshotError, VMError
from agentvm_kernel.vm.domain import layout
from agentvm_kernel.vm.spec import Hardware, Transport

_MANIFEST = "manifest.json"


class FileDigest(BaseModel):
    """What a file of a snapshot must be.

    Attributes:
        size: Bytes.
        sha256: Digest of its content, hexadecimal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a snapshot's folder says of itself.

    Attributes:
        image: Digest of the image it descends from.
        hypervisor: Versions that its device state depends on.
        hardware: The guest-visible machine, and the layout of its devices.
        layers: Disk layers below its own, topmost first; of a golden snapshot only, the others have their parent's.
        created: Seconds since the epoch.
        boot_seconds: How long the cold boot took; of a golden snapshot only.
        golden: Id of the golden snapshot it descends from; empty for one that is golden itself.
        parent: Id of the parent in the notebook's tree; empty where that is the golden one.
        files: Digests of its files; of a golden snapshot none.
        base: Identity of the golden snapshot, see ``Snapshot.identity``.
        delta: Name of the file with the memory written since the parent; another one after a merge.
        is_dump: Its device state is a dump of QEMU's own, with all memory in it; the delta is empty.
        own_layers: Names of its own disk layers, topmost first: those written since the parent.
        over: How many of its parent's disk layers, counted from the golden snapshot's upwards, its own lie over: they
            hold what is in the others; ``None`` for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    hypervisor: str
    hardware: dict[str, int | str]
    layers: tuple[str, ...] = ()
    created: float
    boot_seconds: float = 0.0
    golden: str = ""
    parent: str = ""
    files: dict[str, FileDigest] = {}
    base: str = ""
    delta: str = "memory.delta"
    is_dump: bool = False
    own_layers: tuple[str, ...] = ()
    over: int | None = Field(default=None, ge=0)


class Layer(NamedTuple):
    """A disk layer of a snapshot that is not golden.

    Attributes:
        snapshot: Whose own it is; the disks of others may lie over it.
        name: Its file's name.
    """

    snapshot: Snapshot
    name: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.snapshot.folder / self.name

    @property
    def size(self) -> int:
        """Bytes of its file."""
        return self.snapshot.manifest.files[self.name].size


@dataclass(frozen=True)
class Access:
    """Who may use snapshots: their user, and where QEMU runs under another one, that user's group.

    Attributes:
        group: Group of files and folders.
        folder: Mode of a snapshot's folder.
        passage: Mode of the folders above it.
        file: Mode of the files that QEMU reads.
    """

    group: int
    folder: int
    passage: int
    file: int

    @classmethod
    def of(cls, owner: tuple[int, int] | None) -> Access:
        """Return who may use snapshots.

        Args:
            owner: ``uid, gid`` that QEMU runs under; ``None`` for this process's.
        """
        if owner is None or os.geteuid() != 0:
            return cls(os.getegid(), 0o700, 0o700, 0o400)
        return cls(owner[1], 0o750, 0o710, 0o440)


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot on disk.

    Attributes:
        id: Its name: the folder's.
        folder: Where it lies.
        manifest: What it is.
        parent: What it descends from; ``None`` for a golden snapshot.
    """

    id: str
    folder: Path
    manifest: Manifest
    # Not compared or shown: a chain of parents can be longer than Python's stack.
    parent: Snapshot | None = field(default=None, compare=False, repr=False)

    @property
    def golden(self) -> Snapshot:
        """The golden snapshot that it descends from; itself, if it is that."""
        return self.lineage[0]

    @property
    def identity(self) -> str:
        """Tells a golden snapshot from one made anew under the same id, whose memory is not the same."""
        values = [self.id, self.manifest.image, self.manifest.hypervisor, self.manifest.created]
        return hashlib.sha256(json.dumps([*values, self.manifest.boot_seconds]).encode()).hexdigest()

    @property
    def lineage(self) -> list[Snapshot]:
        """It and what it descends from, the golden snapshot first."""
        chain = [self]
        while chain[-1].parent is not None:
            chain.append(chain[-1].parent)
        return chain[::-1]

    @property
    def memory(self) -> Path:
        """Complete guest memory, mapped privately, never written; of a golden snapshot only."""
        return self.folder / "memory"

    @property
    def delta(self) -> Path:
        """The memory written since the parent; of any but a golden snapshot."""
        return self.folder / self.manifest.delta

    @property
    def device_state(self) -> Path:
        """QEMU's device state without memory."""
        return self.folder / "device-state"

    @property
    def disk(self) -> Path:
        """The topmost disk layer; of a golden snapshot only."""
        return self.folder / "disk.qcow2"

    @property
    def layers(self) -> list[Layer]:
        """The disk's layers above the golden snapshot's, lowest first: own ones and ancestors'."""
        chain: list[Layer] = []
        for one in self.lineage[1:]:
            if one.manifest.over is not None:
                del chain[one.manifest.over :]
            chain += [Layer(one, name) for name in reversed(one.manifest.own_layers)]
        return chain

    @property
    def depth(self) -> int:
        """How many layers its disk has above the golden snapshot's."""
        depth, one = 0, self
        while one.parent is not None:
            depth += len(one.manifest.own_layers)
            if one.manifest.over is not None:
                return depth + one.manifest.over
            one = one.parent
        return depth

    @property
    def disks(self) -> tuple[Path, ...]:
        """The disk's chain, topmost first."""
        golden = self.golden
        own = [layer.path for layer in reversed(self.layers)]
        return (*own, golden.disk, *map(Path, golden.manifest.layers))

    @property
    def hardware(self) -> Hardware:
        """The guest-visible machine.

        Raises:
            SnapshotError: its devices are not those that a VM has today.
        """
        values = dict(self.manifest.hardware)
        devices = values.pop("layout", "")
        hardware = Hardware(**values | {"transport": Transport(values["transport"])})  # type: ignore[arg-type]
        if devices != layout(hardware):
            raise SnapshotError(
                f"Snapshot {self.id[:12]} was made by another version of AgentVM, whose VMs have other devices.",
                "Use it with that version, or begin with a fresh VM.",
            )
        return hardware

    @classmethod
    def load(cls, folder: Path, parent: Snapshot | None = None) -> Snapshot | None:
        """Read a snapshot; ``None`` if there is none (a folder without a manifest is not a snapshot).

        Args:
            folder: Where it lies.
            parent: What it descends from.

        Raises:
            VMError: the manifest cannot be read.
        """
        try:
            manifest = Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise VMError(f"The snapshot in {folder} cannot be read: {error}", f"Remove {folder}.") from error
        return cls(folder.name, folder, manifest, parent)


def hardware_values(hardware: Hardware) -> dict[str, int | str]:
    """Return hardware as plain values for a manifest, with the layout of its devices."""
    values = {key: str(value) if isinstance(value, str) else value for key, value in asdict(hardware).items()}
    return values | {"layout": layout(hardware)}


@contextmanager
def new_snapshot_folder(final: Path, owner: tuple[int, int] | None) -> Iterator[Path]:
    """Provide an empty folder that becomes ``final`` when the block ends well, and vanishes when it does not.

    Args:
        final: Where the snapshot is to lie.
        owner: The user under which QEMU writes into it.

    Yields:
        The folder to fill.
    """
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if owner is not None and os.geteuid() == 0:
        os.chown(partial, *owner)
    try:
        yield partial
        seal(partial, owner)
        partial.rename(final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the folder a snapshot."""
    (folder / _MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=2))


def seal(folder: Path, owner: tuple[int, int] | None, disk: Disk | None = None, private: Container[str] = ()) -> None:
    """Make every file of a folder read-only, no longer QEMU's, and safe on disk.

    Args:
        folder: The folder.
        owner: The user under which QEMU will read it; gets access by its group only.
        disk: What does it.
        private: Names of files that QEMU need not read.

    Raises:
        OSError: something in it is no regular file.
    """
    disk = disk or Disk()
    user, access = os.geteuid(), Access.of(owner)
    # First of all QEMU's user, who is not trusted, must not be able to put anything else there.
    disk.protect(folder, 0o700, user, access.group)
    for path in sorted(folder.iterdir()):
        disk.protect(path, 0o400 if path.name in private else access.file, user, access.group)
        disk.sync(path)
    disk.protect(folder, access.folder, user, access.group)
    disk.sync(folder)
