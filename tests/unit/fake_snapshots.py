"""Made-up snapshots: a golden one, a store, and snapshots that differ from it in a few blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agentvm_kernel.durable import Disk
from agentvm_kernel.snapshots.notes import Notes
from agentvm_kernel.snapshots.reading import Stored
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.snapshots.tree import Tree
from agentvm_kernel.vm.delta import BLOCK, Delta, Layers, merge_runs, write_delta
from agentvm_kernel.vm.snapshot import Manifest, Snapshot, hardware_values, write_manifest
from agentvm_kernel.vm.spec import Hardware, Transport

MEMORY_MIB = 1
GOLDEN = "a" * 32
HARDWARE = hardware_values(Hardware(1, MEMORY_MIB, 2, "tcg", Transport.SERIAL))
PLENTY = 10**9


def make_golden(cache: Path, *, created: float = 1.0) -> Snapshot:
    """Put a golden snapshot into a cache."""
    folder = cache / GOLDEN
    folder.mkdir(parents=True)
    manifest = Manifest(
        image="d" * 64, hypervisor="QEMU 10", hardware=HARDWARE, layers=("/image/rootfs.ext4",), created=created
    )
    write_manifest(folder, manifest)
    return Snapshot(GOLDEN, folder, manifest)


def golden_finder(cache: Path) -> Callable[[str], Snapshot | None]:
    return lambda name: Snapshot.load(cache / name)


def make_store(
    tmp_path: Path, *, quota: int = PLENTY, disk: Disk | None = None, owner: tuple[int, int] | None = None
) -> SnapshotStore:
    """Make a store with a golden snapshot beside it; a second one over the same folders is a successor."""
    cache = tmp_path / "golden"
    if not cache.exists():
        make_golden(cache)
    return SnapshotStore(
        tmp_path / "state" / "snapshots", quota=quota, owner=owner, find_golden=golden_finder(cache), disk=disk
    )


def golden_of(tmp_path: Path) -> Snapshot:
    golden = Snapshot.load(tmp_path / "golden" / GOLDEN)
    assert golden is not None
    return golden


Blocks = dict[int, int]


def write_blocks(path: Path, blocks: Blocks) -> None:
    """Write a delta of blocks filled with one byte each."""
    write_delta(
        path, merge_runs((block, 1) for block in blocks), [bytes([blocks[block]]) * BLOCK for block in sorted(blocks)]
    )


def take(
    tree: Tree,
    parent: Snapshot,
    label: str = "",
    *,
    blocks: Blocks | None = None,
    disk: bytes = b"",
    created: float | None = None,
    text: str = "",
    is_dump: bool = False,
    over: int | None = None,
) -> Stored:
    """Take a snapshot as the supervisor does."""
    notes = Notes(label=label, text=text) if created is None else Notes(label=label, text=text, created=created)
    with tree.new(parent, notes) as new:
        new.is_dump, new.over = is_dump, over
        (new.folder / "device-state").write_text(f"device state of {label}")
        write_blocks(new.folder / "memory.delta", {0: 1} if blocks is None else blocks)
        if disk:
            (new.folder / "disk.qcow2").write_bytes(disk)
    return new.stored


def memory_of(snapshot: Snapshot) -> Blocks:
    """Return what a snapshot's memory has differently from its golden one's, block by block."""
    found: Blocks = {}
    deltas = [Delta.open(one.delta, MEMORY_MIB << 20) for one in snapshot.lineage[1:]]
    for first, count, path, offset in Layers(deltas).pieces():
        data = path.read_bytes()[offset : offset + count * BLOCK]
        for number in range(count):
            block = data[number * BLOCK : (number + 1) * BLOCK]
            assert len(set(block)) == 1
            found[first + number] = block[0]
    return found


def disks_of(snapshot: Snapshot) -> list[bytes]:
    """Return the content of the disk layers above the golden one's, topmost first."""
    return [path.read_bytes() for path in snapshot.disks[:-2]]


def files_below(folder: Path) -> dict[Path, int]:
    """Return all files below a folder, with the bytes of the disk that they take."""
    return {path: path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()}
