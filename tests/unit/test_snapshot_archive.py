"""Snapshots go into a file and come back; a hostile file changes nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_snapshots import (
    GOLDEN,
    disks_of,
    files_below,
    golden_of,
    make_golden,
    make_store,
    memory_of,
    take,
)
from faulty_disk import FaultyDisk, Killed
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvm_kernel.errors import DiskFullError, QuotaError, SnapshotError
from agentvm_kernel.snapshots.exporting import export_snapshot
from agentvm_kernel.snapshots.qcow2 import isolate_layer
from agentvm_kernel.snapshots.store import SnapshotStore

DISK_BYTES = 2 * 10**9 // 4096 * 4096


def make_layer(path: Path, size: int = DISK_BYTES, *options: str) -> bytes:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), str(size)], check=True)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a golden snapshot, a store with a chain of three, and the chain in ``plain.tar``."""
    folder = tmp_path_factory.mktemp("exported")
    layer = make_layer(folder / "layer.qcow2")
    store = make_store(folder)
    tree = store.tree("notes.ipynb")
    first = take(tree, golden_of(folder), "one", blocks={1: 1, 2: 2}, disk=layer, text="begin")
    second = take(tree, first.snapshot, blocks={2: 0, 3: 3})
    third = take(tree, second.snapshot, "three", blocks={5: 5}, disk=layer)
    take(tree, first.snapshot, "branch")
    assert [one.id for one in export_snapshot(store, tree, third.id, folder / "plain.tar")] == [
        first.id, second.id, third.id,
    ]  # fmt: skip
    return folder


@pytest.fixture
def store(exported: Path, tmp_path: Path) -> SnapshotStore:
    """An empty store on a host that has the golden snapshot."""
    make_golden(tmp_path / "golden")
    return make_store(tmp_path)


def members_of(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def changed(exported: Path, path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> Path:
    """Write an archive whose description and files were changed, but whose sizes and digests fit again."""
    members = members_of(exported / "plain.tar")
    description = json.loads(members[0][1])
    files = {member.name: content for member, content in members[1:]}
    change(description, files)
    for entry in description["snapshots"]:
        for name, said in entry["manifest"]["files"].items():
            content = files.get(f"{entry['id']}/{name}")
            if content is not None and not said.get("is_lie"):
                said |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            said.pop("is_lie", None)
    renewed = [("archive.json", json.dumps(description).encode()), *files.items()]
    infos = []
    for name, content in renewed:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        infos.append((info, content))
    return write_tar(path, infos)


def refuse(store: SnapshotStore, path: Path, match: str, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=match) as caught:
        store.import_archive(path)
    assert len(caught.value.message) < 600
    assert caught.value.message.isprintable()
    assert store.trees() == []
    state = tmp_path / "state"
    assert {file.name for file in files_below(state)} <= {"lock", "paths.lock"}
    assert [folder.name for folder in state.rglob("*") if folder.is_dir()] in ([], ["snapshots"])


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_exported_snapshot_comes_back_with_its_lineage(
    exported: Path, store: SnapshotStore, tmp_path: Path, name: str
) -> None:
    there = make_store(exported)
    tree = there.tree("notes.ipynb")
    export_snapshot(there, tree, tree.find("three").id, tmp_path / name)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    came = store.import_archive(tmp_path / name)
    here = store.tree("notes.ipynb")
    assert here.snapshots() == came
    assert [one.notes.label for one in came] == ["one", "", "three"]
    assert came[0].notes.text == "begin"
    assert memory_of(came[2].snapshot) == {1: 1, 2: 0, 3: 3, 5: 5}
    assert len(disks_of(came[2].snapshot)) == 2
    assert all(here.verify(one.id) == [] for one in came)
    assert {one.id for one in came}.isdisjoint(one.id for one in tree.snapshots())
    assert {path.stat().st_mode & 0o777 for path in came[0].snapshot.folder.iterdir()} == {0o400}
    with pytest.raises(SnapshotError, match="label 'one' is taken"):
        store.import_archive(tmp_path / name)
    again = store.import_archive(tmp_path / name, "other")
    assert store.tree("other").snapshots() == again


def test_merged_snapshot_can_be_exported_too(exported: Path, store: SnapshotStore, tmp_path: Path) -> None:
    came = store.import_archive(exported / "plain.tar")
    tree = store.tree("notes.ipynb")
    tree.remove(came[1].id)
    tree.remove(came[0].id)
    export_snapshot(store, tree, came[2].id, tmp_path / "merged.tar")
    back = store.import_archive(tmp_path / "merged.tar", "other")
    assert memory_of(back[0].snapshot) == {1: 1, 2: 0, 3: 3, 5: 5}
    assert len(disks_of(back[0].snapshot)) == 2


def test_disk_that_leaves_layers_out_comes_back_as_it_was(store: SnapshotStore, tmp_path: Path) -> None:
    layer = make_layer(tmp_path / "layer.qcow2")
    tree = store.tree("n")
    parent = golden_of(tmp_path)
    for number in range(3):
        parent = take(tree, parent, disk=layer + bytes([number])).snapshot
    flat = take(tree, parent, disk=layer + b"all", over=1)
    export_snapshot(store, tree, flat.id, tmp_path / "flat.tar")
    back = store.import_archive(tmp_path / "flat.tar", "other")
    assert disks_of(back[-1].snapshot) == disks_of(flat.snapshot) == [layer + b"all", layer + b"\0"]


def test_export_does_not_overwrite_and_leaves_no_half_file(exported: Path, tmp_path: Path) -> None:
    store = make_store(exported)
    tree = store.tree("notes.ipynb")
    name = tree.find("one").id
    target = tmp_path / "a.tar"
    target.write_text("mine")
    with pytest.raises(SnapshotError, match="there already"):
        export_snapshot(store, tree, name, target)
    assert target.read_text() == "mine"
    with pytest.raises(SnapshotError, match="No such file"):
        export_snapshot(store, tree, name, tmp_path / "nowhere" / "a.tar")


def test_damaged_snapshot_is_not_exported(store: SnapshotStore, tmp_path: Path) -> None:
    tree = store.tree("n")
    stored = take(tree, golden_of(tmp_path))
    stored.snapshot.device_state.chmod(0o600)
    stored.snapshot.device_state.write_text("Device state of ")
    with pytest.raises(SnapshotError, match="damaged"):
        export_snapshot(store, tree, stored.id, tmp_path / "a.tar")
    assert [path.name for path in tmp_path.iterdir() if "a.tar" in path.name] == []


# --- what tar can hold and an export never does


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        special("archive.json", tarfile.SYMTYPE, "/etc/shadow"),
        special("archive.json", tarfile.LNKTYPE, "/etc/shadow"),
        special("archive.json", tarfile.CHRTYPE),
        special("archive.json", tarfile.BLKTYPE),
        special("archive.json", tarfile.FIFOTYPE),
        special("archive.json", tarfile.DIRTYPE),
        special("archive.json", tarfile.CONTTYPE),
        special("archive.json", tarfile.GNUTYPE_SPARSE),
        special("x" * 150, tarfile.REGTYPE),  # becomes a header for a long name
        special("\udcff", tarfile.REGTYPE),
        special("a\x1b[2Jb", tarfile.REGTYPE),
    ],
    ids=lambda member: f"{member.type!r}-{member.name[:12]!a}",
)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_nothing_but_plain_files_is_accepted(
    exported: Path, store: SnapshotStore, tmp_path: Path, member: tarfile.TarInfo, place: int
) -> None:
    members = members_of(exported / "plain.tar")
    members.insert(place, (member, b""))
    refuse(store, write_tar(tmp_path / "bad.tar", members), "other than a plain file|no snapshot archive", tmp_path)


def test_pax_headers_are_refused(exported: Path, store: SnapshotStore, tmp_path: Path) -> None:
    members = members_of(exported / "plain.tar")
    members[1][0].pax_headers = {"path": "../../etc/passwd"}
    path = write_tar(tmp_path / "bad.tar", members, tarfile.PAX_FORMAT)
    refuse(store, path, "other than a plain file", tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../x", "x/../device-state", "device-state\0x", "manifest.json", ""]
)
def test_no_name_but_the_expected_one_is_accepted(
    exported: Path, store: SnapshotStore, tmp_path: Path, name: str
) -> None:
    members = members_of(exported / "plain.tar")
    content = (exported / "plain.tar").read_bytes()
    old = members[1][0].name.encode()
    at = content.index(old, members[1][0].offset)
    new = name.encode().ljust(100, b"\0")
    header = bytearray(content[at : at + 512])
    header[:100] = new
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    (tmp_path / "bad.tar").write_bytes(content[:at] + header + content[at + 512 :])
    refuse(store, tmp_path / "bad.tar", r"belongs|other than a plain file", tmp_path)


def test_headers_with_a_second_name_or_a_wrong_sum_are_refused(
    exported: Path, store: SnapshotStore, tmp_path: Path
) -> None:
    content = bytearray((exported / "plain.tar").read_bytes())
    content[345:348] = b"a/b"
    (tmp_path / "bad.tar").write_bytes(content)
    refuse(store, tmp_path / "bad.tar", "no snapshot archive, or it is damaged", tmp_path)
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + sum(content[156:512]) + 8 * 32)
    (tmp_path / "bad.tar").write_bytes(content)
    refuse(store, tmp_path / "bad.tar", "other than a plain file", tmp_path)


def test_golden_snapshots_are_looked_for_by_ids_only(exported: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def change(description: dict[str, Any], _files: dict[str, bytes]) -> None:
        for one in description["snapshots"]:
            one["manifest"]["golden"] = "../../elsewhere"

    path = changed(exported, tmp_path / "bad.tar", change)
    store = SnapshotStore(tmp_path / "state", quota=10**9, owner=None, find_golden=asked.append)  # type: ignore[arg-type]
    with pytest.raises(SnapshotError, match="does not have"):
        store.import_archive(path)
    assert asked == []


def test_duplicate_missing_swapped_and_additional_members_are_refused(
    exported: Path, store: SnapshotStore, tmp_path: Path
) -> None:
    members = members_of(exported / "plain.tar")
    for wrong in (
        [*members[:2], members[1], *members[2:]],
        members[:-1],
        [members[0], members[2], members[1], *members[3:]],
        [*members, members[-1]],
        members[1:],
        [],
    ):
        path = write_tar(tmp_path / "bad.tar", wrong)
        refuse(store, path, "belongs|more in it|does not begin|goes on", tmp_path)


def test_trailing_bytes_and_cut_files_are_refused(exported: Path, store: SnapshotStore, tmp_path: Path) -> None:
    content = (exported / "plain.tar").read_bytes()
    bad = tmp_path / "bad.tar"
    for wrong, match in (
        (content + b"x", "goes on"),
        (content + bytes(3 << 20), "goes on"),
        (content[: len(content) // 2], "cut off|begin"),
        (b"", "cut off"),
        (b"\x1f\x8b", "damaged|cut off"),
        (b"\x1f\x8b" + b"x" * 1000, "damaged"),
        (gzip.compress(content)[:-9], "damaged|cut off"),
        (gzip.compress(content)[:-5] + b"\0\0\0\0\0", "damaged"),
        (b"\x7fELF" + bytes(600), "no snapshot archive"),
    ):
        bad.write_bytes(wrong)
        refuse(store, bad, match, tmp_path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damaged_byte_is_refused_or_changes_nothing_that_matters(
    exported: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray((exported / "plain.tar").read_bytes())
    # The description and the headers are where a change could matter; contents have digests.
    places = st.integers(0, 8000) | st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("fuzz")
    make_golden(folder / "golden")
    store = make_store(folder)
    (folder / "bad.tar").write_bytes(content)
    try:
        came = store.import_archive(folder / "bad.tar")
    except SnapshotError:
        assert store.trees() == []
        assert not list((folder / "state" / "snapshots").glob(".*"))
    else:
        assert memory_of(came[-1].snapshot) == {1: 1, 2: 0, 3: 3, 5: 5}


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=3000), begin=st.booleans())
def test_any_bytes_are_refused(
    exported: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes, begin: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "bad.tar").write_bytes((exported / "plain.tar").read_bytes()[:512] * begin + content)
    with pytest.raises(SnapshotError):
        make_store(folder).import_archive(folder / "bad.tar")


# --- what the description can say


def entry(description: dict[str, Any], number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = description["snapshots"][number]
    return found


def lie(description: dict[str, Any], name: str, **values: object) -> None:
    entry(description)["manifest"]["files"][name] |= {**values, "is_lie": True}


CHANGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, bytes]], Any], str]] = {
    "format": (lambda d, f: d.update(format="other"), "format"),
    "unknown field": (lambda d, f: d.update(more=1), "more"),
    "no snapshots": (lambda d, f: d.update(snapshots=[]), "snapshots"),
    "notebook": (lambda d, f: d.update(notebook="a\x1b[2Jb"), "cannot be shown"),
    "no notebook": (lambda d, f: d.update(notebook=""), "notebook"),
    "id": (lambda d, f: entry(d).update(id="../../../../x"), "id"),
    "same ids": (lambda d, f: (entry(d, 2).update(id=entry(d, 1)["id"])), "same id"),
    "label": (lambda d, f: entry(d)["notes"].update(label="../x"), "label"),
    "labels": (lambda d, f: entry(d)["notes"].update(label="three"), "same label"),
    "text": (lambda d, f: entry(d)["notes"].update(text="x" * 3000), "text"),
    "created": (lambda d, f: entry(d)["notes"].update(created=1e300), "created"),
    "first has a parent": (lambda d, f: entry(d)["manifest"].update(parent="0" * 12), "no chain"),
    "two branches": (lambda d, f: entry(d, 2)["manifest"].update(parent=entry(d)["id"]), "no chain"),
    "golden differs": (lambda d, f: entry(d, 1)["manifest"].update(golden="b" * 32), "no chain"),
    "base": (lambda d, f: [one["manifest"].update(base="0" * 64) for one in d["snapshots"]], "booted here"),
    "golden": (lambda d, f: [one["manifest"].update(golden="b" * 32) for one in d["snapshots"]], "does not have"),
    "golden path": (lambda d, f: [one["manifest"].update(golden="../../x") for one in d["snapshots"]], "does not have"),
    "image": (lambda d, f: entry(d)["manifest"].update(image="e" * 64), "do not fit"),
    "hypervisor": (lambda d, f: entry(d, 1)["manifest"].update(hypervisor="QEMU 11"), "do not fit"),
    "hardware": (lambda d, f: entry(d)["manifest"]["hardware"].update(memory_mib=1 << 40), "do not fit"),
    "hardware type": (lambda d, f: entry(d)["manifest"].update(hardware={"x": {}}), "hardware"),
    "delta name": (lambda d, f: entry(d)["manifest"].update(delta="../x"), "unknown names"),
    "layer name": (lambda d, f: entry(d)["manifest"].update(own_layers=["/etc/shadow"]), "unknown names"),
    "layer twice": (lambda d, f: entry(d)["manifest"].update(own_layers=["disk.qcow2"] * 2), "must have"),
    "layer missing": (lambda d, f: entry(d)["manifest"].update(own_layers=[]), "must have"),
    "over layers that are not there": (lambda d, f: entry(d, 2)["manifest"].update(over=2), "more layers than"),
    "over less than nothing": (lambda d, f: entry(d, 2)["manifest"].update(over=-1), "over"),
    "over a path": (lambda d, f: entry(d, 2)["manifest"].update(over="../disk.qcow2"), "over"),
    "over, without a layer": (lambda d, f: entry(d, 1)["manifest"].update(over=0), "without having one"),
    "more files": (
        lambda d, f: entry(d)["manifest"]["files"].update(extra={"size": 0, "sha256": "0" * 64}), "must have",
    ),
    "digest": (lambda d, f: lie(d, "device-state", sha256="0" * 64), "digest"),
    "digest form": (lambda d, f: lie(d, "device-state", sha256="x"), "sha256"),
    "size": (lambda d, f: lie(d, "device-state", size=17), "belongs"),
    "negative size": (lambda d, f: lie(d, "device-state", size=-1), "size"),
    "bomb": (lambda d, f: lie(d, "device-state", size=1 << 40), "larger than it can be"),
    "bomb in the delta": (lambda d, f: lie(d, "memory.delta", size=1 << 40), "larger than it can be"),
    "bomb in the disk": (lambda d, f: lie(d, "disk.qcow2", size=1 << 40), "together"),
    "no delta": (lambda d, f: f.update({f"{entry(d)['id']}/memory.delta": b"x" * 600}), "damaged"),
    "delta beyond the memory": (
        lambda d, f: f.update(
            {f"{entry(d)['id']}/memory.delta": struct.pack("<8sQQQQ", b"AVMDELT1", 1, 1, 4096, 1) + bytes(256)}
        ),
        "not in order",
    ),
    "no layer": (lambda d, f: f.update({f"{entry(d)['id']}/disk.qcow2": b"x" * 600}), "no qcow2"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_no_description_but_a_true_one_is_accepted(
    exported: Path, store: SnapshotStore, tmp_path: Path, change: str
) -> None:
    apply, match = CHANGES[change]
    refuse(store, changed(exported, tmp_path / "bad.tar", apply), match, tmp_path)


def test_a_dump_is_still_one_when_it_comes_back(store: SnapshotStore, tmp_path: Path) -> None:
    tree = store.tree("dumps")
    taken = take(tree, golden_of(tmp_path), "dump", is_dump=True)
    export_snapshot(store, tree, taken.id, tmp_path / "dump.tar")
    (came,) = store.import_archive(tmp_path / "dump.tar", notebook="elsewhere")
    assert came.snapshot.manifest.is_dump


def test_an_unchanged_archive_is_accepted_by_the_same_way(exported: Path, store: SnapshotStore, tmp_path: Path) -> None:
    path = changed(exported, tmp_path / "good.tar", lambda _description, _files: None)
    assert len(store.import_archive(path)) == 3


def test_what_a_description_says_beyond_that_is_not_taken_over(
    exported: Path, store: SnapshotStore, tmp_path: Path
) -> None:
    def change(description: dict[str, Any], _files: dict[str, bytes]) -> None:
        entry(description)["manifest"] |= {"layers": ["/etc/shadow"], "created": 1e300, "boot_seconds": 5}

    came = store.import_archive(changed(exported, tmp_path / "odd.tar", change))
    manifest = came[0].snapshot.manifest
    assert (manifest.layers, manifest.boot_seconds) == ((), 0)
    assert manifest.created == came[0].notes.created


def test_description_of_any_length_is_not_read(store: SnapshotStore, tmp_path: Path) -> None:
    info = tarfile.TarInfo("archive.json")
    info.size = 1 << 40
    (tmp_path / "bad.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(5000))
    refuse(store, tmp_path / "bad.tar", "does not begin", tmp_path)


def test_host_without_the_golden_snapshot_names_what_is_missing(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    with pytest.raises(SnapshotError) as caught:
        make_store(tmp_path).import_archive(exported / "plain.tar")
    for missing in (GOLDEN, "d" * 12, "QEMU 10", "'memory_mib': 1"):
        assert missing in caught.value.message
    assert "Copy it" in caught.value.hint
    make_golden(tmp_path / "golden", created=5.0)
    with pytest.raises(SnapshotError, match="booted here"):
        make_store(tmp_path).import_archive(exported / "plain.tar")


def test_import_respects_the_quota(exported: Path, store: SnapshotStore, tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match="together"):
        make_store(tmp_path, quota=100_000).import_archive(exported / "plain.tar")
    take(store.tree("n"), golden_of(tmp_path), "kept", blocks=dict.fromkeys(range(1500), 1))
    size = store.used
    with pytest.raises(QuotaError, match="needs"):
        make_store(tmp_path, quota=size + 410_000).import_archive(exported / "plain.tar")
    assert [tree.notebook for tree in store.trees()] == ["n"]


def test_archive_that_is_not_there_is_an_error(store: SnapshotStore, tmp_path: Path) -> None:
    refuse(store, tmp_path / "none.tar", "No such file", tmp_path)


@pytest.mark.parametrize("fault", ["kill", "torn", "ENOSPC", "EIO"])
def test_a_failure_at_any_step_of_an_import_leaves_snapshots_complete_or_absent(
    exported: Path, tmp_path: Path, fault: str
) -> None:
    def import_to(folder: Path, at: int) -> tuple[SnapshotStore, FaultyDisk]:
        make_golden(folder / "golden")
        disk = FaultyDisk(at, fault)
        return make_store(folder, disk=disk), disk

    store, disk = import_to(tmp_path / "count", 0)
    store.import_archive(exported / "plain.tar")
    steps = len(disk.steps)
    for step in range(1, steps + 1):
        folder = tmp_path / str(step)
        store, _ = import_to(folder, step)
        expected = Killed if fault in {"kill", "torn"} else DiskFullError if fault == "ENOSPC" else SnapshotError
        with pytest.raises(expected):
            store.import_archive(exported / "plain.tar")
        later = make_store(folder)
        if expected is not Killed:
            assert later.trees() == []
        later.open()
        tree = later.tree("notes.ipynb")
        assert tree.damaged() == []
        assert [one.notes.label for one in tree.snapshots()] == ["one", "", "three"][: len(tree.snapshots())]
        assert not list((folder / "state" / "snapshots").glob(".*"))


# --- disk layers


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "layer.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(DISK_BYTES)], check=True)
    return path


def test_layer_of_qemus_is_accepted_and_loses_its_backing_file(tmp_path: Path, layer: Path) -> None:
    upper = tmp_path / "upper.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(layer), str(upper)], check=True)
    before = layer.read_bytes()
    isolate_layer(layer, DISK_BYTES)
    assert layer.read_bytes() == before
    isolate_layer(upper, DISK_BYTES)
    shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(upper)]))
    assert "backing-filename" not in shown
    assert subprocess.run(["qemu-img", "check", "-q", str(upper)], check=False).returncode == 0


QUICK = "encrypt.iter-time=10"
"""A key of which nobody expects anything."""


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("-o", "compat=0.10"), "version 3"),
        (("-o", "data_file=DATA"), "features"),
        (("-o", "extended_l2=on,cluster_size=128k"), "features"),
        (("-o", "compression_type=zstd"), "features"),
        (("-o", f"encrypt.format=luks,encrypt.key-secret=s,{QUICK}", "--object", "secret,id=s,data=x"), "encrypted"),
        (("-o", "cluster_size=512"), "clusters"),
    ],
)
def test_unusual_layers_of_qemus_are_refused(tmp_path: Path, options: tuple[str, ...], match: str) -> None:
    path = tmp_path / "layer.qcow2"
    options = tuple(option.replace("DATA", str(tmp_path / "data")) for option in options)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "1000000512"], check=True)
    with pytest.raises(SnapshotError, match=match):
        isolate_layer(path, 1000000512)


def test_layer_with_snapshots_or_bitmaps_inside_is_refused(layer: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.qcow2"
    other.write_bytes(layer.read_bytes())
    subprocess.run(["qemu-img", "snapshot", "-c", "inside", str(layer)], check=True)
    with pytest.raises(SnapshotError, match="internal snapshots"):
        isolate_layer(layer, DISK_BYTES)
    subprocess.run(["qemu-img", "bitmap", "--add", str(other), "dirty"], check=True)
    with pytest.raises(SnapshotError, match=r"features|extension"):
        isolate_layer(other, DISK_BYTES)


def patched(layer: Path, at: int, content: bytes) -> Path:
    data = bytearray(layer.read_bytes())
    data[at : at + len(content)] = content
    layer.write_bytes(data)
    return layer


@pytest.mark.parametrize(
    ("at", "content", "match"),
    [
        (0, b"QFI\0", "no qcow2"),
        (4, b"\0\0\0\x02", "version 3"),
        (20, b"\0\0\0\x20", "clusters"),
        (24, (DISK_BYTES + 512).to_bytes(8, "big"), "guest's disk"),
        (32, b"\0\0\0\x01", "encrypted"),
        (60, b"\0\0\0\x01", "internal snapshots"),
        (72, b"\0\0\0\0\0\0\0\x01", "features"),
        (72, b"\0\0\0\0\0\0\0\x04", "features"),
        (72, b"\x80\0\0\0\0\0\0\0", "features"),
        (88, b"\0\0\0\0\0\0\0\x02", "features"),
        (96, b"\0\0\0\x07", "clusters"),
        (100, b"\0\0\x10\0", "too long"),
        (100, b"\0\0\0\x00", "too short"),
        (112, b"DATA\0\0\0\x08/etc/pas", "extension"),
        (112, b"\x68\x03\xf8\x57\xff\xff\xff\xff", "does not end"),
    ],
)
def test_layers_with_a_forged_header_are_refused(layer: Path, at: int, content: bytes, match: str) -> None:
    with pytest.raises(SnapshotError, match=match):
        isolate_layer(patched(layer, at, content), DISK_BYTES)


@given(content=st.binary(max_size=300))
def test_any_bytes_are_no_layer(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("layer") / "layer"
    path.write_bytes(b"QFI\xfb" + content)
    with pytest.raises(SnapshotError):
        isolate_layer(path, DISK_BYTES)


def test_import_takes_the_backing_file_out_of_layers(exported: Path, store: SnapshotStore, tmp_path: Path) -> None:
    layer = make_layer(tmp_path / "l", DISK_BYTES, "-u", "-F", "raw", "-b", "/etc/shadow")
    assert b"/etc/shadow" in layer

    def change(description: dict[str, Any], files: dict[str, bytes]) -> None:
        files[f"{entry(description)['id']}/disk.qcow2"] = layer

    came = store.import_archive(changed(exported, tmp_path / "bad.tar", change))
    path = came[0].snapshot.disks[0]
    shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(path)]))
    assert "backing-filename" not in shown
    assert store.tree("notes.ipynb").verify(came[0].id) == []


def test_holes_stay_holes(exported: Path, store: SnapshotStore, tmp_path: Path) -> None:
    def change(description: dict[str, Any], files: dict[str, bytes]) -> None:
        files[f"{entry(description)['id']}/device-state"] = bytes(50 << 20)

    path = changed(exported, tmp_path / "sparse.tar", change)
    came = store.import_archive(path)
    assert came[0].snapshot.device_state.stat().st_size == 50 << 20
    assert came[0].size < 1 << 20
