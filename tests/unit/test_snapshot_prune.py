"""Old snapshots give way to new ones, and what descends from them stays as it is."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fake_snapshots import (
    PLENTY,
    Blocks,
    disks_of,
    files_below,
    golden_of,
    make_store,
    memory_of,
    take,
    write_blocks,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvm_kernel.errors import QuotaError, SnapshotError
from agentvm_kernel.snapshots.quota import readable_size
from agentvm_kernel.snapshots.reading import Stored
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.snapshots.tree import Tree

BIG: Blocks = dict.fromkeys(range(400), 7)  # about 100 kB


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return make_store(tmp_path)


@pytest.fixture
def tree(store: SnapshotStore) -> Tree:
    return store.tree("n")


def ids(tree: Tree) -> list[str]:
    return [one.id for one in tree.snapshots()]


def contents(tree: Tree) -> dict[str, tuple[Blocks, list[bytes]]]:
    return {one.id: (memory_of(one.snapshot), disks_of(one.snapshot)) for one in tree.snapshots()}


def test_removed_inner_snapshot_is_merged_into_its_child(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), "one", blocks={1: 1}, disk=b"one")
    second = take(tree, first.snapshot, blocks={2: 2, 3: 3}, disk=b"two")
    third = take(tree, second.snapshot, "three", blocks={3: 4}, disk=b"three", text="kept")
    fourth = take(tree, third.snapshot, blocks={5: 5})
    before = contents(tree)
    tree.remove(second.id)
    assert ids(tree) == [first.id, third.id, fourth.id]
    assert contents(tree) == {name: before[name] for name in ids(tree)}
    merged = tree.find("three")
    assert merged.parent == first.id
    assert merged.notes == third.notes
    assert merged.snapshot.device_state.read_text() == "device state of three"
    assert merged.written == 2 * 256
    assert tree.verify(merged.id) == []
    tree.remove(first.id)
    assert contents(tree) == {name: before[name] for name in ids(tree)}
    assert tree.find("three").parent == ""


def test_merged_disk_layers_are_links_not_copies(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), disk=b"one")
    take(tree, first.snapshot, "child", disk=b"two")
    number = first.snapshot.disks[0].stat().st_ino
    tree.remove(first.id)
    assert [path.stat().st_ino for path in tree.find("child").snapshot.disks[:-2]][1] == number


def test_layers_that_no_disk_lies_over_any_more_go_with_their_snapshot(
    store: SnapshotStore, tree: Tree, tmp_path: Path
) -> None:
    first = take(tree, golden_of(tmp_path), disk=b"one")
    second = take(tree, first.snapshot, disk=b"two" * 9000)
    third = take(tree, second.snapshot, "three", disk=b"two and three", over=1)
    fourth = take(tree, third.snapshot, "four", disk=b"all of them", over=0)
    assert disks_of(third.snapshot) == [b"two and three", b"one"]
    number = second.snapshot.disks[0].stat().st_ino
    assert store.prune(lambda one: one.id == second.id, dry_run=True).freed > 27000
    tree.remove(second.id)
    assert contents(tree)[third.id][1] == [b"two and three", b"one"]
    assert number not in {path.stat().st_ino for path in files_below(tmp_path)}
    assert tree.find("three").snapshot.manifest.over is None
    tree.remove(third.id)
    assert contents(tree)[fourth.id][1] == [b"all of them"]
    assert tree.find("four").snapshot.manifest.over == 0
    tree.remove(first.id)
    assert contents(tree)[fourth.id][1] == [b"all of them"]
    assert tree.find("four").snapshot.manifest.over is None
    assert [path.name for path in files_below(tmp_path) if path.suffix == ".qcow2"] == ["disk.qcow2"]


def test_layer_stays_as_long_as_a_descendants_disk_lies_over_it(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), disk=b"one")
    second = take(tree, first.snapshot, disk=b"two")
    third = take(tree, second.snapshot, disk=b"three")
    fourth = take(tree, third.snapshot, disk=b"three and four", over=2)
    for gone in (second, first, third):
        tree.remove(gone.id)
        assert contents(tree)[fourth.id][1] == [b"three and four", b"two", b"one"]
    assert tree.verify(fourth.id) == []


def test_snapshot_with_several_children_stays(tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path))
    children = [take(tree, first.snapshot), take(tree, first.snapshot)]
    with pytest.raises(SnapshotError, match="2 snapshots descend") as caught:
        tree.remove(first.id)
    assert all(child.id in caught.value.message for child in children)
    tree.remove(children[0].id)
    tree.remove(first.id)
    assert ids(tree) == [children[1].id]


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[int], list[Blocks], list[int | None], list[int]]:
    """Parents (0: golden, k: the k-th snapshot), memory, how many layers a new one leaves out, and what is to go."""
    count = draw(st.integers(1, 7))
    parents = [draw(st.integers(0, number)) for number in range(count)]
    blocks = st.dictionaries(st.integers(0, 40), st.integers(0, 255), max_size=8)
    memory = draw(st.lists(blocks, min_size=count, max_size=count))
    disks = draw(st.lists(st.none() | st.integers(0, count), min_size=count, max_size=count))
    gone = draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count))
    return parents, memory, disks, gone


@settings(max_examples=60, deadline=None)
@given(forests())
def test_whatever_is_pruned_the_others_keep_their_content(
    tmp_path_factory: pytest.TempPathFactory, forest: tuple[list[int], list[Blocks], list[int | None], list[int]]
) -> None:
    parents, memory, disks, gone = forest
    folder = tmp_path_factory.mktemp("forest")
    store = make_store(folder)
    tree = store.tree("n")
    made = [golden_of(folder)]
    for number, parent in enumerate(parents):
        left_out = disks[number]
        disk = b"" if left_out is None else str(number).encode()
        over = max(made[parent].depth - left_out, 0) if left_out else None
        stored = take(tree, made[parent], blocks=memory[number], disk=disk, created=number, over=over)
        made.append(stored.snapshot)
    before, used = contents(tree), store.used
    wanted = {made[number + 1].id for number in gone}
    planned = store.prune(lambda one: one.id in wanted, dry_run=True)
    assert (contents(tree), store.used) == (before, used)
    plan = store.prune(lambda one: one.id in wanted)
    assert plan == planned
    assert set(ids(tree)) == set(before) - {one.id for one in plan.gone}
    assert contents(tree) == {name: before[name] for name in ids(tree)}
    assert tree.damaged() == []
    assert used - store.used >= plan.freed - 512 * len(plan.steps)
    # What was wanted and is still there has several children.
    for name in wanted & set(ids(tree)):
        assert [one.parent for one in tree.snapshots()].count(name) > 1


def test_oldest_unlabelled_goes_first_in_whichever_tree(tmp_path: Path) -> None:
    store = make_store(tmp_path, quota=450_000)
    golden = golden_of(tmp_path)
    take(store.tree("a"), golden, "old", blocks=BIG, created=1)
    oldest = take(store.tree("b"), golden, blocks=BIG, created=2)
    older = take(store.tree("a"), golden, blocks=BIG, created=3)
    take(store.tree("b"), golden, "new", blocks=BIG, created=4)
    assert ids(store.tree("b")) == [store.tree("b").find("new").id]
    assert older.id in ids(store.tree("a"))
    assert oldest.id not in ids(store.tree("b"))
    assert store.used <= 450_000
    assert {one.notes.label for one in store.tree("a").snapshots()} == {"old", ""}


def test_what_a_running_vm_needs_is_merged_but_stays(tmp_path: Path) -> None:
    store = make_store(tmp_path, quota=PLENTY)
    tree = store.tree("n")
    chain: list[Stored] = []
    for number in range(4):
        parent = chain[-1].snapshot if chain else golden_of(tmp_path)
        chain.append(take(tree, parent, blocks=BIG | {500 + number: number}, disk=str(number).encode(), created=number))
    tree.pin(chain[2].id)
    assert [one.id for one in store.prune(lambda _one: True, dry_run=True).gone] == [chain[n].id for n in (0, 1, 3)]
    expected = contents(tree)
    tight = make_store(tmp_path, quota=store.used)
    take(tight.tree("n"), tree.find(chain[2].id).snapshot, "new", blocks=BIG)
    assert ids(tree)[0] == chain[2].id
    assert contents(tree)[chain[2].id] == expected[chain[2].id]
    with pytest.raises(QuotaError):
        take(make_store(tmp_path, quota=100_000).tree("n"), golden_of(tmp_path), blocks=BIG)
    assert chain[2].id in ids(tree)
    tree.unpin(chain[2].id)


def test_what_cannot_fit_is_refused_and_nothing_is_pruned(tmp_path: Path) -> None:
    store = make_store(tmp_path, quota=350_000)
    tree = store.tree("n")
    take(tree, golden_of(tmp_path), "kept", blocks=BIG)
    take(tree, golden_of(tmp_path), blocks=BIG)
    before = files_below(tmp_path / "state")
    with pytest.raises(QuotaError) as caught:
        take(tree, golden_of(tmp_path), blocks=dict.fromkeys(range(1000), 1))
    assert "350 kB" in caught.value.message
    assert "2 take" in caught.value.message
    assert "\n" not in caught.value.message
    assert "quota_gb" in caught.value.hint
    assert files_below(tmp_path / "state") == before


def test_damaged_content_is_not_merged_into_what_is_sound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(tmp_path)
    tree = store.tree("n")
    first = take(tree, golden_of(tmp_path), blocks=BIG, created=1)
    child = take(tree, first.snapshot, "child", blocks=BIG)
    first.snapshot.delta.chmod(0o600)
    content = bytearray(first.snapshot.delta.read_bytes())
    content[-1] ^= 1
    first.snapshot.delta.write_bytes(content)
    with pytest.raises(SnapshotError, match="damaged"):
        tree.remove(first.id)
    with pytest.raises(QuotaError):
        take(make_store(tmp_path, quota=store.used).tree("n"), golden_of(tmp_path))
    assert "another content" in caplog.text
    assert ids(tree) == [first.id, child.id]
    assert tree.verify(child.id) == []


def test_parent_of_a_damaged_snapshot_stays(store: SnapshotStore, tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), created=1)
    child = take(tree, first.snapshot)
    child.snapshot.delta.unlink()
    with pytest.raises(SnapshotError, match="damaged snapshot descends"):
        tree.remove(first.id)
    assert store.prune(lambda _one: True).gone == ()


def test_names_stay_while_they_are_frozen(store: SnapshotStore, tree: Tree, tmp_path: Path) -> None:
    first = take(tree, golden_of(tmp_path), blocks={1: 1})
    child = take(tree, first.snapshot, "child", blocks={2: 2})
    thread = threading.Thread(target=tree.remove, args=(first.id,))
    with store.frozen():
        thread.start()
        merged = child.snapshot.folder / "memory-1.delta"
        while not merged.exists():
            thread.join(0.01)
        for _ in range(20):
            thread.join(0.01)
            assert memory_of(child.snapshot) == {1: 1, 2: 2}
        assert ids(tree) == [first.id, child.id]
    thread.join()
    assert not first.snapshot.folder.exists()
    assert memory_of(tree.find("child").snapshot) == {1: 1, 2: 2}


def test_a_snapshot_that_comes_into_use_late_is_spared(
    store: SnapshotStore, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take(tree, golden_of(tmp_path), blocks={1: 1})
    take(tree, first.snapshot, "child", blocks={2: 2})
    monkeypatch.setattr("agentvm_kernel.snapshots.quota.is_used", lambda _folder: False)
    tree.pin(first.id)
    assert store.prune(lambda one: one.id == first.id).gone == ()
    assert first.id in ids(tree)
    assert memory_of(tree.find("child").snapshot) == {1: 1, 2: 2}
    assert tree.find("child").parent == ""
    tree.unpin(first.id)


def test_unlabelled_is_pruned_before_a_new_one_is_there(tmp_path: Path) -> None:
    """A time-travel session at its quota goes on, and its pinned present always descends from all that was done."""
    store = make_store(tmp_path, quota=300_000)
    tree = store.tree("n")
    parent, expected = golden_of(tmp_path), {}
    last = ""
    for number in range(12):
        blocks = dict.fromkeys(range(number * 10, number * 10 + 150), number)
        expected |= blocks
        stored = take(tree, parent, blocks=blocks, created=number)
        tree.pin(stored.id)
        if last:
            tree.unpin(last)
        last, parent = stored.id, stored.snapshot
        assert store.used <= 300_000
    assert memory_of(tree.find(last).snapshot) == expected
    assert len(ids(tree)) < 12
    tree.unpin(last)


def test_sizes_are_readable() -> None:
    sizes = {0: "0 B", 999: "999 B", 1500: "1.5 kB", 999_600: "1 MB", 20 * 10**9: "20 GB", 5 * 10**12: "5 TB"}
    assert {size: readable_size(size) for size in sizes} == sizes


def test_no_name_of_a_delta_is_used_twice(tree: Tree, tmp_path: Path) -> None:
    parent = golden_of(tmp_path)
    chain = []
    for number in range(3):
        chain.append(take(tree, parent, blocks={number: number + 1}))
        parent = chain[-1].snapshot
    tree.remove(chain[1].id)
    assert tree.snapshots()[-1].snapshot.delta.name == "memory-1.delta"
    tree.remove(chain[0].id)
    assert sorted(path.name for path in tree.snapshots()[0].snapshot.folder.iterdir()) == [
        "device-state", "manifest.json", "memory-2.delta", "notes.json",
    ]  # fmt: skip
    assert memory_of(tree.snapshots()[0].snapshot) == {0: 1, 1: 2, 2: 3}


def test_parent_that_was_merged_meanwhile_is_still_the_childs_parent(tree: Tree, tmp_path: Path) -> None:
    """Whoever holds a snapshot from before a merge may name it as a parent: its content is the same."""
    first = take(tree, golden_of(tmp_path), blocks={1: 1})
    second = take(tree, first.snapshot, blocks={2: 2})
    tree.remove(first.id)
    with tree.new(second.snapshot, second.notes) as new:
        (new.folder / "device-state").touch()
        write_blocks(new.folder / "memory.delta", {3: 3})
    assert memory_of(new.stored.snapshot) == {1: 1, 2: 2, 3: 3}
