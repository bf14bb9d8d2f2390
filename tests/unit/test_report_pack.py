"""A packed report is whole, signed and described; one that was changed, or is none, is refused and touches nothing."""

from __future__ import annotations

import base64
import io
import json
import os
import resource
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packed import Files, everything_below, files_of, write
from report_bed import Bed, code, notebook, text

from agentvm_kernel.errors import HostError, ReportError
from agentvm_kernel.report.signature import KEY, fingerprint, own_key
from agentvm_kernel.report.verify import examine
from agentvm_kernel.report.writing import Wanted, write_report


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


@pytest.fixture
def packed(bed: Bed, tmp_path: Path) -> Path:
    """A report as it was packed."""
    path = tmp_path / "n.ipynb"
    bed.begin(notebook=str(path))
    bed.run("a", text("1"), count=1)
    bed.snapshot("s1")
    bed.run("b", error="ValueError")
    bed.back("s1", "vm-2")
    bed.end()
    notebook(path, code("a", text("1"), agentvm={"run": 1}, execution={"x": "1"}, tags=["t"]), code("b"))
    (written,) = write_report(path, None, Wanted(packed=True), bed.paths).files
    return written


def refusal(file: Path, bed: Bed, key: str = "") -> str:
    """Why a report is refused; nothing on the disk may have changed."""
    before = everything_below(file.parent)
    with pytest.raises(ReportError) as caught:
        examine(file, bed.paths.state, key)
    assert everything_below(file.parent) == before
    return caught.value.message


def test_a_report_of_ones_own_is_recognised(packed: Path, bed: Bed) -> None:
    finding = examine(packed, bed.paths.state)
    assert finding.is_good
    assert "your own key" in finding.lines[1]
    assert set(files_of(packed)) == {
        "n.ipynb", "report.html", "record.json", "ro-crate-metadata.json", "manifest.json", "signature.json"
    }  # fmt: skip


def test_a_report_of_somebody_else_is_good_only_for_who_names_the_key(packed: Path, bed: Bed, tmp_path: Path) -> None:
    name = fingerprint(own_key(bed.paths.state).public_key().public_bytes_raw())
    elsewhere = tmp_path / "elsewhere"
    finding = examine(packed, elsewhere)
    assert not finding.is_good
    assert name in finding.lines[1]
    assert not elsewhere.exists()
    assert examine(packed, elsewhere, name).is_good
    other = fingerprint(own_key(elsewhere).public_key().public_bytes_raw())
    assert not examine(packed, bed.paths.state, other).is_good


def test_the_key_is_the_users_alone_and_stays_the_same(bed: Bed) -> None:
    first, path = own_key(bed.paths.state), bed.paths.state / KEY
    assert path.stat().st_mode & 0o777 == 0o600
    assert own_key(bed.paths.state).private_bytes_raw() == first.private_bytes_raw()
    assert [one.name for one in bed.paths.state.iterdir() if one.name.startswith(f".{KEY}")] == []
    path.chmod(0o644)
    with pytest.raises(HostError, match="open to others"):
        own_key(bed.paths.state)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ReportError, match="is no key"):
        own_key(bed.paths.state)


@pytest.mark.parametrize("name", ["n.ipynb", "report.html", "record.json", "ro-crate-metadata.json"])
def test_a_file_that_was_changed_is_found(packed: Path, bed: Bed, name: str) -> None:
    files = files_of(packed)
    files[name] = files[name].replace(b"a", b"b", 1) if name == "report.html" else files[name] + b" "
    write(packed, files)
    assert f"'{name}' was changed" in refusal(packed, bed)


def test_a_verdict_that_was_forged_with_all_its_digests_is_found(packed: Path, bed: Bed) -> None:
    files = files_of(packed)
    manifest = json.loads(files["manifest.json"])
    files["report.html"] = files["report.html"].replace(b"1 failed", b"0 failed")
    import hashlib

    manifest["files"]["report.html"]["sha256"] = hashlib.sha256(files["report.html"]).hexdigest()
    files["manifest.json"] = json.dumps(manifest).encode()
    write(packed, files)
    assert "signature is wrong" in refusal(packed, bed)


def test_a_signature_by_another_key_under_the_own_ones_name_is_wrong(packed: Path, bed: Bed, tmp_path: Path) -> None:
    files = files_of(packed)
    signature = json.loads(files["signature.json"])
    other = own_key(tmp_path / "other")
    signature["signature"] = base64.b64encode(other.sign(files["manifest.json"])).decode()
    write(packed, files | {"signature.json": json.dumps(signature).encode()})
    assert "signature is wrong" in refusal(packed, bed)
    signature["key"] = base64.b64encode(other.public_key().public_bytes_raw()).decode()
    write(packed, files | {"signature.json": json.dumps(signature).encode()})
    assert "signature is wrong" in refusal(packed, bed)  # what is signed for another purpose is no report's signature


def renamed(files: Files, name: str) -> Files:
    return {name if one == "n.ipynb" else one: content for one, content in files.items()}


DEEP = b'{"cells": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HOSTILE: dict[str, tuple[Callable[[Files], Files], str]] = {
    "traversal": (lambda files: files | {"../../evil.ipynb": b"{}"}, "do not belong"),
    "absolute": (lambda files: renamed(files, "/etc/evil.ipynb"), "do not belong"),
    "backslashes": (lambda files: renamed(files, "..\\evil.ipynb"), "do not belong"),
    "hidden": (lambda files: renamed(files, ".n.ipynb"), "do not belong"),
    "a name that steers terminals": (lambda files: renamed(files, "n\x1b[2J.ipynb"), "do not belong"),
    "a name that reads otherwise": (lambda files: renamed(files, "\u202egpj.ipynb"), "do not belong"),
    "a name of two lines": (lambda files: renamed(files, "a\nb.ipynb"), "do not belong"),
    "an endless name": (lambda files: renamed(files, f"{'x' * 60_000}.ipynb"), "do not belong"),
    "names that differ in case": (lambda files: files | {"N.ipynb": files["n.ipynb"]}, "do not belong"),
    "a page that differs in case": (lambda files: files | {"Report.html": b"<h1>"}, "do not belong"),
    "names alike to Unicode": (lambda files: files | {"\uff4e.ipynb": files["n.ipynb"]}, "do not belong"),
    "a folder": (lambda files: files | {"n/": b""}, "do not belong"),
    "another file": (lambda files: files | {"run.sh": b"rm"}, "do not belong"),
    "a file that was not signed": (lambda files: files | {"report.pdf": b"%PDF-"}, "other files"),
    "no signature": (lambda files: {n: c for n, c in files.items() if n != "signature.json"}, "no signature.json"),
    "no manifest": (lambda files: {n: c for n, c in files.items() if n != "manifest.json"}, "no manifest.json"),
    "no page": (lambda files: {n: c for n, c in files.items() if n != "report.html"}, "other files"),
    "deep notebook": (lambda files: files | {"n.ipynb": DEEP}, "too deeply"),
    "deep description": (lambda files: files | {"ro-crate-metadata.json": DEEP}, "too deeply"),
    "deep manifest": (lambda files: files | {"manifest.json": DEEP}, "too large"),
    "manifest of something else": (lambda files: files | {"manifest.json": b'{"a": 1}'}, "nothing that it could"),
    "no notebook": (lambda files: files | {"n.ipynb": b'{"cells": 3}'}, "no notebook"),
    "no JSON": (lambda files: files | {"record.json": b"\xff\xfe"}, "no JSON"),
    "another algorithm": (
        lambda files: files | {"signature.json": files["signature.json"].replace(b"ed25519", b"none")}, "nothing that"
    ),
    "a key that is none": (
        lambda files: files | {"signature.json": b'{"algorithm": "ed25519", "key": "AAAA", "signature": "AAAA"}'},
        "signature is wrong",
    ),
    "no base64": (
        lambda files: files | {"signature.json": b'{"algorithm": "ed25519", "key": "!", "signature": "!"}'},
        "no signature",
    ),
    "newer format": (
        lambda files: files | {"manifest.json": files["manifest.json"].replace(b'"format": 1', b'"format": 2')}, "newer"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_report_is_refused_and_touches_nothing(packed: Path, bed: Bed, name: str) -> None:
    change, wanted = HOSTILE[name]
    write(packed, change(files_of(packed)))
    assert wanted in refusal(packed, bed)


def test_a_bomb_is_not_unpacked_to_its_end(packed: Path, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentvm_kernel.report import verify

    monkeypatch.setattr(verify, "MAX_BYTES", 1 << 20)
    write(packed, files_of(packed) | {"report.html": b"\0" * (8 << 20)})
    assert "larger than 1 MiB" in refusal(packed, bed)


def test_small_bombs_are_not_unpacked_all_together(packed: Path, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentvm_kernel.report import verify

    monkeypatch.setattr(verify, "_MOST_UNPACKED", 3 << 20)
    write(packed, files_of(packed) | dict.fromkeys(("report.html", "report.pdf"), b"\0" * (2 << 20)))
    assert "larger than 3 MiB" in refusal(packed, bed)


def test_a_long_list_of_files_is_not_read(packed: Path, bed: Bed) -> None:
    entry = b"PK\1\2" + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a"
    listed = entry * 1_000_000
    packed.write_bytes(listed + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, len(listed), 0, 0))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_used() + (300 << 20), limit[1]))
    try:
        assert "do not belong" in refusal(packed, bed)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def _used() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _local(name: str, content: bytes) -> bytes:
    """A file as it stands in an archive, without the entry in the archive's list."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr(name, content)
        return written.getvalue()


@pytest.mark.parametrize("where", ["before", "behind", "within", "beside a name"])
def test_what_other_programs_would_find_in_it_is_refused(packed: Path, bed: Bed, where: str) -> None:
    whole, hidden = packed.read_bytes(), _local("report.html", b"<h1>All is well</h1>")
    if where == "before":
        packed.write_bytes(hidden + whole)
    elif where == "behind":
        packed.write_bytes(whole[:-2] + struct.pack("<H", len(hidden)) + hidden)
    elif where == "within":
        files = list(files_of(packed).items())
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in files:
                assert archive.fp is not None
                archive.fp.write(hidden)
                archive.start_dir = archive.fp.tell()
                archive.writestr(name, content)
    else:
        with zipfile.ZipFile(packed) as archive:
            infos = [(info, archive.read(info)) for info in archive.infolist()]
        with zipfile.ZipFile(packed, "w") as archive:
            for info, content in infos:
                archive.writestr(info, content)
                # Some programs believe this name rather than the file's own.
                info.extra = struct.pack("<HHBI", 0x7075, 14, 1, zlib.crc32(info.filename.encode())) + b"evil.html"
    assert files_of(packed)["report.html"] != b"<h1>All is well</h1>"
    assert "do not belong" in refusal(packed, bed)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_file_that_is_packed_in_an_unusual_way_is_refused(
    packed: Path, bed: Bed, method: int, is_whole: bool
) -> None:
    files = files_of(packed)
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    content = bytearray(packed.read_bytes())
    if not is_whole:
        content[50:70] = b"\xff" * 20
    packed.write_bytes(bytes(content))
    assert "do not belong" in refusal(packed, bed)


@pytest.mark.parametrize(
    ("at", "form", "value"), [(6, "<H", 8), (8, "<H", 0), (14, "<I", 5), (18, "<I", 5), (22, "<I", 5), (26, "<H", 5)]
)
def test_a_file_of_which_the_archive_says_two_things_is_refused(
    packed: Path, bed: Bed, at: int, form: str, value: int
) -> None:
    """What reads an archive from its beginning believes what stands there, and would find another file."""
    content = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        offset = archive.getinfo("record.json").header_offset
    struct.pack_into(form, content, offset + at, value)
    packed.write_bytes(bytes(content))
    assert "That is no report" in refusal(packed, bed)


def test_an_archive_whose_end_says_something_else_is_refused(packed: Path, bed: Bed) -> None:
    whole = packed.read_bytes()
    for at in (4, 6):
        content = bytearray(whole)
        content[len(whole) - 22 + at] = 1
        packed.write_bytes(bytes(content))
        assert "do not belong" in refusal(packed, bed)


def test_a_file_with_a_comment_is_refused(packed: Path, bed: Bed) -> None:
    with zipfile.ZipFile(packed) as archive:
        infos = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(packed, "w") as archive:
        for info, content in infos:
            archive.writestr(info, content)
            info.comment = b"all is well"
    assert "do not belong" in refusal(packed, bed)


def test_a_name_that_stands_twice_and_what_is_no_archive_are_refused(packed: Path, bed: Bed) -> None:
    whole = packed.read_bytes()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("report.html", "<script>")
    assert "do not belong" in refusal(packed, bed)
    for content in (b"", b"PK", whole[: len(whole) // 2], os.urandom(1000)):
        packed.write_bytes(content)
        assert "no archive" in refusal(packed, bed)
    packed.unlink()
    assert "cannot be read" in refusal(packed, bed)


def test_content_that_does_not_fit_its_checksum_is_refused(packed: Path, bed: Bed) -> None:
    content = bytearray(packed.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = archive.getinfo("report.html")
    content[info.header_offset + 60] ^= 0xFF
    packed.write_bytes(bytes(content))
    assert "no archive" in refusal(packed, bed)


def test_what_was_written_into_the_notebook_is_left_out_on_request(packed: Path, bed: Bed, tmp_path: Path) -> None:
    assert json.loads(files_of(packed)["n.ipynb"])["cells"][0]["metadata"]["agentvm"] == {"run": 1}
    (stripped,) = write_report(tmp_path / "n.ipynb", None, Wanted(packed=True, strip=True), bed.paths).files
    assert json.loads(files_of(stripped)["n.ipynb"])["cells"][0]["metadata"] == {"tags": ["t"]}
    assert examine(stripped, bed.paths.state).is_good


def test_nobody_is_named_but_on_request(packed: Path, bed: Bed, tmp_path: Path) -> None:
    for content in files_of(packed).values():
        assert str(tmp_path).encode() not in content
        assert b'"Person"' not in content
    (named,) = write_report(tmp_path / "n.ipynb", None, Wanted(packed=True, author="A. Author"), bed.paths).files
    graph = json.loads(files_of(named)["ro-crate-metadata.json"])["@graph"]
    assert [one["name"] for one in graph if one["@type"] == "Person"] == ["A. Author"]


def test_the_record_has_the_path_that_was_taken(packed: Path) -> None:
    record = json.loads(files_of(packed)["record.json"])
    (session,) = record["sessions"]
    assert [(run["run"], run["cell"], run["on_the_way"]) for run in session["runs"]] == [(1, 0, True), (2, 1, False)]
    assert [(one["from"], one["to"]) for one in session["returns"]] == [("s1", "s1")]
    assert [one["standing"] for one in record["cells"]] == ["as recorded", "as recorded"]


def entity(graph: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [one for one in graph if one["@id"] == name]
    return found


def test_the_description_has_what_the_profiles_demand(packed: Path) -> None:
    """What RO-Crate 1.1, Process Run Crate, Workflow Run Crate 0.5 and Workflow RO-Crate 1.0 say MUST be there."""
    files = files_of(packed)
    crate = json.loads(files["ro-crate-metadata.json"])
    graph = crate["@graph"]
    assert crate["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    descriptor, root = entity(graph, "ro-crate-metadata.json"), entity(graph, "./")
    assert (descriptor["@type"], descriptor["about"]) == ("CreativeWork", {"@id": "./"})
    assert {one["@id"] for one in descriptor["conformsTo"]} == {
        "https://w3id.org/ro/crate/1.1", "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
    }  # fmt: skip
    assert root["@type"] == "Dataset"
    assert all(root[name] for name in ("name", "description", "datePublished", "license"))
    profiles = {one["@id"] for one in root["conformsTo"]}
    assert {f"https://w3id.org/ro/wfrun/{kind}/0.5" for kind in ("process", "workflow")} < profiles
    assert all(entity(graph, name)["@type"] == "CreativeWork" for name in profiles)
    assert {one["@id"] for one in root["hasPart"]} == set(files) - {
        "manifest.json", "signature.json", "ro-crate-metadata.json"
    }  # fmt: skip
    workflow = entity(graph, root["mainEntity"]["@id"])
    assert workflow["@id"] == "n.ipynb"
    assert set(workflow["@type"]) == {"File", "SoftwareSourceCode", "ComputationalWorkflow"}
    assert entity(graph, workflow["programmingLanguage"]["@id"])["@type"] == "ComputerLanguage"
    action = entity(graph, root["mentions"]["@id"])
    assert (action["@type"], action["instrument"]) == ("CreateAction", {"@id": "n.ipynb"})
    assert action["startTime"] < action["endTime"]
    for one in graph:
        assert isinstance(one["@id"], str)
        assert one["@type"]
        if "File" in one["@type"]:
            assert int(one["contentSize"]) == len(files[one["@id"]])
    assert len({one["@id"] for one in graph}) == len(graph)
