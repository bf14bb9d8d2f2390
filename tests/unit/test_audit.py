"""The audit log is append-only, chained over days, private, bounded per event, and nobody waits for it."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
from pathlib import Path

import pytest

from agentvm_kernel.durable import Disk
from agentvm_kernel.observe import audit as module
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.observe.chain import HEAD
from agentvm_kernel.observe.events.vm import LeaseAcquired, LeaseReleased, VMStopped
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.observe.verify import verify

NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z
DAY = 86_400.0


class Clock:
    """Tells the time that a test says."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def acquired(vm: str) -> Event:
    return LeaseAcquired(vm=vm, accelerator="tcg")


def lines_of(folder: Path) -> list[bytes]:
    return [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()]


def records_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines_of(folder)]


def names_of(folder: Path) -> list[object]:
    return [record.get("event") for record in records_of(folder)]


def test_each_record_carries_its_number_and_the_digest_of_the_one_before_over_restarts_and_days(
    folder: Path, clock: Clock
) -> None:
    for run in range(3):
        log = AuditLog(folder, clock=clock)
        log.record(acquired(f"vm-{run}"))
        log.record(VMStopped(vm=f"vm-{run}", reason="x" * 10_000))
        log.close()
        clock.now += DAY * (run > 0)
    lines, entries = lines_of(folder), records_of(folder)
    digests = ["0" * 64] + [hashlib.sha256(line).hexdigest() for line in lines[:-1]]
    assert [entry["previous"] for entry in entries] == digests
    assert [entry["sequence"] for entry in entries] == list(range(1, 9))
    assert len(str(entries[2]["reason"])) == 512
    assert [file.name for file in sorted(folder.glob("*.jsonl"))] == ["2026-01-01.jsonl", "2026-01-02.jsonl"]
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    head = {"sequence": 8, "digest": hashlib.sha256(lines[-1]).hexdigest()}
    assert json.loads((folder / HEAD).read_text()) == head
    assert verify(folder).problems == []


def test_a_folder_that_was_open_to_others_is_closed(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    AuditLog(folder).close()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_the_full_disk_swallows_is_counted_and_the_chain_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(folder)
    log.record(acquired("vm-1"))
    log.flush()

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def nearly_full(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:20])

    def all_but_the_line_break(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:-1])

    write = os.write
    for way in (full, nearly_full, all_but_the_line_break):
        monkeypatch.setattr(os, "write", way)
        log.record(LeaseReleased(vm="vm-1"))
        log.flush()
    monkeypatch.undo()
    log.record(acquired("vm-2"))
    log.record(LeaseReleased(vm="vm-2"))
    log.close()
    _, first, second, third = lines_of(folder)
    assert json.loads(second)["lost"] == 3
    assert json.loads(second)["previous"] == hashlib.sha256(first).hexdigest()
    assert json.loads(third)["previous"] == hashlib.sha256(second).hexdigest()
    assert "lost" not in json.loads(third)
    assert verify(folder).problems == []
    assert verify(folder).lost == 3


def test_a_line_that_could_not_be_taken_back_is_before_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(folder)
    log.record(acquired("vm-1"))
    log.flush()
    write = os.write

    def broken(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:30]))
    monkeypatch.setattr(os, "ftruncate", broken)
    log.record(acquired("vm-2"))
    log.flush()
    monkeypatch.undo()
    log.record(acquired("vm-3"))
    log.close()
    assert verify(folder).problems == []
    assert [record.get("vm") for record in records_of(folder)] == [None, "vm-1", "vm-3"]


def test_a_head_that_cannot_be_written_makes_nothing_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(folder)
    log.record(acquired("vm-1"))
    log.flush()

    def full(disk: Disk, path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "replace", full)
        log.record(acquired("vm-2"))
        log.flush()
        verdict = verify(folder)
        assert verdict.problems == []
        assert "1 records at the end were not known to be safe" in str(verdict.remarks[0])
        log.close()
    log = AuditLog(folder)
    log.record(acquired("vm-3"))
    log.close()
    verdict = verify(folder)
    assert (verdict.problems, verdict.remarks, verdict.last.sequence) == ([], [], 4)


def test_nobody_waits_for_the_disk_and_what_comes_meanwhile_is_made_safe_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(folder)
    at_disk, go_on = threading.Event(), threading.Event()
    replace, heads = Disk.replace, []

    def slow(disk: Disk, path: Path, content: bytes) -> None:
        at_disk.set()
        assert go_on.wait(20)
        heads.append(json.loads(content)["sequence"])
        replace(disk, path, content)

    monkeypatch.setattr(Disk, "replace", slow)
    log.record(acquired("vm-0"))
    assert at_disk.wait(20)
    for number in range(1, 101):
        log.record(acquired(f"vm-{number}"))
    go_on.set()
    log.close()
    assert heads == [2, 102]


def test_a_flood_that_the_disk_cannot_follow_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 5)
    log = AuditLog(folder)
    at_disk, go_on = threading.Event(), threading.Event()
    replace = Disk.replace

    def slow(disk: Disk, path: Path, content: bytes) -> None:
        at_disk.set()
        assert go_on.wait(20)
        replace(disk, path, content)

    monkeypatch.setattr(Disk, "replace", slow)
    log.record(acquired("vm-0"))
    assert at_disk.wait(20)
    for number in range(1, 21):
        log.record(acquired(f"vm-{number}"))
    go_on.set()
    log.flush()
    log.record(acquired("vm-last"))
    log.close()
    assert [record.get("vm") for record in records_of(folder)][-2:] == ["vm-5", "vm-last"]
    assert records_of(folder)[-1]["lost"] == 15


def test_a_failure_of_the_writer_lets_nobody_wait_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(folder)
    monkeypatch.setattr(log._journal, "write", lambda entries: entries.nothing)
    with caplog.at_level(logging.ERROR):
        log.record(acquired("vm-1"))
        log.flush()
        log.close()
    assert "the audit log is no longer written" in caplog.text


def test_a_new_day_has_a_new_file_and_a_clock_that_goes_back_has_not(folder: Path, clock: Clock) -> None:
    log = AuditLog(folder, clock=clock)
    for hours in (0, 11.999, 12, 12.5, -24, 36):
        clock.now = NOON + hours * 3600
        log.record(acquired(f"vm-{hours}"))
    log.close()
    held = {file.stem: len(file.read_bytes().splitlines()) for file in folder.glob("*.jsonl")}
    assert held == {"2026-01-01": 3, "2026-01-02": 4, "2026-01-03": 2}
    assert verify(folder).problems == []


@pytest.mark.parametrize("restarts", [False, True])
def test_old_days_go_and_the_chain_can_be_followed_all_the_same(folder: Path, clock: Clock, restarts: bool) -> None:
    log = AuditLog(folder, days=2, clock=clock)
    for _ in range(4):
        log.record(acquired("vm-1"))
        clock.now += DAY
        if restarts:
            log.close()
            log = AuditLog(folder, days=2, clock=clock)
    log.close()
    assert [file.stem for file in sorted(folder.glob("*.jsonl"))] == ["2026-01-03", "2026-01-04"]
    pruned = [record for record in records_of(folder) if record["event"] == "log_pruned"]
    assert [(one["day"], one["last"]) for one in pruned] == [("2026-01-01", 2), ("2026-01-02", 4)]
    verdict = verify(folder)
    assert (verdict.problems, verdict.first, verdict.last.sequence) == ([], 5, 10)


def test_when_fewer_days_are_kept_all_that_are_too_many_go_at_the_days_turn(folder: Path, clock: Clock) -> None:
    log = AuditLog(folder, days=0, clock=clock)
    for _ in range(5):
        log.record(acquired("vm-1"))
        clock.now += DAY
    log.flush()
    assert len(list(folder.glob("*.jsonl"))) == 5
    log.days = 1
    log.record(acquired("vm-1"))
    log.close()
    assert [file.stem for file in folder.glob("*.jsonl")] == ["2026-01-06"]
    assert verify(folder).problems == []


def test_a_supervisor_killed_between_two_files_that_go_leaves_a_log_that_is_right(
    folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(folder, days=0, clock=clock)
    for _ in range(4):
        log.record(acquired("vm-1"))
        clock.now += DAY
    log.days = 1
    unlinked: list[str] = []
    unlink = Path.unlink

    def once(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".jsonl":
            if unlinked:
                raise OSError(errno.EIO, "Input/output error")
            unlinked.append(path.name)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", once)
    log.record(acquired("vm-1"))
    log.close()
    assert unlinked == ["2026-01-01.jsonl"]
    assert len(list(folder.glob("*.jsonl"))) == 4
    assert verify(folder).problems == []


def test_a_damaged_file_is_not_removed(folder: Path, clock: Clock) -> None:
    log = AuditLog(folder, days=1, clock=clock)
    log.record(acquired("vm-1"))
    log.close()
    first = folder / "2026-01-01.jsonl"
    first.write_bytes(first.read_bytes() + b"garbage\n")
    clock.now += DAY
    log = AuditLog(folder, days=1, clock=clock)
    log.record(acquired("vm-2"))
    log.close()
    assert first.exists()
    assert verify(folder).problems


# What a crash leaves


def crashed(folder: Path, clock: Clock, keep: int) -> int:
    """Write a log as a crash in the middle of its last record leaves it; returns the record's length."""
    log = AuditLog(folder, clock=clock)
    log.record(acquired("vm-1"))
    log.flush()
    head = (folder / HEAD).read_bytes()
    log.record(acquired("vm-2"))
    log.close()
    (folder / HEAD).write_bytes(head)
    file = folder / "2026-01-01.jsonl"
    *_, last = file.read_bytes().splitlines(keepends=True)
    os.truncate(file, file.stat().st_size - len(last) + keep)
    return len(last)


@pytest.mark.parametrize("keep", [1, 40, -2, -1])
def test_half_a_record_is_cut_off_kept_and_told(folder: Path, clock: Clock, keep: int) -> None:
    length = crashed(folder, clock, 0)
    for file in folder.iterdir():
        file.unlink()
    crashed(folder, clock, keep % length)
    file = folder / "2026-01-01.jsonl"
    torn = file.read_bytes().split(b"\n")[-1]
    assert any("incomplete" in str(problem) for problem in verify(folder).problems)
    log = AuditLog(folder, clock=clock)
    log.record(acquired("vm-3"))
    log.close()
    repaired = records_of(folder)[-2]
    kept = f"torn-2026-01-01-{repaired['offset']}"
    assert repaired == repaired | {
        "event": "log_repaired", "file": file.name, "line": 3, "size": keep % length,
        "digest": hashlib.sha256(torn).hexdigest(), "kept": kept,
    }  # fmt: skip
    assert (folder / kept).read_bytes() == torn
    assert (folder / kept).stat().st_mode & 0o777 == 0o600
    verdict = verify(folder)
    assert verdict.problems == []
    assert "were cut off" in str(verdict.remarks[0])


def test_a_record_that_the_head_had_not_seen_yet_is_kept(folder: Path, clock: Clock) -> None:
    log = AuditLog(folder, clock=clock)
    log.record(acquired("vm-1"))
    log.flush()
    head = (folder / HEAD).read_bytes()
    log.record(acquired("vm-2"))
    log.close()
    (folder / HEAD).write_bytes(head)
    log = AuditLog(folder, clock=clock)
    log.record(acquired("vm-3"))
    log.close()
    assert names_of(folder) == ["day_began", *["lease_acquired"] * 3]
    assert verify(folder).problems == []


def test_a_file_that_was_only_just_made_is_gone_on_with(folder: Path, clock: Clock) -> None:
    log = AuditLog(folder, clock=clock)
    log.record(acquired("vm-1"))
    log.close()
    (folder / "2026-01-02.jsonl").touch(mode=0o600)
    clock.now += DAY
    log = AuditLog(folder, clock=clock)
    log.record(acquired("vm-2"))
    log.close()
    assert names_of(folder) == ["day_began", "lease_acquired"] * 2
    assert verify(folder).problems == []


def test_no_room_for_the_evidence_does_not_keep_a_log_from_being_repaired(
    folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed(folder, clock, 10)
    write = Disk.write

    def full(disk: Disk, path: Path, content: bytes) -> None:
        if "torn" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(disk, path, content)

    monkeypatch.setattr(Disk, "write", full)
    AuditLog(folder, clock=clock).close()
    assert "kept" not in records_of(folder)[-1]
    assert verify(folder).problems == []


# What no crash leaves


def damage_cut(folder: Path) -> None:
    file = folder / "2026-01-01.jsonl"
    *kept, _ = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(kept))


def damage_change(folder: Path) -> None:
    file = folder / "2026-01-01.jsonl"
    file.write_bytes(file.read_bytes().replace(b"vm-2", b"vm-9"))


def damage_head(folder: Path) -> None:
    (folder / HEAD).unlink()


def damage_garbage(folder: Path) -> None:
    file = folder / "2026-01-01.jsonl"
    file.write_bytes(file.read_bytes() + b"{}\n")


def damage_all(folder: Path) -> None:
    (folder / "2026-01-01.jsonl").unlink()


@pytest.mark.parametrize("damage", [damage_cut, damage_change, damage_head, damage_garbage, damage_all])
def test_what_was_done_to_the_end_is_not_healed_by_a_start(folder: Path, clock: Clock, damage: object) -> None:
    assert callable(damage)
    log = AuditLog(folder, clock=clock)
    for number in (1, 2):
        log.record(acquired(f"vm-{number}"))
    log.close()
    damage(folder)
    assert verify(folder).problems
    log = AuditLog(folder, clock=clock)
    log.record(acquired("vm-3"))
    log.close()
    assert "log_damaged" in names_of(folder)
    assert any("a supervisor found, when it started" in str(problem) for problem in verify(folder).problems)
