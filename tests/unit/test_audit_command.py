"""``agentvm audit``: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from agentvm_kernel import cli
from agentvm_kernel.errors import AuditError
from agentvm_kernel.observe import audit_command
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.observe.chain import digest_of
from agentvm_kernel.observe.events.execution import ExecutionStarted
from agentvm_kernel.observe.events.snapshot import SnapshotRestored
from agentvm_kernel.observe.events.vm import LeaseAcquired, VMStopped
from agentvm_kernel.observe.reading import Place, Wanted, follow, newest, records

NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z
DAY = 86_400.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of three days."""
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    now = NOON
    log = AuditLog(tmp_path / "audit", clock=lambda: now)
    log.record(LeaseAcquired(vm="vm-1", notebook="a.ipynb", accelerator="tcg"))
    now += DAY
    log.record(LeaseAcquired(vm="vm-2", notebook="b.ipynb", owner="\x1b[2Jme"))
    log.record(ExecutionStarted(vm="vm-2", notebook="b.ipynb", run=3, digest="d" * 64))
    now += DAY
    log.record(SnapshotRestored(vm="vm-3", notebook="a.ipynb", snapshot="s", before="vm-1"))
    log.record(VMStopped(vm="vm-1", reason="it was ended"))
    log.close()
    return tmp_path / "audit"


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, ["audit", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def numbers(*arguments: str) -> list[int]:
    return [json.loads(line)["sequence"] for line in run(*arguments, "--json").stdout.splitlines()]


def test_show_prints_a_line_for_each_event_and_nothing_that_steers_a_terminal(folder: Path) -> None:
    lines = run("show").stdout.splitlines()
    assert len(lines) == 8
    assert lines[1].split() == ["2", *lines[1].split()[1:3], "lease_acquired", "vm-1", "a.ipynb", "accelerator=tcg"]
    assert "\x1b" not in run("show").stdout
    assert "digest=dddddddddddd" in lines[4]


def test_what_json_shows_are_the_records_themselves(folder: Path) -> None:
    lines = b"".join(path.read_bytes() for path in sorted(folder.glob("*.jsonl"))).splitlines()
    assert [json.loads(line) for line in run("show", "--json").stdout.splitlines()] == list(map(json.loads, lines))


def test_events_can_be_chosen(folder: Path) -> None:
    assert numbers("show") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert numbers("show", "--event", "lease_acquired") == [2, 4]
    assert numbers("show", "--event", "lease_acquired", "--event", "vm_stopped") == [2, 4, 8]
    assert numbers("show", "--vm", "vm-1") == [2, 7, 8]
    assert numbers("show", "--notebook", "b.ipynb") == [4, 5]
    assert numbers("show", "--since", "2026-01-02") == [3, 4, 5, 6, 7, 8]
    assert numbers("show", "--until", "2026-01-02T12:00") == [1, 2]
    assert numbers("show", "--since", "2026-01-02T11:59", "--until", "2026-01-02T12:00:01") == [3, 4, 5]
    assert numbers("show", "--since", "90m") == []


@pytest.mark.parametrize("arguments", [("--event", "nothing"), ("--since", "yesterday"), ("--until", "1y")])
def test_a_wrong_call_says_what_is_valid(folder: Path, arguments: tuple[str, str]) -> None:
    with pytest.raises(AuditError) as caught:
        run("show", *arguments)
    assert "2026-01-31" in caught.value.hint or "lease_acquired" in caught.value.hint


def test_a_line_that_is_no_record_is_told_and_the_others_are_shown(folder: Path) -> None:
    file = folder / "2026-01-02.jsonl"
    file.write_bytes(file.read_bytes().replace(b'{"sequence":4', b'{"sequence":x'))
    shown = run("show", "--json")
    assert [json.loads(line)["sequence"] for line in shown.stdout.splitlines()] == [1, 2, 3, 5, 6, 7, 8]
    assert "2026-01-02.jsonl:2: this is no record" in shown.stderr


def test_tail_shows_the_newest_over_files(folder: Path) -> None:
    assert numbers("tail", "-n", "4") == [5, 6, 7, 8]
    assert numbers("tail", "-n", "0") == []
    assert numbers("tail") == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_comes_is_followed_into_the_next_day(folder: Path) -> None:
    events = follow(folder, Wanted(vm="vm-9"))
    now = NOON + 2 * DAY
    log = AuditLog(folder, clock=lambda: now)
    for vm in ("vm-8", "vm-9"):
        log.record(VMStopped(vm=vm, reason="first"))
    log.flush()
    assert "first" in str(next(events))
    now += DAY
    log.record(VMStopped(vm="vm-9", reason="second"))
    log.close()
    assert "second" in str(next(events))


def test_tail_follows_until_it_is_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path, wanted: Wanted) -> Iterator[Place]:
        yield from records(folder, wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr(audit_command, "follow", interrupted)
    result = run("tail", "-f", "-n", "2", "--json")
    assert result.exit_code == 0
    assert [json.loads(line)["sequence"] for line in result.stdout.splitlines()] == [7, 8]


def test_verify_is_green_and_prints_the_digest_to_note_elsewhere(folder: Path) -> None:
    last = (folder / "2026-01-03.jsonl").read_bytes().splitlines()[-1]
    result = run("verify")
    assert result.exit_code == 0
    assert f"8 records, 1 to 8; the last has the digest {digest_of(last)}." in result.stdout
    assert run("verify", "--against", digest_of(last)).exit_code == 0
    assert run("verify", "--against", "a" * 64).exit_code == 1
    with pytest.raises(AuditError):
        run("verify", "--against", "abc")


def test_verify_names_the_line_and_ends_with_1(folder: Path) -> None:
    file = folder / "2026-01-02.jsonl"
    file.write_bytes(file.read_bytes().replace(b"vm-2", b"vm-5", 1))
    result = run("verify")
    assert result.exit_code == 1
    assert "2026-01-02.jsonl:2: this is not the record" in result.stdout
    verdict = json.loads(run("verify", "--json").stdout)
    assert (verdict["ok"], verdict["problems"][0]["line"], verdict["last"]["sequence"]) == (False, 2, 8)


def test_a_log_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(tmp_path))
    assert "There are no records." in run("verify").stdout
    assert run("show").stdout == run("tail").stdout == ""


def test_export_writes_all_lines_as_they_are_for_its_user_alone(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.jsonl"
    assert run("export", str(target)).exit_code == 0
    assert target.read_bytes() == b"".join(path.read_bytes() for path in sorted(folder.glob("*.jsonl")))
    assert target.stat().st_mode & 0o777 == 0o600
    with pytest.raises(AuditError, match="exists already"):
        run("export", str(target))


def test_the_newest_of_a_notebook_are_found_however_much_there_is_of_others(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, clock=lambda: NOON)
    for number in range(3000):
        log.record(VMStopped(vm=f"vm-{number}"))
        if number % 1000 == 0:
            log.record(LeaseAcquired(vm=f"vm-{number}", notebook="n"))
    log.close()
    assert [one.event.fields()["vm"] for one in newest(tmp_path, Wanted(notebook="n"), 2)] == ["vm-1000", "vm-2000"]
