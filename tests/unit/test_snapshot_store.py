"""Snapshots are stored, found, listed, labelled, pinned and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

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
    write_blocks,
)

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.snapshots import prune
from agentvm_kernel.snapshots.notes import Cell, Notes
from agentvm_kernel.snapshots.reading import Stored
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.snapshots.tree import Tree
from agentvm_kernel.vm.snapshot import FileDigest, Snapshot


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return make_store(tmp_path)


@pytest.fixture
def tree(store: SnapshotStore) -> Tree:
    return store.tree("/home/me/notebook.ipynb")


def fill_empty(folder: Path) -> None:
    (folder / "device-state").touch()
    write_blocks(folder / "memory.delta", {})


def store_new(tree: Tree, parent: Snapshot, fill: Callable[[Path], None], notes: Notes | None = None) -> None:
    with tree.new(parent, notes or Notes()) as new:
        fill(new.folder)


def test_stored_snapshot_is_there_for_the_next_supervisor(tree: Tree, tmp_path: Path) -> None:
    notes = Notes(label="first", text="clean", kind="auto", cell=Cell(run=3, count=2, code="x = 1"), pause_ms=9.5)
    with tree.new(golden_of(tmp_path), notes) as new:
        (new.folder / "device-state").write_text("devices")
        write_blocks(new.folder / "memory.delta", {5: 50, 7: 70})
    later = make_store(tmp_path).tree("/home/me/notebook.ipynb").snapshots()
    assert later == [new.stored]
    assert later[0].notes == notes
    assert later[0].id == new.id
    assert later[0].written == 2 * 256
    snapshot = later[0].snapshot
    assert snapshot.golden.id == GOLDEN
    assert snapshot.hardware.memory_mib == 1
    assert snapshot.device_state.read_text() == "devices"
    assert memory_of(snapshot) == {5: 50, 7: 70}


def test_children_have_their_parents_and_their_disks_in_order(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), "a", blocks={1: 1, 2: 2}, disk=b"lower")
    second = take(tree, first.snapshot, "b", blocks={2: 3})
    third = take(tree, second.snapshot, "c", blocks={4: 4}, disk=b"upper")
    assert [one.id for one in tree.snapshots()] == [first.id, second.id, third.id]
    assert [one.parent for one in tree.snapshots()] == ["", first.id, second.id]
    snapshot = tree.find("c").snapshot
    assert [one.id for one in snapshot.lineage] == [GOLDEN, first.id, second.id, third.id]
    assert memory_of(snapshot) == {1: 1, 2: 3, 4: 4}
    assert disks_of(snapshot) == [b"upper", b"lower"]
    assert snapshot.disks[-1] == Path("/image/rootfs.ext4")


def test_a_disk_that_holds_what_is_in_others_does_not_lie_over_them(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), disk=b"1")
    second = take(tree, first.snapshot, disk=b"2")
    third = take(tree, second.snapshot, disk=b"3")
    flat = take(tree, third.snapshot, disk=b"2 to 4", over=1)
    branch = take(tree, flat.snapshot)
    found = {one.id: one.snapshot for one in tree.snapshots()}
    assert [disks_of(found[one.id]) for one in (third, flat, branch)] == [
        [b"3", b"2", b"1"], [b"2 to 4", b"1"], [b"2 to 4", b"1"],
    ]  # fmt: skip
    assert [found[one.id].depth for one in (first, third, flat, branch)] == [1, 3, 2, 2]


def test_stores_from_before_disks_left_layers_out_can_be_read(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), disk=b"1")
    second = take(tree, first.snapshot, disk=b"2")
    for one in (first, second):
        change_manifest(one, lambda manifest: manifest.pop("over"))
    assert disks_of(tree.find(second.id).snapshot) == [b"2", b"1"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"over": 2}, "more layers"), ({"over": -1}, "greater than"), ({"over": 0, "own_layers": []}, "must have")],
)
def test_disk_that_lies_over_what_is_not_there_is_damaged(
    tree: Tree, tmp_path: Path, values: dict[str, object], reason: str
) -> None:
    first = take(tree, golden_of(tmp_path), disk=b"1")
    second = take(tree, first.snapshot, disk=b"2")
    change_manifest(second, lambda manifest: manifest.update(values))
    (damaged,) = tree.damaged()
    assert damaged.id == second.id
    assert reason in damaged.reason


def change_manifest(stored: Stored, change: Callable[[dict[str, object]], object]) -> None:
    path = stored.snapshot.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.chmod(0o600)
    path.write_text(json.dumps(manifest))


def test_several_layers_of_one_snapshot_keep_their_order(tree: Tree, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        fill_empty(folder)
        for number in range(12):
            (folder / (f"disk-{number}.qcow2" if number else "disk.qcow2")).write_text(str(number))

    store_new(tree, golden_of(tmp_path), fill)
    assert disks_of(tree.snapshots()[0].snapshot) == [str(number).encode() for number in range(12)]


def test_a_chain_longer_than_pythons_stack_can_be_used(tree: Tree, tmp_path: Path) -> None:
    stored = take(tree, golden_of(tmp_path))
    folder = stored.snapshot.folder
    manifest = json.loads((folder / "manifest.json").read_text())
    for number in range(1, 1200):
        copy = folder.with_name(f"{number:012x}")
        copy.mkdir()
        for name in ("device-state", "memory.delta", "notes.json"):
            os.link(folder / name, copy / name)
        parent = stored.id if number == 1 else f"{number - 1:012x}"
        (copy / "manifest.json").write_text(json.dumps(manifest | {"parent": parent}))
    snapshot = tree.find(f"{1199:012x}").snapshot
    assert snapshot.golden.id == GOLDEN
    assert len(snapshot.disks) == 2
    assert snapshot == tree.find(f"{1199:012x}").snapshot


def test_trees_are_apart(store: SnapshotStore, tmp_path: Path) -> None:
    assert store.trees() == []
    one, other = store.tree("one"), store.tree("other")
    stored = take(one, golden_of(tmp_path), "same")
    take(other, golden_of(tmp_path), "same")
    assert {tree.notebook for tree in store.trees()} == {"one", "other"}
    assert len(one.id) == 16
    assert one.snapshots() == [stored]
    with pytest.raises(SnapshotError, match="no snapshot"):
        other.find(stored.id)


def test_files_are_for_their_user_only(tree: Tree, tmp_path: Path) -> None:
    stored = take(tree, golden_of(tmp_path), disk=b"layer")
    folder = stored.snapshot.folder
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent, folder.parent.parent)} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o400}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's QEMU runs under another user")
def test_qemus_group_reaches_only_what_qemu_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = []

    def describe(path: Path) -> FileDigest:
        owners.append(path.parent.stat().st_uid)
        return prune.describe(path)

    monkeypatch.setattr("agentvm_kernel.snapshots.tree.describe", describe)
    tree = make_store(tmp_path, owner=(1234, 4321)).tree("n")
    with tree.new(golden_of(tmp_path), Notes()) as new:
        assert new.folder.stat().st_uid == 1234
        (new.folder / "device-state").touch()
        os.chown(new.folder / "device-state", 1234, 4321)
        write_blocks(new.folder / "memory.delta", {})
        (new.folder / "disk.qcow2").write_bytes(b"layer")
    assert set(owners) == {0}  # QEMU's user cannot put other files there once they are looked at
    folder = new.stored.snapshot.folder
    modes = {
        path.name: (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) for path in folder.iterdir()
    }
    assert modes == {
        "device-state": (0, 4321, 0o440),
        "disk.qcow2": (0, 4321, 0o440),
        "memory.delta": (0, 4321, 0o400),
        "manifest.json": (0, 4321, 0o400),
        "notes.json": (0, 4321, 0o400),
    }
    assert (folder.stat().st_gid, folder.stat().st_mode & 0o777) == (4321, 0o750)
    for above in (folder.parent, folder.parent.parent):
        assert (above.stat().st_uid, above.stat().st_gid, above.stat().st_mode & 0o777) == (0, 4321, 0o710)


def test_links_in_a_new_snapshots_folder_are_refused(tree: Tree, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    secret.chmod(0o600)

    def fill(folder: Path) -> None:
        (folder / "device-state").symlink_to(secret)
        write_blocks(folder / "memory.delta", {})

    with pytest.raises(SnapshotError, match="right files"):
        store_new(tree, golden_of(tmp_path), fill)
    assert secret.stat().st_mode & 0o777 == 0o600
    assert tree.snapshots() == []


@pytest.mark.parametrize("name", ["device-state", "memory.delta", "extra"])
def test_a_new_snapshot_must_have_its_files_and_no_others(tree: Tree, tmp_path: Path, name: str) -> None:
    def fill(folder: Path) -> None:
        fill_empty(folder)
        path = folder / name
        path.write_text("") if name == "extra" else path.unlink()

    with pytest.raises(SnapshotError, match="right files"):
        store_new(tree, golden_of(tmp_path), fill)
    assert [path.name for path in (tmp_path / "state" / "snapshots").iterdir() if path.is_dir()] == []


def test_a_delta_that_is_none_is_refused(tree: Tree, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "device-state").touch()
        (folder / "memory.delta").write_bytes(b"no delta")

    with pytest.raises(SnapshotError, match="damaged"):
        store_new(tree, golden_of(tmp_path), fill)
    assert tree.snapshots() == []


def test_failure_in_the_block_leaves_nothing(store: SnapshotStore, tree: Tree, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "device-state").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store_new(tree, golden_of(tmp_path), fill)
    assert [path.name for path in (tmp_path / "state" / "snapshots").iterdir() if path.is_dir()] == []
    assert tree.snapshots() == []
    assert store.used == 0


def test_notes_can_change_until_the_snapshot_is_stored(tree: Tree, tmp_path: Path) -> None:
    with tree.new(golden_of(tmp_path), Notes(label="x")) as new:
        fill_empty(new.folder)
        new.notes = new.notes.model_copy(update={"pause_ms": 12.5})
    assert tree.find("x").notes.pause_ms == 12.5


def test_a_taken_label_names_its_holder(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), "same")
    with pytest.raises(SnapshotError, match=first.id):
        take(tree, first.snapshot, "same")
    with pytest.raises(SnapshotError, match="label"):
        take(tree, first.snapshot, "../x")
    assert len(tree.snapshots()) == 1


def test_of_two_snapshots_with_a_label_at_once_one_gets_it(tree: Tree, tmp_path: Path) -> None:
    golden = golden_of(tmp_path)

    def fill(folder: Path) -> None:
        take(tree, golden, "same")
        fill_empty(folder)

    with pytest.raises(SnapshotError, match="taken"):
        store_new(tree, golden, fill, Notes(label="same"))
    assert [one.notes.label for one in tree.snapshots()] == ["same"]


def test_snapshots_are_found_by_label_id_prefix_and_steps(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), "start", created=1)
    second = take(tree, first.snapshot, created=2)
    third = take(tree, second.snapshot, "end", created=3)
    found = {
        "start": first, second.id: second, third.id[:4]: third, "": third, "~0": third, "~1": second, "~": second,
        "~2": first,
    }  # fmt: skip
    for reference, stored in found.items():
        assert tree.find(reference, third.id) == stored
    assert tree.find("~1", second.id) == first


@pytest.mark.parametrize("reference", ["nothing", "abc", "../x", "\0", "~3", "~-1", "~1x", "x" * 300])
def test_what_is_not_there_is_not_found(tree: Tree, tmp_path: Path, reference: str) -> None:
    first = take(tree, golden_of(tmp_path), "start")
    second = take(tree, first.snapshot)
    with pytest.raises(SnapshotError) as caught:
        tree.find(reference, second.id)
    assert len(str(caught.value)) < 300


def test_errors_say_what_is_there(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="no snapshots"):
        tree.find("x")
    with pytest.raises(SnapshotError, match="to go back to"):
        tree.find("~1")
    take(tree, golden_of(tmp_path), "start")
    with pytest.raises(SnapshotError, match="There are: start"):
        tree.find("x")


def test_ambiguous_prefix_is_refused(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("abcd00000001", "abcd00000002"):
        monkeypatch.setattr("agentvm_kernel.snapshots.tree.new_id", lambda name=name: name)
        take(tree, golden_of(tmp_path))
    with pytest.raises(SnapshotError, match="several"):
        tree.find("abcd")
    assert tree.find("abcd00000001").id == "abcd00000001"


def test_used_is_what_the_files_take(store: SnapshotStore, tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), blocks=dict.fromkeys(range(100), 1))
    take(store.tree("other"), golden_of(tmp_path), disk=b"x" * 50_000)
    taken = {path: size for path, size in files_below(tmp_path / "state").items() if len(path.parent.name) == 12}
    assert store.used == sum(taken.values())
    assert first.size == sum(size for path, size in taken.items() if path.parent.name == first.id) > 25_600


def test_relabelled_snapshot_has_its_new_label_only(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), "old", text="kept")
    second = take(tree, first.snapshot, "other")
    tree.relabel(first.id, "new")
    assert tree.find("new").notes.text == "kept"
    with pytest.raises(SnapshotError):
        tree.find("old")
    with pytest.raises(SnapshotError, match=second.id):
        tree.relabel(first.id, "other")
    tree.relabel(first.id, "new", "changed")
    assert tree.find("new").notes.text == "changed"
    tree.relabel(first.id, "")
    assert tree.find(first.id).notes.label == ""


def test_removed_leaf_is_gone_and_so_is_an_empty_tree(store: SnapshotStore, tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path))
    second = take(tree, first.snapshot)
    tree.remove(second.id)
    assert tree.snapshots() == [first]
    tree.remove(first.id)
    assert store.trees() == []
    assert [path for path in (tmp_path / "state").rglob("*") if path.is_dir()] == [tmp_path / "state" / "snapshots"]
    with pytest.raises(SnapshotError, match="no snapshot"):
        tree.remove(first.id)


def test_pinned_snapshot_is_not_removed(tree: Tree, tmp_path: Path) -> None:
    stored = take(tree, golden_of(tmp_path))
    tree.pin(stored.id)
    tree.pin(stored.id)
    tree.unpin(stored.id)
    with pytest.raises(SnapshotError, match="in use"):
        tree.remove(stored.id)
    tree.unpin(stored.id)
    tree.remove(stored.id)
    with pytest.raises(SnapshotError, match="no snapshot"):
        tree.pin(stored.id)


def test_the_command_line_sees_what_a_living_supervisor_uses(tree: Tree, tmp_path: Path) -> None:
    stored = take(tree, golden_of(tmp_path))
    code = "import sys; from agentvm_kernel.snapshots.pins import *; hold(Path(sys.argv[1])); print(); input()"
    command = [sys.executable, "-c", code, str(stored.snapshot.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        supervisor.stdout.readline()
        with pytest.raises(SnapshotError, match="in use"):
            tree.remove(stored.id)
        supervisor.kill()
    tree.remove(stored.id)


def test_snapshot_can_be_in_use_from_the_moment_it_is_there(tree: Tree, tmp_path: Path) -> None:
    with tree.new(golden_of(tmp_path), Notes(), pinned=True) as new:
        fill_empty(new.folder)
    with pytest.raises(SnapshotError, match="in use"):
        tree.remove(new.id)
    tree.unpin(new.id)
    tree.remove(new.id)


def test_parent_stays_while_its_child_is_taken(tree: Tree, tmp_path: Path) -> None:
    parent = take(tree, golden_of(tmp_path))
    with tree.new(parent.snapshot, Notes()) as new:
        with pytest.raises(SnapshotError, match="in use"):
            tree.remove(parent.id)
        fill_empty(new.folder)
    assert new.stored.parent == parent.id


def test_child_of_a_removed_parent_is_refused(tree: Tree, tmp_path: Path) -> None:
    parent = take(tree, golden_of(tmp_path))
    tree.remove(parent.id)
    with pytest.raises(SnapshotError, match="no snapshot"):
        take(tree, parent.snapshot)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("manifest.json", b"{}", "Manifest"),
        ("manifest.json", None, "manifest.json"),
        ("notes.json", b"\xff", "Notes"),
        ("device-state", b"", "device-state"),
        ("memory.delta", None, "memory.delta"),
        ("memory.delta", b"x" * 280, "damaged"),
    ],
)
def test_damaged_snapshot_is_reported_and_the_others_are_not_touched(
    store: SnapshotStore, tree: Tree, tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    sound = take(tree, golden_of(tmp_path), "sound")
    broken = take(tree, golden_of(tmp_path), "broken", blocks={0: 1})
    child = take(tree, broken.snapshot, "child")
    path = broken.snapshot.folder / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    if content and name == "memory.delta":
        path.write_bytes(b"x" * broken.snapshot.manifest.files[name].size)
    for each in (store, make_store(tmp_path)):
        assert each.tree(tree.notebook).snapshots() == [sound]
        damaged = {one.id: one.reason for one in each.tree(tree.notebook).damaged()}
        assert set(damaged) == {broken.id, child.id}
        assert reason in damaged[broken.id]
        assert "ancestor" in damaged[child.id]
        assert each.used > sound.size
    with pytest.raises(SnapshotError, match="damaged"):
        tree.find(broken.id)
    with pytest.raises(SnapshotError, match="descend"):
        tree.remove(broken.id)
    assert tree.verify(broken.id)
    tree.remove(child.id)
    tree.remove(broken.id)
    assert tree.damaged() == []


def test_verify_finds_a_changed_byte(tree: Tree, tmp_path: Path) -> None:
    stored = take(tree, golden_of(tmp_path), blocks={0: 1})
    assert tree.verify(stored.id) == []
    path = stored.snapshot.delta
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    assert tree.verify(stored.id) == ["memory.delta has another content than when it was stored"]


def test_snapshots_of_a_golden_one_that_was_made_anew_are_damaged(tree: Tree, tmp_path: Path) -> None:
    take(tree, golden_of(tmp_path))
    (tmp_path / "golden" / GOLDEN / "manifest.json").unlink()
    assert "is gone" in tree.damaged()[0].reason
    (tmp_path / "golden" / GOLDEN).rmdir()
    make_golden(tmp_path / "golden", created=2.0)
    assert "made anew" in tree.damaged()[0].reason
    assert tree.snapshots() == []


def test_parent_of_another_golden_snapshot_is_damage(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path))
    child = take(tree, first.snapshot)
    (tmp_path / "golden" / GOLDEN).rename(tmp_path / "golden" / ("b" * 32))
    make_golden(tmp_path / "golden")
    other = Snapshot.load(tmp_path / "golden" / ("b" * 32))
    assert other is not None
    path = child.snapshot.folder / "manifest.json"
    path.chmod(0o600)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"golden": other.id, "base": other.identity}))
    assert [one.reason for one in tree.damaged()] == ["its parent descends from another golden snapshot"]


def test_parents_in_a_circle_are_damaged(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path))
    second = take(tree, first.snapshot)
    path = first.snapshot.folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"parent": second.id}
    path.chmod(0o600)
    path.write_text(json.dumps(manifest))
    assert {one.id for one in tree.damaged()} == {first.id, second.id}


def test_tree_without_its_name_is_still_listed(store: SnapshotStore, tree: Tree, tmp_path: Path) -> None:
    stored = take(tree, golden_of(tmp_path))
    (stored.snapshot.folder.parent / "tree.json").unlink()
    assert [(one.notebook, one.snapshots()) for one in store.trees()] == [("", [stored])]


def test_many_threads_store_and_remove_at_once(store: SnapshotStore, tmp_path: Path) -> None:
    golden = golden_of(tmp_path)
    failures: list[SnapshotError] = []

    def work(number: int) -> None:
        try:
            tree = store.tree(f"n{number % 2}")
            for turn in range(5):
                stored = take(tree, golden, f"l{number}-{turn}")
                tree.pin(stored.id)
                tree.relabel(stored.id, f"m{number}-{turn}")
                tree.unpin(stored.id)
                if turn % 2:
                    tree.remove(stored.id)
        except SnapshotError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    labels = {one.notes.label for tree in store.trees() for one in tree.snapshots()}
    assert labels == {f"m{number}-{turn}" for number in range(4) for turn in (0, 2, 4)}
