"""What is written down about connections, and who is told."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from agentvm_kernel.egress import log as log_module
from agentvm_kernel.egress.log import ConnectionLog
from agentvm_kernel.egress.record import Connection


def connection(number: int, session: str = "a", **facts: object) -> Connection:
    whole = {"id": number, "time": 1000.0, "session": session, "vm": "v", "cell": "", "name": "x.example",
             "address": "", "port": 443, "verdict": "allowed", "rule": "", "reason": ""}  # fmt: skip
    return Connection.model_validate(whole | facts)


def test_a_connection_is_one_line_of_a_private_file(tmp_path: Path) -> None:
    log = ConnectionLog(tmp_path / "connections")
    log.put(connection(1))
    log.put(connection(1, duration=2.5, bytes_sent=7))
    log.close()
    (file,) = (tmp_path / "connections").iterdir()
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["bytes_sent"] == 7
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    (kept,) = log.of("a")
    assert kept.duration == 2.5


def test_sessions_are_told_apart_and_forgotten(tmp_path: Path) -> None:
    log = ConnectionLog(tmp_path)
    log.put(connection(1, "a", duration=1.0))
    log.put(connection(2, "b"))
    assert [one.id for one in log.of("a")] == [1]
    assert log.of("a", since=1002.0) == []
    assert [one.id for one in log.of("b", since=9e9)] == [2]
    assert [one.id for one in log.all()] == [1, 2]
    log.forget("a")
    assert log.of("a") == []
    log.close()


def test_memory_is_bounded(tmp_path: Path) -> None:
    log = ConnectionLog(tmp_path)
    for number in range(3000):
        log.put(connection(number))
    assert [one.id for one in log.of("a")] == list(range(2000, 3000))


@pytest.mark.parametrize(("few", "many"), [("allowed", "refused"), ("refused", "allowed")])
def test_a_flood_does_not_hide_what_came_before_it(tmp_path: Path, few: str, many: str) -> None:
    log = ConnectionLog(tmp_path)
    log.put(connection(0, verdict=few, duration=1.0))
    for number in range(1, 3000):
        log.put(connection(number, verdict=many))
    assert [one.id for one in log.of("a")] == [0, *range(2001, 3000)]


def test_each_verdict_is_told_once(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    log = ConnectionLog(tmp_path, lambda one: told.append((one.id, one.verdict)))
    for duration in (None, 1.0):
        log.put(connection(1, duration=duration))
    log.put(connection(1, verdict="refused", duration=1.0))
    assert told == [(1, "allowed"), (1, "refused")]
    log.close()


async def test_listeners_hear_live_and_slow_ones_lose_what_is_counted(tmp_path: Path) -> None:
    log = ConnectionLog(tmp_path)
    with log.subscribe("a") as one, log.subscribe() as every:
        waiting = asyncio.ensure_future(anext(one))
        await asyncio.sleep(0)
        log.put(connection(1, "b"))
        log.put(connection(2, "a"))
        assert (await waiting).id == 2
        for number in range(3, 1000):
            log.put(connection(number))
        assert (await anext(every)).id == 1
        assert every.lost > 500
    log.put(connection(1001))
    assert one.lost == every.lost - 1 or one.lost < every.lost


def test_a_full_day_or_disk_stops_the_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_module, "_DAY_BYTES", 1000)
    log = ConnectionLog(tmp_path)
    for number in range(20):
        log.put(connection(number, duration=1.0))
    log.close()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size <= 1000
    assert log.lost + len(file.read_text().splitlines()) == 20
    assert len(log.of("a")) == 20
    assert len(caplog.records) == 1


def test_files_are_kept_for_some_days_only(tmp_path: Path) -> None:
    for day in range(1, 32):
        (tmp_path / f"2020-01-{day:02}.jsonl").touch()
    log = ConnectionLog(tmp_path)
    log.put(connection(1, duration=1.0))
    log.close()
    assert len(list(tmp_path.iterdir())) == 30


def test_a_folder_that_cannot_be_written_costs_only_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = ConnectionLog(tmp_path / "file" / "connections")
    log.put(connection(1, duration=1.0))
    assert log.lost == 1
    assert len(log.of("a")) == 1
