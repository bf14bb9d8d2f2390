"""A snapshot: memory file, device state, disk layer and a manifest; immutable once it is there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentvm_kernel.errors import VMError
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
        hardware: The guest-visible machine.
        layers: Disk layers below its own, topmost first; of a golden snapshot only, the others have their parent's.
        created: Seconds since the epoch.
        boot_seconds: How long the cold boot took; of a golden snapshot only.
        golden: Id of the golden snapshot it descends from; empty for one that is golden itself.
        parent: Id of the parent in the notebook's tree; empty where that is the golden one.
        files: Digests of its files; of a golden snapshot none.
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
    parent: Snapshot | None = None

    @property
    def golden(self) -> Snapshot:
        """The golden snapshot that it descends from; itself, if it is that."""
        return self if self.parent is None else self.parent.golden

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
        return self.folder / "memory.delta"

    @property
    def device_state(self) -> Path:
        """QEMU's device state without memory."""
        return self.folder / "device-state"

    @property
    def disk(self) -> Path:
        """Its own disk layer; there only if the disk was written since the parent."""
        return self.folder / "disk.qcow2"

    @property
    def disks(self) -> tuple[Path, ...]:
        """The disk's chain, topmost first."""
        if self.parent is None:
            return (self.disk, *map(Path, self.manifest.layers))
        return (self.disk, *self.parent.disks) if "disk.qcow2" in self.manifest.files else self.parent.disks

    @property
    def hardware(self) -> Hardware:
        """The guest-visible machine."""
        values = dict(self.manifest.hardware)
        return Hardware(**values | {"transport": Transport(values["transport"])})  # type: ignore[arg-type]

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
    """Return hardware as plain values for a manifest."""
    return {key: str(value) if isinstance(value, str) else value for key, value in asdict(hardware).items()}


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
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the folder a snapshot."""
    (folder / _MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=2))


def seal(folder: Path, owner: tuple[int, int] | None) -> None:
    """Make every file of a folder read-only, no longer QEMU's, and safe on disk.

    Args:
        folder: The folder.
        owner: The user under which QEMU will read it; gets access by its group only.
    """
    shared = owner is not None and os.geteuid() == 0
    group = owner[1] if shared and owner is not None else os.getegid()
    for path in folder.iterdir():
        os.chown(path, os.geteuid(), group)
        _sync(path)
        path.chmod(0o440 if shared else 0o400)
    os.chown(folder, os.geteuid(), group)
    folder.chmod(0o750 if shared else 0o700)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
