"""A hostile notebook or archive is refused with one clear line, before anything runs; nothing of it is written."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from packed import Files, everything_below, files_of, signed, write
from report_bed import Bed, code, notebook, text

from agentvm_kernel import cli
from agentvm_kernel.image.store import ImageStore
from agentvm_kernel.kernel.limits import HeldLimits
from agentvm_kernel.magics.call import find_call
from agentvm_kernel.magics.registry import Registry
from agentvm_kernel.profiles import Limits, changed
from agentvm_kernel.report.signature import fingerprint, own_key
from agentvm_kernel.report.writing import Wanted, write_report
from agentvm_kernel.reproduce.permits import Permits, PermittedMagics, Refusal, RefusedError
from agentvm_kernel.reproduce.source import open_source


def nothing_is_built(*_: object) -> None:
    raise AssertionError("what is refused lets nothing be built")


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    made = Bed(tmp_path)
    for name, value in made.paths.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ImageStore, "build", nothing_is_built)
    path = tmp_path / "n.ipynb"
    made.begin(notebook=str(path))
    made.run("a", text("1"))
    made.snapshot("5a5a5a", "good")
    made.run("b", text("2"))
    made.end()
    notebook(path, code("a", text("1")), code("b", text("2")))
    return made


@pytest.fixture
def packed(bed: Bed, tmp_path: Path) -> Path:
    (written,) = write_report(tmp_path / "n.ipynb", None, Wanted(packed=True), bed.paths).files
    return written


def agentvm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["agentvm", "reproduce", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def with_record(file: Path, bed: Bed, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the record of an archive, and sign it again with the user's own key."""
    files = files_of(file)
    record = json.loads(files["record.json"])
    change(record)
    files["record.json"] = json.dumps(record).encode()
    write(file, signed(files, own_key(bed.paths.state)))


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    """Have it refused; return in what words."""
    before = everything_below(folder)
    status, out, err = agentvm(monkeypatch, capsys, *words)
    assert (status, out) == (2, "")
    assert everything_below(folder) == before
    lines = err.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("agentvm reproduce: ") for line in lines)
    assert "Traceback" not in err
    return err


def _session(record: dict[str, Any]) -> dict[str, Any]:
    return record["sessions"][0]  # type: ignore[no-any-return]


RECORDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda r: r.update(format=2),
    "no format": lambda r: r.pop("format"),
    "sessions that are a text": lambda r: r.update(sessions="x"),
    "many sessions": lambda r: r.update(sessions=r["sessions"] * 201),
    "many runs": lambda r: _session(r).update(runs=_session(r)["runs"] * 15_000),
    "a cell behind the last": lambda r: _session(r)["runs"][0].update(cell=99),
    "a cell before the first": lambda r: _session(r)["runs"][-1].update(cell=-1),
    "a cell that is a text": lambda r: _session(r)["runs"][0].update(cell="../../x"),
    "a digest of other code": lambda r: _session(r)["runs"][0].update(digest="0" * 64),
    "a digest that is none": lambda r: _session(r)["runs"][0].update(digest="../../etc/passwd"),
    "a label that is a call": lambda r: _session(r)["snapshots"][0].update(label="x\n!rm -rf ~"),
    "an id that is a path": lambda r: _session(r)["snapshots"][0].update(id="../../x"),
    "an image that is a path": lambda r: _session(r).update(image="../../x"),
    "a flavour that is a path": lambda r: r.update(images={"1" * 64: {"flavour": "../x", "packages": {}}}),
    "packages that are numbers": lambda r: r.update(images={"1" * 64: {"packages": {"python_packages": {"a": 1}}}}),
    "nine machines": lambda r: r.update(sessions=r["sessions"] * 9),
    "snapshots and ways back without end": lambda r: _session(r).update(
        snapshots=[{"id": f"{number:012x}", "run": 1} for number in range(20_000)],
        returns=[{"to": f"{number:012x}", "run": 1} for number in range(20_000)],
        runs=_session(r)["runs"] + [_session(r)["runs"][0] | {"cell": None}] * 19_000,
    ),
    "steps without end": lambda r: r.update(
        sessions=[{**_session(r), "runs": [_session(r)["runs"][0]] * 10_001}]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_says_what_none_says_is_refused_though_its_signature_is_right(
    packed: Path, bed: Bed, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    with_record(packed, bed, RECORDS[name])  # type: ignore[arg-type]
    refused(monkeypatch, capsys, tmp_path, str(packed))


ARCHIVES: dict[str, Callable[[Files], Files]] = {
    "a changed notebook": lambda files: files | {"n.ipynb": files["n.ipynb"].replace(b"1", b"2")},
    "a changed record": lambda files: files | {"record.json": files["record.json"].replace(b"completed", b"failed")},
    "a forged verdict": lambda files: files | {"verdict.json": b'{"same": true}'},
    "a name that leads out": lambda files: files | {"../../n.ipynb": files["n.ipynb"]},
    "an absolute name": lambda files: files | {"/tmp/x.ipynb": files["n.ipynb"]},
    "no record": lambda files: {name: one for name, one in files.items() if name != "record.json"},
    "no signature": lambda files: {name: one for name, one in files.items() if name != "signature.json"},
    "a deep record": lambda files: signed(files | {"record.json": b"[" * 5000 + b"]" * 5000}, KEY),
    "a deep notebook": lambda files: signed(files | {"n.ipynb": b'{"cells":' + b"[" * 5000 + b"]" * 5000 + b"}"}, KEY),
    "a huge notebook": lambda files: signed(files | {"n.ipynb": b" " * (130 << 20)}, KEY),
    "a notebook that is none": lambda files: signed(files | {"n.ipynb": b"{}"}, KEY),
}
KEY = Ed25519PrivateKey.generate()


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_not_as_it_was_made_is_refused(
    packed: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(packed, ARCHIVES[name](files_of(packed)))
    refused(monkeypatch, capsys, tmp_path, str(packed))


def test_a_link_in_an_archive_is_refused(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = files_of(packed)
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16 if name == "n.ipynb" else 0
            archive.writestr(info, b"/etc/passwd" if name == "n.ipynb" else content)
    refused(monkeypatch, capsys, tmp_path, str(packed))


def test_a_wrong_archive_beside_a_notebook_is_told_and_not_passed_over(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(packed, ARCHIVES["a changed record"](files_of(packed)))
    assert "changed after" in refused(monkeypatch, capsys, tmp_path, "n.ipynb")


def test_an_archive_of_other_cells_beside_a_notebook_is_not_its_record(packed: Path, bed: Bed, tmp_path: Path) -> None:
    assert "n.report.zip" in open_source(tmp_path / "n.ipynb", bed.paths).told[0]
    notebook(tmp_path / "n.ipynb", code("a", text("1")), code("b + 1", text("2")))
    assert "audit log" in open_source(tmp_path / "n.ipynb", bed.paths).told[0]


def test_a_report_of_another_key_is_told_and_refused_where_a_key_is_named(
    packed: Path, bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(packed, signed(files_of(packed), KEY))
    told = " ".join(open_source(packed, bed.paths).told)
    assert fingerprint(KEY.public_key().public_bytes_raw()) in told
    assert "not yours" in told
    own = fingerprint(own_key(bed.paths.state).public_key().public_bytes_raw())
    assert "another key" in refused(monkeypatch, capsys, tmp_path, str(packed), "--key", own)
    shutil.copy("n.ipynb", "other.ipynb")
    assert "no signed report" in refused(monkeypatch, capsys, tmp_path, "other.ipynb", "--key", own)


NOTEBOOKS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"print(1)",
    "too deep": b'{"nbformat":4,"cells":' + b"[" * 200 + b"]" * 200 + b"}",
    "too many parts": b'{"nbformat":4,"cells":[' + b"[]," * 2_000_001 + b"[]]}",
    "cells without end": json.dumps(
        {"nbformat": 4, "nbformat_minor": 5, "metadata": {},
         "cells": [{"cell_type": "raw", "source": "", "metadata": {}, "id": "a"}] * 10_001}
    ).encode(),
    "a version that is a text": b'{"nbformat":4,"nbformat_minor":"5","metadata":{},"cells":[]}',
    "a version without end": b'{"nbformat":4,"nbformat_minor":' + b"9" * 4000 + b',"metadata":{},"cells":[3]}',
    "a number without end": b'{"nbformat":4,"nbformat_minor":' + b"9" * 5000 + b',"metadata":{},"cells":[]}',
    "a version that is less than none": b'{"nbformat":4,"nbformat_minor":-1,"metadata":{},"cells":[]}',
    "a script in the metadata": b'{"nbformat":4,"nbformat_minor":5,"metadata":"<script>","cells":[]}',
}  # fmt: skip


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_no_notebook_is_refused(
    bed: Bed, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.ipynb").write_bytes(NOTEBOOKS[name])
    refused(monkeypatch, capsys, tmp_path, "bad.ipynb")


def test_what_is_no_file_is_refused_and_not_waited_for(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.ipynb")
    (tmp_path / "folder.ipynb").mkdir()
    for name in ("pipe.ipynb", "folder.ipynb", "missing.ipynb", "/dev/zero"):
        assert "no file" in refused(monkeypatch, capsys, tmp_path, name)


def test_a_place_that_is_taken_is_left_as_it_is(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "n.reproduced").symlink_to(tmp_path / "elsewhere")
    assert "is there already" in refused(monkeypatch, capsys, tmp_path, "n.ipynb")


def test_an_image_of_the_metadata_that_is_none_is_refused(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    notebook(tmp_path / "m.ipynb", code("z"), agentvm={"image": "../../x", "flavour": "../../y", "profile": ["a"]})
    assert "not known here" in refused(monkeypatch, capsys, tmp_path, "m.ipynb")


# What a notebook may do


PERMITS = Permits(files=Path("/nowhere"), allow=("a.example",))
PERMITTED = (
    "%vm", "%vm status", "%vm restart", "%limits", "%snapshot x", "%rollback x", "%undo", "%timetravel on",
    "%snapshots", "%%fork 2\n1", "%adopt 1", "%monitor", "%audit", "%net", "%net log", "%net off",
    "%net deny a.example", "%net allow a.example", "%net mode isolated", "# net: allow a.example\n1", "%report?",
    "%net inspect a.example",
)  # fmt: skip
DENIED = (
    "%vm profile intensive", "%vm stop", "%vm console", "%vm facts on",
    "%net allow evil.example", "%net allow a.example evil.example", "%net allow *", "%net mode record-only",
    "%net mode filtered", "%net record demo", "%net replay demo", "%net replay ../demo", "%report", "%report --zip",
    "%report /etc/x.ipynb", "# net: allow evil.example\n1", "%%time\n# net: allow evil.example\n1",
    "# c\n\n  %net allow evil.example", "%net allow a.example:22",
)  # fmt: skip


@pytest.mark.parametrize("source", PERMITTED)
def test_what_changes_only_the_notebooks_own_machine_is_permitted(source: str) -> None:
    assert not isinstance(PermittedMagics(PERMITS).find(source), Refusal)


@pytest.mark.parametrize("source", DENIED)
async def test_what_changes_the_host_or_lets_more_out_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    magic = PermittedMagics(PERMITS).find(source)
    assert magic is not None
    with pytest.raises(RefusedError, match="not carried out"):
        await magic.run(SimpleNamespace())  # type: ignore[arg-type]


MODES = ("isolated", "filtered", "record-only")


@pytest.mark.parametrize("most", MODES)
@pytest.mark.parametrize("wanted", [*MODES, "open", "Filtered"])
def test_a_network_is_opened_no_more_than_the_users_own_configuration_has_it(most: str, wanted: str) -> None:
    permits = PERMITS.model_copy(update={"mode": most})
    is_refused = isinstance(PermittedMagics(permits).find(f"%net mode {wanted}"), Refusal)
    assert is_refused == (wanted not in MODES or MODES.index(wanted) > MODES.index(most))


class Limited:
    """A VM whose limits can be set.

    Args:
        given: The profile's.
    """

    def __init__(self, given: Limits) -> None:
        self.limits = HeldLimits()
        self.limits.given = self.limits.now = given
        self.guest = None

    async def set_limits(self, changes: dict[str, float | None]) -> None:
        self.limits.changed(changes, changed(self.limits.now, changes))


async def limited(machine: Limited, source: str) -> None:
    permits = PERMITS.model_copy(update={"limits": ("timeout=60s", "processes=100")})
    magic = PermittedMagics(permits).find(source)
    assert magic is not None
    await magic.run(SimpleNamespace(machine=machine))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words", ["timeout=301", "timeout=9h", "processes=3000", "disk_rate=none", "timeout=60 output=257MiB"]
)
async def test_a_limit_is_raised_no_further_than_the_users_own_profile_has_it(words: str) -> None:
    machine = Limited(Limits())
    with pytest.raises(RefusedError, match="not carried out"):
        await limited(machine, f"%limits {words}")
    assert machine.limits.now == Limits()


async def test_a_limit_is_changed_within_the_profile_and_goes_back_to_the_recorded_one() -> None:
    machine = Limited(Limits())
    await limited(machine, "%limits timeout=200 open_files=100 lifetime=8h")
    now = machine.limits.now
    assert (now.cell_deadline, now.open_files, now.lifetime) == (200, 100, 8 * 3600)
    await limited(machine, "%limits reset")
    now = machine.limits.now
    assert (now.cell_deadline, now.processes, now.open_files, now.lifetime) == (60, 100, 4096, None)


def test_every_magic_that_there_is_is_decided_about() -> None:
    """A new one is refused until somebody has thought about it."""
    from agentvm_kernel.magics.registry import _FAMILIES
    from agentvm_kernel.reproduce.permits import _SHOWS

    assert set(_FAMILIES) == set(_SHOWS) | {"net", "push", "pull", "report"} | (set(_FAMILIES) & {"workspace"})


async def test_a_push_reads_nothing_of_the_host_but_what_was_named(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    permits = Permits(files=tmp_path / "files", inputs={"data.csv": tmp_path / "data.csv"})
    for source in (f"%push {secret}", "%push ~/.ssh/id_rsa", "%push ../data.csv", "%push ./data.csv", "%push"):
        magic = PermittedMagics(permits).find(source)
        assert magic is not None
        with pytest.raises(RefusedError, match="not carried out"):
            await magic.run(SimpleNamespace(machine=None))  # type: ignore[arg-type]


def test_a_replay_is_of_the_recording_beside_the_notebook_and_recording_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.cassette.jsonl").write_text("{}")
    for source in ("%net replay demo", "%net record demo"):
        magic = PermittedMagics(PERMITS).find(source)
        assert magic.call.words == ("replay", "demo")  # type: ignore[union-attr]


def test_the_kernel_and_the_path_know_the_same_magics() -> None:
    for source in (*PERMITTED, *DENIED):
        bound = Registry().find(source)
        call = find_call(source, {"net", "vm", "limits", "report"})
        assert call is None or (bound is not None and bound.call == call)


def test_hosts_are_told_before_anything_runs_and_only_where_they_are_granted(
    bed: Bed, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_record(packed, bed, lambda r: _session(r).update(network="filtered; allow b.example; allow **.a.example:80"))
    (tmp_path / "out").mkdir()
    words = (str(packed), "--out", str(tmp_path / "out"))
    told = ["Allowed as recorded, besides what the configuration allows:", "**.a.example:80", "b.example"]
    status, _, err = agentvm(monkeypatch, capsys, *words, "--allow-recorded")
    assert (status, err.splitlines()[:3]) == (2, told)
    assert "is there already" in err.splitlines()[3]
    assert "example" not in refused(monkeypatch, capsys, tmp_path, *words)
    with_record(packed, bed, lambda r: _session(r).update(network="filtered"))
    assert "allows:\nnothing\n" in agentvm(monkeypatch, capsys, *words, "--allow-recorded")[2]
