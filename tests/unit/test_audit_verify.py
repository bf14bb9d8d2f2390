"""Whatever is done to the files of an audit log is found, and where."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.observe.chain import HEAD, digest_of
from agentvm_kernel.observe.events.vm import LeaseAcquired
from agentvm_kernel.observe.verify import Verdict, verify

Files = dict[str, bytes]

FIRST, SECOND = "2026-01-03.jsonl", "2026-01-04.jsonl"


@cache
def sound() -> Files:
    """A log of four days, of which two are pruned."""
    now = 1_767_268_800.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "audit"
        log = AuditLog(folder, days=2, clock=lambda: now)
        for day in range(4):
            for number in range(4):
                log.record(LeaseAcquired(vm=f"vm-{day}{number}", notebook="n.ipynb"))
            now += 86_400
        log.close()
        assert verify(folder).problems == []
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def examined(files: Files) -> Verdict:
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        return verify(Path(name))


def lines_of(files: Files, name: str) -> list[bytes]:
    return files[name].splitlines(keepends=True)


def said(lines: list[bytes], name: str = FIRST) -> list[str]:
    return [str(problem) for problem in examined(sound() | {name: b"".join(lines)}).problems]


def test_the_log_is_sound() -> None:
    verdict = examined(sound())
    assert (verdict.problems, verdict.remarks, verdict.first) == ([], [], 11)
    assert list(sound()) == [FIRST, SECOND, HEAD]


def test_a_changed_record_is_named() -> None:
    lines = lines_of(sound(), FIRST)
    lines[2] = lines[2].replace(b"vm-20", b"vm-99")
    assert said(lines) == [f"{FIRST}:3: this is not the record that record 14, the next, has seen"]


def test_the_last_record_of_a_file_is_seen_by_the_next_file() -> None:
    lines = lines_of(sound(), FIRST)
    lines[-1] = lines[-1].replace(b"n.ipynb", b"m.ipynb")
    assert said(lines)[0].startswith(f"{FIRST}:{len(lines)}: this is not the record")


def test_the_last_record_of_all_is_seen_by_the_head() -> None:
    lines = lines_of(sound(), SECOND)
    lines[-1] = lines[-1].replace(b"n.ipynb", b"m.ipynb")
    assert said(lines, SECOND) == [f"{SECOND}:{len(lines)}: record 22 is not the one that {HEAD} has seen"]


def test_a_missing_record_is_named() -> None:
    lines = lines_of(sound(), FIRST)
    del lines[2]
    assert said(lines) == [f"{FIRST}:3: before this, record 13 is missing"]
    del lines[2]
    assert said(lines) == [f"{FIRST}:3: before this, record 13 to 14 is missing"]


def test_records_in_another_order_are_named() -> None:
    lines = lines_of(sound(), FIRST)
    lines[2], lines[3] = lines[3], lines[2]
    assert f"{FIRST}:4: record 13 stands behind record 14" in said(lines)


def test_a_record_that_stands_twice_is_named() -> None:
    lines = lines_of(sound(), FIRST)
    lines.insert(3, lines[2])
    assert said(lines) == [f"{FIRST}:4: record 13 stands here once more"]


def test_what_is_no_record_is_named() -> None:
    lines = lines_of(sound(), FIRST)
    lines[2] = b"{" + lines[2]
    assert said(lines) == [f"{FIRST}:3: this is no record: it is no JSON"]
    lines[2] = lines[2][1:].replace(b'"vm":', b'"wm":')
    assert said(lines)[0].startswith(f"{FIRST}:3: this is no record: lease_acquired.")


def test_records_missing_at_the_end_are_named() -> None:
    assert said(lines_of(sound(), SECOND)[:-2], SECOND) == [f"{SECOND}: records 21 to 22 are missing at the end"]


def test_a_missing_file_is_named() -> None:
    files = dict(sound())
    del files[FIRST]
    assert [str(one) for one in examined(files).problems] == [
        f"{SECOND}:1: what was before record 17 is missing, and was not pruned"
    ]
    files = dict(sound())
    del files[SECOND]
    assert str(examined(files).problems[-1]) == f"{FIRST}: records 17 to 22 are missing at the end"


def test_half_a_record_is_named() -> None:
    lines = lines_of(sound(), SECOND)
    lines[-1] = lines[-1][:50]
    assert f"{SECOND}:{len(lines)}: the record is incomplete" in said(lines, SECOND)[0]


def test_only_a_log_with_a_record_of_that_digest_passes_against_it(tmp_path: Path) -> None:
    for file, content in sound().items():
        (tmp_path / file).write_bytes(content)
    for line in lines_of(sound(), FIRST):
        assert verify(tmp_path, digest_of(line[:-1])).problems == []
    assert "no record has the digest" in str(verify(tmp_path, "a" * 64).problems[0])


def test_no_log_is_no_problem(tmp_path: Path) -> None:
    assert verify(tmp_path / "nothing").problems == []


@st.composite
def edited(draw: st.DrawFn) -> Files:
    """The log after one edit of any kind."""
    files = dict(sound())
    name = draw(st.sampled_from(sorted(files)))
    content = files[name]
    place = draw(st.integers(0, len(content) - 1))
    some = draw(st.binary(min_size=1, max_size=8))
    lines = lines_of(files, name)
    one, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
    swapped = list(lines)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    contents = [
        content[:place] + some + content[place + len(some) :],
        content[:place] + some + content[place:],
        content[:place] + content[place + len(some) :],
        content[:place],
        b"".join(lines[:one] + lines[one + 1 :]),
        b"".join([*lines[:one], lines[other], *lines[one:]]),
        b"".join(swapped),
    ]
    renamed = f"2026-01-0{draw(st.integers(1, 9))}.jsonl"
    without = {key: value for key, value in files.items() if key != name}
    changes: list[Files] = [files | {name: changed} for changed in contents]
    changes += [without, without | {renamed: content}, files | {FIRST: files[SECOND], SECOND: files[FIRST]}]
    files = draw(st.sampled_from(changes))
    assume(files != sound())
    return files


@given(edited())
def test_any_edit_is_found(files: Files) -> None:
    assert examined(files).problems


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    for file, content in sound().items():
        (tmp_path / file).write_bytes(content)
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_an_old_file_that_goes_meanwhile_is_no_problem(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor prunes while the log is examined: it is examined anew."""
    from agentvm_kernel.observe import verify as module

    look, looks = module.look, []

    def look_late(folder: Path) -> object:
        extent = look(folder)
        looks.append(extent)
        if len(looks) == 1:
            log = AuditLog(folder, days=2, clock=lambda: 1_767_268_800.0 + 4 * 86_400)
            log.record(LeaseAcquired(vm="vm-new"))
            log.close()
        return extent

    monkeypatch.setattr(module, "look", look_late)
    verdict = verify(copy)
    assert (verdict.problems, len(looks)) == ([], 2)
