"""Whatever fails at whichever step, a snapshot is complete or absent, and finished ones stay as they are.

Each operation is run once to count its steps, and then once for each step and each kind of failure.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_snapshots import disks_of, files_below, golden_of, make_store, memory_of, take, write_blocks
from faulty_disk import FaultyDisk, Killed, PowerCut

from agentvm_kernel.durable import Disk
from agentvm_kernel.errors import DiskFullError, SnapshotError
from agentvm_kernel.snapshots.notes import Notes
from agentvm_kernel.snapshots.store import SnapshotStore

Content = tuple[str, dict[int, int], list[bytes], str]
"""Label, memory, disk layers and device state of a snapshot."""


def content_of(store: SnapshotStore) -> dict[str, Content]:
    """Return everything that must survive, by the snapshots' ids."""
    return {
        one.id: (
            one.notes.label,
            memory_of(one.snapshot),
            disks_of(one.snapshot),
            one.snapshot.device_state.read_text(),
        )
        for tree in store.trees()
        for one in tree.snapshots()
    }


def check_sound(store: SnapshotStore, folder: Path) -> None:
    """Check that nothing is damaged, nothing is left over, and the sum is right."""
    for tree in store.trees():
        assert tree.damaged() == []
        assert tree.notebook
        for one in tree.snapshots():
            assert tree.verify(one.id) == []
    snapshots = [one for tree in store.trees() for one in tree.snapshots()]
    expected = {
        one.snapshot.folder / name
        for one in snapshots
        for name in ("manifest.json", "notes.json", *one.snapshot.manifest.files)
    }
    taken = files_below(folder)
    assert store.used == sum(size for path, size in taken.items() if path in expected)
    trees = {one.snapshot.folder.parent for one in snapshots}
    own = {folder / name for name in ("lock", "paths.lock")}
    assert set(taken) - own == expected | {tree / "tree.json" for tree in trees}
    folders = {path for path in folder.rglob("*") if path.is_dir()}
    assert folders == trees | {one.snapshot.folder for one in snapshots}


@dataclass(frozen=True)
class Case:
    """An operation on a store that has some snapshots.

    Attributes:
        prepare: Puts the snapshots there.
        act: The operation, by a store whose disk may fail.
        quota: The store's quota.
    """

    prepare: Callable[[SnapshotStore, Path], None]
    act: Callable[[SnapshotStore, Path], None]
    quota: int = 10**9


def no_snapshots(_store: SnapshotStore, _tmp_path: Path) -> None:
    """Prepare nothing."""


def a_chain(store: SnapshotStore, tmp_path: Path) -> None:
    """Put a chain of four there, with a branch, and another notebook's."""
    tree = store.tree("n")
    first = take(tree, golden_of(tmp_path), "one", blocks={1: 1, 2: 2}, disk=b"disk one", created=1)
    second = take(tree, first.snapshot, blocks={2: 3, 4: 4, 9: 0}, disk=b"disk two", created=2)
    third = take(tree, second.snapshot, blocks={4: 5, 6: 6}, created=3)
    take(tree, third.snapshot, "four", blocks={7: 7}, disk=b"disk four", created=4)
    take(tree, first.snapshot, "branch", blocks={1: 9}, created=5)
    take(store.tree("other"), golden_of(tmp_path), "alone", created=6)


def nth(store: SnapshotStore, number: int) -> str:
    return store.tree("n").snapshots()[number].id


def take_first(store: SnapshotStore, tmp_path: Path) -> None:
    take(store.tree("n"), golden_of(tmp_path), "new", blocks={3: 3}, disk=b"new")


def take_another(store: SnapshotStore, tmp_path: Path) -> None:
    tree = store.tree("n")
    take(tree, tree.find("four").snapshot, "new", blocks={3: 3}, disk=b"new")


def remove_leaf(store: SnapshotStore, _tmp_path: Path) -> None:
    store.tree("n").remove(nth(store, 3))


def remove_last_of_a_tree(store: SnapshotStore, _tmp_path: Path) -> None:
    tree = store.tree("other")
    tree.remove(tree.find("alone").id)


def remove_inner(store: SnapshotStore, _tmp_path: Path) -> None:
    store.tree("n").remove(nth(store, 1))


def relabel(store: SnapshotStore, _tmp_path: Path) -> None:
    store.tree("n").relabel(nth(store, 0), "uno", "text")


def prune_all(store: SnapshotStore, _tmp_path: Path) -> None:
    store.prune(lambda _one: True)


CASES = {
    "first": Case(no_snapshots, take_first),
    "another": Case(a_chain, take_another),
    "leaf": Case(a_chain, remove_leaf),
    "tree": Case(a_chain, remove_last_of_a_tree),
    "inner": Case(a_chain, remove_inner),
    "relabel": Case(a_chain, relabel),
    "prune": Case(a_chain, prune_all),
    # Room for all that is there, but not for one more.
    "quota": Case(a_chain, take_another, quota=6 * 5 * 4096),
}
POWER_CUTS = ("strict", "names", "some")
FAULTS = ("kill", "torn", "ENOSPC", "EIO", *POWER_CUTS)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path, list[str]]:
    """A case, the folder that it begins with, and its steps."""
    case = CASES[request.param]
    begin = tmp_path_factory.mktemp("begin") / "begin"
    begin.mkdir()
    case.prepare(make_store(begin), begin)
    counted = tmp_path_factory.mktemp("count") / "count"
    copy(begin, counted)
    disk = FaultyDisk()
    case.act(make_store(counted, disk=disk, quota=case.quota), counted)
    assert disk.steps
    return case, begin, disk.steps


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def ids_before_and_after(case: Case, begin: Path, folder: Path) -> tuple[dict[str, Content], dict[str, Content]]:
    before = content_of(make_store(begin))
    copy(begin, folder)
    store = make_store(folder, quota=case.quota)
    case.act(store, folder)
    return before, content_of(store)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_at_any_step_leaves_snapshots_complete_or_absent(
    case: tuple[Case, Path, list[str]], fault: str, tmp_path: Path
) -> None:
    operation, begin, steps = case
    before, after = ids_before_and_after(operation, begin, tmp_path / "after")
    for step in range(1, len(steps) + 1):
        folder = tmp_path / f"{step}"
        copy(begin, folder)
        fail(operation, folder, step, fault)
        store = make_store(folder)
        store.open()
        check(store, folder / "state" / "snapshots", before, after)
        take(store.tree("more"), golden_of(folder), "more")
        shutil.rmtree(folder)


def fail(operation: Case, folder: Path, step: int, fault: str) -> None:
    """Run an operation that fails."""
    if fault in POWER_CUTS:
        with pytest.raises(Killed):
            cut_power(operation, folder, fault, step)
        return
    disk = FaultyDisk(step, fault)
    store = make_store(folder, disk=disk, quota=operation.quota)
    if fault in {"kill", "torn"}:
        with pytest.raises(Killed):
            operation.act(store, folder)
    else:
        with pytest.raises(DiskFullError if fault == "ENOSPC" else SnapshotError) as caught:
            operation.act(store, folder)
        assert "\n" not in caught.value.message
        assert caught.value.hint
        # What was not stored is not there, even if only the last step failed.
        assert "new" not in [label for label, *_ in content_of(make_store(folder)).values()]


def cut_power(operation: Case, folder: Path, what: str, step: int = 0) -> None:
    """Run an operation, up to a step or its end, and put what a power cut leaves in the folder's place."""
    state = folder / "state"
    state.mkdir(exist_ok=True)
    power = PowerCut(state)
    store = make_store(folder, disk=FaultyDisk(step, "kill", power.on_sync), quota=operation.quota)
    try:
        operation.act(store, folder)
    finally:
        power.cut(folder / "left", what, step)
        shutil.rmtree(state)
        (folder / "left").rename(state)


def check(store: SnapshotStore, folder: Path, before: dict[str, Content], after: dict[str, Content]) -> None:
    check_sound(store, folder)
    found = content_of(store)
    for name, content in found.items():
        # One that the operation stores has another id each time, but a label and content that are known.
        assert content in (before.get(name), after.get(name)) or (name not in before and content in after.values())
    assert set(before) & set(after) <= set(found)


@pytest.mark.parametrize("what", POWER_CUTS)
def test_what_is_done_is_still_done_after_a_power_cut(
    case: tuple[Case, Path, list[str]], what: str, tmp_path: Path
) -> None:
    operation, begin, _ = case
    _, after = ids_before_and_after(operation, begin, tmp_path / "after")
    folder = tmp_path / "cut"
    copy(begin, folder)
    cut_power(operation, folder, what)
    store = make_store(folder)
    store.open()
    check_sound(store, folder / "state" / "snapshots")
    assert sorted(map(repr, content_of(store).values())) == sorted(map(repr, after.values()))


def test_a_full_disk_leaves_nothing_to_clean_up(case: tuple[Case, Path, list[str]], tmp_path: Path) -> None:
    operation, begin, steps = case
    before, after = ids_before_and_after(operation, begin, tmp_path / "after")
    for number, step in enumerate(steps, 1):
        if not step.startswith(("make", "write", "link", "rename")) or ".removed-" in step:  # the others need no room
            continue
        folder = tmp_path / f"{number}"
        copy(begin, folder)
        fail(operation, folder, number, "ENOSPC")
        check(make_store(folder), folder / "state" / "snapshots", before, after)


def test_cleaning_up_can_itself_be_killed_at_any_step(tmp_path: Path) -> None:
    begin = tmp_path / "begin"
    store = make_store(begin)
    a_chain(store, begin)
    expected = content_of(store)
    snapshots = begin / "state" / "snapshots"
    leftovers = [snapshots / ".new-abcdefabcdef", snapshots / ".removed-123456123456"]
    for path in leftovers:
        path.mkdir()
        (path / "memory.delta").write_bytes(b"half")
    garbage = store.tree("n").find("one").snapshot.folder / "memory-1.delta"
    garbage.write_bytes(b"half")
    (snapshots / ("f" * 16)).mkdir()
    counted = tmp_path / "counted"
    copy(begin, counted)
    disk = FaultyDisk()
    successor = make_store(counted, disk=disk)
    lines = successor.open()
    assert len(lines) == 3
    assert "abcdefabcdef" in lines[1] or "abcdefabcdef" in lines[0]
    for step in range(1, len(disk.steps) + 1):
        folder = tmp_path / str(step)
        copy(begin, folder)
        dying = make_store(folder, disk=FaultyDisk(step, "torn"))
        with pytest.raises(Killed):
            dying.open()
        successor = make_store(folder)
        successor.open()
        check_sound(successor, folder / "state" / "snapshots")
        assert content_of(successor) == expected


def test_a_snapshot_that_another_process_is_writing_is_not_cleaned_up(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with store.tree("n").new(golden_of(tmp_path), Notes()) as new:
        assert make_store(tmp_path).open() == []
        (new.folder / "device-state").touch()
        write_blocks(new.folder / "memory.delta", {})
    assert make_store(tmp_path).tree("n").snapshots() == [new.stored]


WRITER = """
import sys
from pathlib import Path
from fake_snapshots import golden_of, make_store, take
folder = Path(sys.argv[1])
store = make_store(folder, quota=400_000)
store.open()
tree = store.tree("n")
parent = golden_of(folder)
number = 0
print("ready", flush=True)
while True:
    number += 1
    stored = take(tree, parent, f"keep-{number}" if number % 5 == 0 and number < 20 else "",
                  blocks={block: number % 256 for block in range(number % 7, 40)}, disk=b"d" * 5000)
    print(stored.id, number, flush=True)
    parent = tree.find(stored.id).snapshot
"""


@pytest.fixture
def environment() -> dict[str, str]:
    here = Path(__file__).parent
    return {"PYTHONPATH": f"{here}:{here.parent.parent}", "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize("seed", range(8))
def test_kill_minus_nine_loses_no_finished_snapshot(tmp_path: Path, environment: dict[str, str], seed: int) -> None:
    make_store(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # Which step it is in by then is left to chance.
        for _ in range(random.Random(seed).randrange(1, 12)):
            last = process.stdout.readline()
        time.sleep(random.Random(seed).random() / 50)
        process.send_signal(signal.SIGKILL)
        lines = [last, *process.stdout.read().splitlines(keepends=True)]
    finished = [line.split() for line in lines if line.endswith("\n")]
    store = make_store(tmp_path)
    store.open()
    check_sound(store, tmp_path / "state" / "snapshots")
    assert finished[-1][0] in content_of(store)
    labels = {label for label, *_ in content_of(store).values() if label}
    assert {f"keep-{number}" for number in (5, 10, 15) if number <= int(finished[-1][1])} <= labels


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("this host lets root mount nothing")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_is_one_clear_line_and_the_store_goes_on(small_disk: Path) -> None:
    store = make_store(small_disk)
    tree = store.tree("n")
    taken: list[str] = []

    def take_many() -> None:
        parent = golden_of(small_disk)
        for number in range(100):
            stored = take(tree, parent, f"s{number}", blocks=dict.fromkeys(range(1500), number + 1))
            taken.append(stored.id)
            parent = stored.snapshot

    with pytest.raises(DiskFullError, match="disk is full") as caught:
        take_many()
    assert "agentvm snapshot" in caught.value.hint
    assert len(taken) > 5
    check_sound(store, small_disk / "state" / "snapshots")
    assert [one.id for one in tree.snapshots()] == taken
    with pytest.raises(DiskFullError):
        tree.remove(taken[0])  # merging needs room
    tree.remove(taken[-1])
    tree.remove(taken[-2])
    take(tree, tree.find(taken[-3]).snapshot, "again")
    assert make_store(small_disk).open() == []
    check_sound(store, small_disk / "state" / "snapshots")


def test_nothing_is_changed_but_through_the_disk() -> None:
    """The tests above see every step only if the package has no other way to change files."""
    package = Path(sys.modules[SnapshotStore.__module__].__file__ or "").parent
    ways = ("shutil", "write_bytes(", "write_text(", ".unlink(missing", "os.rename", "os.unlink", "os.link", "mkdtemp")
    found = {
        (path.name, way) for path in package.glob("*.py") for way in ways if way in path.read_text(encoding="utf-8")
    }
    assert found == set()


def test_a_step_is_one_system_call_that_changes_something(tmp_path: Path) -> None:
    disk = Disk()
    disk.make_folder(tmp_path / "a")
    disk.write(tmp_path / "a" / "f", b"x")
    assert (tmp_path / "a" / "f").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        disk.write(tmp_path / "a" / "f", b"y")
    disk.replace(tmp_path / "a" / "f", b"z")
    assert (tmp_path / "a" / "f").read_bytes() == b"z"
    (tmp_path / "link").symlink_to(tmp_path / "a" / "f")
    with pytest.raises(OSError, match="symbolic links"):
        disk.protect(tmp_path / "link", 0o600, 0, 0)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="regular"):
        disk.protect(tmp_path / "pipe", 0o600, 0, 0)
    disk.remove_tree(tmp_path / "a")
    assert not (tmp_path / "a").exists()
