"""A snapshot: memory file, device state, disk layer and a manifest; immutable once it is there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from agentvm_kernel.errors import VMError
from agentvm_kernel.vm.spec import Hardware, Transport

_MANIFEST = "manifest.json"


class Manifest(BaseModel):
    """What a snapshot's folder says of itself.

    Attributes:
        image: Digest of the image it descends from.
        hypervisor: Versions that its device state depends on.
        hardware: The guest-visible machine.
        layers: Disk layers below its own, topmost first.
        created: Seconds since the epoch.
        boot_seconds: How long the cold boot took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    hypervisor: str
    hardware: dict[str, int | str]
    layers: tuple[str, ...]
    created: float
    boot_seconds: float


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot on disk.

    Attributes:
        id: Its name: the folder's.
        folder: Where it lies.
        manifest: What it is.
    """

    id: str
    folder: Path
    manifest: Manifest

    @property
    def memory(self) -> Path:
        """Guest memory; mapped privately, never written."""
        return self.folder / "memory"

    @property
    def device_state(self) -> Path:
        """QEMU's device state without memory."""
        return self.folder / "device-state"

    @property
    def disk(self) -> Path:
        """The topmost disk layer."""
        return self.folder / "disk.qcow2"

    @property
    def disks(self) -> tuple[Path, ...]:
        """The disk's chain, topmost first."""
        return (self.disk, *map(Path, self.manifest.layers))

    @property
    def hardware(self) -> Hardware:
        """The guest-visible machine."""
        values = dict(self.manifest.hardware)
        return Hardware(**values | {"transport": Transport(values["transport"])})  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> Snapshot | None:
        """Read a snapshot; ``None`` if there is none (a folder without a manifest is not a snapshot).

        Raises:
            VMError: the manifest cannot be read.
        """
        try:
            manifest = Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise VMError(f"The snapshot in {folder} cannot be read: {error}", f"Remove {folder}.") from error
        return cls(folder.name, folder, manifest)


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
