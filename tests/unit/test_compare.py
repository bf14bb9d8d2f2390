"""What two snapshots differ in: listed by the probe, believed by nobody, bounded whatever a guest says."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
import types
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_guest import LocalGuest, local_guest

from agentvm_kernel.compare import comparer as module
from agentvm_kernel.compare import inventory, probe
from agentvm_kernel.compare.comparer import Comparer
from agentvm_kernel.compare.comparison import MOST, compare
from agentvm_kernel.compare.inventory import Inventory, cell, read
from agentvm_kernel.errors import ApiError, CompareError, NoSnapshotError
from agentvm_kernel.kernel.forkpoint import ForkEvent
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted
from agentvm_kernel.supervisor.messages import Granted
from agentvm_kernel.supervisor.snapshot_messages import SnapshotInfo, SnapshotTree

MARK = "0011:"
EMPTY: dict[str, Any] = {"packages": [], "processes": [], "variables": [], "cut": []}


def printed(head: object = EMPTY, files: bytes = b"") -> str:
    """What a probe prints."""
    return packed(json.dumps(head).encode() + b"\n" + files)


def packed(content: bytes) -> str:
    return f"\n{MARK}{base64.b64encode(zlib.compress(content)).decode()}\n\n{MARK}.\n"


def holding(files: bytes = b"", **head: object) -> Inventory:
    return read(printed(EMPTY | head, files), MARK)


def listed(namespace: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {name: (kind, summary, digest) for name, kind, summary, digest in probe.list_variables(namespace)}


# What the probe lists


def test_the_cell_lists_what_this_host_has(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    exec("number = 41 + 1", namespace)
    out = io.StringIO()
    with redirect_stdout(out):
        print("something else", end="")
        exec(cell(MARK), namespace)
    found = read(out.getvalue(), MARK)
    assert found.variables["number"][:2] == ("int", "42")
    assert found.packages["python", "pydantic"]
    assert any(pid == os.getpid() for pid, _ in found.processes)
    assert set(namespace) == {"__builtins__", "number", "_agentvm"}


def test_files_are_listed_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = subprocess.Popen

    def here(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return everything([sys.executable, "-c", "print(end='1 2.5 /a\\0' * 3)"], **options)

    monkeypatch.setattr(subprocess, "Popen", here)
    assert probe.list_files() == (b"1 2.5 /a\0" * 3, False)
    assert probe.list_files(20) == (b"1 2.5 /a\0" * 2, True)


def test_packages_are_those_of_python_and_of_debian_that_are_installed(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for name in ("a_b-1.0.dist-info", "old-2-py3.13.egg-info", "module.py", "noversion.dist-info"):
        (first / name).mkdir(parents=True)
    (second / "a_b-0.9.dist-info").mkdir(parents=True)
    status = tmp_path / "status"
    status.write_text(
        "Package: curl\nStatus: install ok installed\nVersion: 8.1-2\nDescription: x\n Package: no\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
    )
    found = list(probe.list_packages([str(first), str(second), str(tmp_path / "none")], str(status)))
    assert found == [["python", "a_b", "1.0"], ["python", "old", "2"], ["debian", "curl", "8.1-2"]]


def test_processes_have_a_command(tmp_path: Path) -> None:
    for pid, command, rest in (
        (7, b"sleep\x0010\0", b"7 (a) b) S " + b"1 " * 18 + b"55 0"),
        (8, b"", b"8 (kworker) S"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_bytes(command)
        (tmp_path / str(pid) / "stat").write_bytes(rest)
    (tmp_path / "9").mkdir()
    assert list(probe.list_processes(str(tmp_path))) == [[7, 55, "sleep 10"]]


def test_variables_are_summed_up_without_what_texts_hold() -> None:
    def double(x: int) -> int:
        return 2 * x

    namespace = {
        "secret": "hunter2", "data": [1, [2, "x"]], "big": 1 << 4000, "small": 7, "none": None, "f": double,
        "_hidden": 1, "raw": b"abc", "mod": json, 5: "no name", "long" * 100: 1,
    }  # fmt: skip
    found = listed(namespace)
    assert {name: value[:2] for name, value in found.items()} == {
        "secret": ("str", "7 characters"), "data": ("list", "2 items"), "big": ("int", "4001 bits"),
        "small": ("int", "7"), "none": ("NoneType", "None"), "f": ("function", ""), "raw": ("bytes", "3 bytes"),
        "mod": ("module", ""), ("long" * 100)[:200]: ("int", "1"),
    }  # fmt: skip
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1", "2"), ("1", "True"), ("'a'", "'b'"), ("[1, [2]]", "[1, [3]]"), ("{'a': 1}", "{'a': 2}"), ("(1,)", "[1]"),
        ("b'a'", "bytearray(b'a')"), ("lambda: 1", "lambda: 2"), ("object()", "object()"), ("['a', 'b']", "['ab', '']"),
        ("numpy.zeros(3)", "numpy.ones(3)"), ("numpy.zeros(3)", "numpy.zeros((3, 1))"), ("-1", "255"),
        ("pandas.DataFrame({'a': [1]})", "pandas.DataFrame({'a': [2]})"),
    ],
)  # fmt: skip
def test_a_digest_tells_values_apart_and_equal_ones_not(before: str, after: str) -> None:
    scope = {name: pytest.importorskip(name) for name in ("numpy", "pandas") if name in before}
    kept = [eval(text, scope) for text in (before, after, before)]
    digests = [listed({"x": value})["x"] for value in kept]
    assert digests[0] != digests[1]
    if before != "object()":
        assert digests[0] == digests[2]


def test_no_method_of_a_users_object_is_called_and_cycles_end() -> None:
    calls: list[str] = []

    class Meta(type):
        def __getattribute__(cls, name: str) -> object:
            calls.append(name)
            return super().__getattribute__(name)

    class Trap(metaclass=Meta):
        def __getattribute__(self, name: str) -> object:
            calls.append(name)
            return 1

        def __len__(self) -> int:
            calls.append("len")
            return 1

        def __repr__(self) -> str:
            calls.append("repr")
            return "x"

        def __eq__(self, other: object) -> bool:
            calls.append("eq")
            return True

        def __hash__(self) -> int:
            return 1

    trap, cycle = Trap(), []  # type: ignore[var-annotated]
    cycle.append(cycle)
    calls.clear()
    found = listed({"trap": trap, "cycle": cycle, "holds": [trap], "cls": Trap})
    assert not calls
    assert found["trap"][0].endswith("Trap")
    assert found["cycle"][:2] == ("list", "1 items")


def test_what_ipython_itself_has_put_there_is_no_variable_unless_it_was_replaced() -> None:
    class Shell:
        user_ns_hidden: ClassVar[dict[str, object]] = {"In": 1, "exit": 2}

        def get_ipython(self) -> Shell:
            return self

    shell = Shell()
    hidden = {"In": Shell.user_ns_hidden["In"], "exit": "mine", "get_ipython": shell.get_ipython}
    Shell.user_ns_hidden["get_ipython"] = hidden["get_ipython"]
    assert isinstance(hidden["get_ipython"], types.MethodType)
    assert list(listed(hidden)) == ["exit"]


# What is believed


@pytest.mark.parametrize(
    "text",
    [
        "", "nothing", f"{MARK}.",
        printed().replace(f"{MARK}.", f"{MARK}x"), printed().partition(f"{MARK}.")[0],
        f"{MARK}AAAA\n", f"{MARK}?\n{MARK}.\n", f"{MARK}AAAA\n{MARK}.\n",
        packed(b"{}\n"), packed(b"[]\n"), packed(b"[" * 100_000), packed(b'{"a":' * 50_000), packed(b"{"),
        packed(b'{"x": [' + b"[]," * 200_000 + b"1]}\n"), packed(b" " * (5 << 20) + b"{}\n"),
        packed(b"\0" * (40 << 20)),
        f"\n{MARK}{'A' * (17 << 20)}\n{MARK}.\n",
        printed(EMPTY | {"more": []}), printed(EMPTY | {"cut": ["everything"]}), printed(EMPTY | {"packages": None}),
        printed(EMPTY | {"packages": [["python", "a"]]}), printed(EMPTY | {"packages": [["npm", "a", "1"]]}),
        printed(EMPTY | {"packages": [["python", "a" * 201, "1"]]}),
        printed(EMPTY | {"packages": [["python", 1, "1"]]}),
        printed(EMPTY | {"packages": [["python", "\ud800", "1"]]}), printed(EMPTY | {"packages": ["abc"]}),
        printed(EMPTY | {"processes": [[-1, 1, "a"]]}), printed(EMPTY | {"processes": [[1 << 63, 1, "a"]]}),
        printed(EMPTY | {"processes": [["1", 1, "a"]]}), printed(EMPTY | {"processes": [[True, 1, "a"]]}),
        printed(EMPTY | {"variables": [["a", "b", "c", "d", "e"]]}), printed(EMPTY | {"variables": {"a": 1}}),
        printed(EMPTY | {"variables": [["a", "b", "c", "d"]] * 2001}),
    ],
    ids=len,
)  # fmt: skip
def test_what_no_probe_prints_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(CompareError) as caught:
        read(text, MARK)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "text",
    [
        f"\n{MARK}{'A' * (17 << 20)}\n{MARK}.\n",
        printed(files=b"\0" * (29 << 20)),
        printed(EMPTY | {"variables": [["a", "b", "c", "d"]] * 30_000}),
        printed(EMPTY | {"variables": ["a" * (5 << 20)]}),
    ],
    ids=len,
)
def test_what_would_take_much_memory_is_refused_before_it_does(text: str) -> None:
    with pytest.raises(CompareError, match="too long"):
        read(text, MARK)


@pytest.mark.parametrize("line", ["ab\n", f"{MARK}ab\n"])
def test_very_many_lines_are_not_listed(line: str) -> None:
    text = line * ((8 << 20) // len(line))
    tracemalloc.start()
    try:
        with pytest.raises(CompareError, match="not complete"):
            read(text, MARK)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_whatever_a_guest_says_is_read_or_refused(files: bytes, value: object) -> None:
    for head in (value, {"packages": value}, EMPTY | {"variables": [value]}, EMPTY):
        try:
            found = read(printed(head, files), MARK)
        except CompareError:
            assert head is not EMPTY
        else:
            found.files()


def test_what_other_threads_print_meanwhile_is_left_out_and_a_foreign_mark_too() -> None:
    text = f"hello{printed()}".replace("\n\n", "\nnoise\nffff:AAAA\n")
    assert read(text, MARK) == holding()


def test_what_is_no_file_is_left_out_and_the_clones_own_identity_too() -> None:
    bad = [b"x 1.5 /x", b"1 /x", b"1 1.5 x", b"-1 1.5 /x", b"", b"1 1.5 /etc/hostname", b"1 1.5 /" + b"x" * 5000]
    listed = b"\0".join([*bad, b"5 1.5 /home/a\nb c", b"1 1.5 /no end"])
    assert holding(listed).files() == {b"/home/a\nb c": (5, b"1.5")}


def test_more_files_than_are_looked_at_are_called_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "MOST_FILES", 2)
    found = holding(b"1 1.5 /a\0001 1.5 /b\0001 1.5 /c\0")
    assert found.cut == {"files"}
    assert set(found.files()) == {b"/a", b"/b"}


# What differs


def test_everything_that_differs_is_told_and_nothing_else() -> None:
    before = holding(
        b"1 1.5 /same\0001 1.5 /gone\0001 1.5 /touched\0002 1.5 /grown\0",
        packages=[["python", "a", "1"], ["python", "b", "1"], ["debian", "a", "1"]],
        processes=[[1, 1, "init"], [7, 5, "sleep 10"]],
        variables=[["x", "int", "1", "d1"], ["y", "list", "2 items", "d2"], ["z", "str", "", "d3"]],
    )
    after = holding(
        b"1 1.5 /same\0001 2.5 /touched\0003 2.5 /grown\0009 2.5 /new\0",
        packages=[["python", "a", "2"], ["debian", "a", "1"], ["debian", "b", "1"]],
        processes=[[1, 1, "init"], [7, 6, "sleep 10"]],
        variables=[["x", "int", "1", "d1"], ["y", "list", "2 items", "d4"], ["w", "int", "3", "d5"]],
    )
    found = compare("a" * 12, before, "b" * 12, after).model_dump(mode="json")
    assert found == {
        "a": "a" * 12, "b": "b" * 12, "claimed": True,
        "files": {
            "added": [{"path": "/new", "size": 9}], "removed": [{"path": "/gone", "size": 1}],
            "changed": [
                {"path": "/grown", "size_before": 2, "size_after": 3},
                {"path": "/touched", "size_before": 1, "size_after": 1},
            ],
            "count": 4, "truncated": False,
        },
        "packages": {
            "added": [{"source": "debian", "name": "b", "version": "1"}],
            "removed": [{"source": "python", "name": "b", "version": "1"}],
            "changed": [{"source": "python", "name": "a", "before": "1", "after": "2"}],
            "count": 3, "truncated": False,
        },
        "processes": {
            "added": ["sleep 10 (pid 7)"], "removed": ["sleep 10 (pid 7)"], "changed": [], "count": 2,
            "truncated": False,
        },
        "variables": {
            "added": [{"name": "w", "type": "int", "summary": "3"}],
            "removed": [{"name": "z", "type": "str", "summary": ""}],
            "changed": [{"name": "y", "before": "list, 2 items", "after": "list, 2 items"}],
            "count": 3, "truncated": False,
        },
    }  # fmt: skip


def test_texts_of_guests_are_made_harmless() -> None:
    evil = "a\n\x1b[31m\u202e\u200b<b>"
    after = holding(
        f"1 1.5 /{evil}\0".encode() + b"1 1.5 /\xff\0" + b"1 1.5 /" + b"x" * 4000 + b"\0",
        packages=[["python", evil, evil]], processes=[[1, 1, evil]], variables=[[evil, evil, evil, evil]],
    )  # fmt: skip
    found = compare("a" * 12, holding(), "b" * 12, after)
    assert {one.name for one in found.variables.added} == {"a��[31m��<b>"}
    assert all(character.isprintable() for text in _texts(found.model_dump()) for character in text)
    assert max(map(len, _texts(found.model_dump()))) < 500
    assert found.files.count == 3


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, tuple):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def test_lists_are_bounded_and_say_how_much_there_is() -> None:
    after = holding(b"".join(b"1 1.5 /%d\0" % number for number in range(MOST + 5)))
    found = compare("a" * 12, holding(), "b" * 12, after).files
    assert (len(found.added), found.count, found.truncated) == (MOST, MOST + 5, True)


@pytest.mark.parametrize("part", ["files", "packages", "processes", "variables"])
def test_what_may_only_have_been_cut_off_is_not_called_missing(part: str) -> None:
    files = b"1 1.5 /a\0001 1.5 /b\0"
    full: dict[str, Any] = {
        "packages": [["python", "a", "1"]], "processes": [[1, 1, "a"]], "variables": [["a", "int", "1", "d"]],
    }  # fmt: skip
    whole, cut = holding(files, **full), holding(cut=[part])
    for before, after in ((whole, cut), (cut, whole)):
        found = getattr(compare("a" * 12, before, "b" * 12, after), part)
        assert (found.added, found.removed, found.truncated) == ((), (), True)


# How it is had


def info(name: str, **values: object) -> SnapshotInfo:
    return SnapshotInfo.model_validate(
        {
            "id": name, "parent": "", "label": "", "text": "", "kind": "manual", "created": 1.0, "size": 1,
            "written": 1, "cell": Cell(), "busy": False, "pause_ms": 1.0,
        }
        | values
    )  # fmt: skip


class GuestLender:
    """Lends the same guest for every snapshot; it is what it was made to be when it is asked."""

    def __init__(self, guest: LocalGuest) -> None:
        self.guest = guest
        self.lent: list[str] = []
        self.open = 0
        self.refusal: ForkEnded | None = None

    async def snapshots(self, lease: str) -> SnapshotTree:
        taken = (info("a" * 12), info("b" * 12), info("c" * 12, busy=True))
        return SnapshotTree(notebook=lease, current="", snapshots=taken, quota=1, used=0)

    @asynccontextmanager
    async def clone(self, lease: str, snapshot: str) -> AsyncIterator[AsyncIterator[ForkEvent]]:
        self.lent.append(snapshot)
        self.open += 1
        try:
            await self.guest.identify(len(self.lent) + 1)
            yield self._events()
        finally:
            self.open -= 1

    async def _events(self) -> AsyncIterator[ForkEvent]:
        if self.refusal:
            yield self.refusal
            return
        guest = self.guest
        yield ForkGranted(
            fork=1001,
            granted=Granted(
                vm="local", epoch=guest.epoch, key=guest.key.hex(), link=guest.endpoint, image="0" * 64,
                flavour="minimal", profile="standard", vcpus=1, memory_mib=1, disk_gb=1, accelerator="tcg",
                pid=guest.pid, acquire_ms=1.0,
            ),
        )  # fmt: skip
        await module.asyncio.Event().wait()


@pytest.fixture
async def lender() -> AsyncIterator[GuestLender]:
    async with local_guest() as guest:
        yield GuestLender(guest)


async def test_a_real_ipykernel_is_asked_once_for_each_snapshot(lender: GuestLender) -> None:
    comparer = Comparer(lender)
    found = await comparer.compare("l", "a" * 12, "b" * 12)
    assert (found.a, found.b, found.claimed) == ("a" * 12, "b" * 12, True)
    assert (found.variables.count, found.packages.count) == (0, 0)
    await comparer.compare("l", "b" * 12, "a" * 12)
    assert lender.lent == ["a" * 12, "b" * 12]
    assert lender.open == 0


@pytest.mark.parametrize(
    ("a", "error", "says"), [("f" * 12, NoSnapshotError, "no snapshot"), ("c" * 12, CompareError, "running cell")]
)
async def test_what_cannot_be_compared_costs_no_clone(
    lender: GuestLender, a: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await Comparer(lender).compare("l", a, "b" * 12)
    assert not lender.lent


async def test_a_guest_that_does_not_answer_or_dies_or_cannot_be_had_is_told(
    lender: GuestLender, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparer = Comparer(lender)
    monkeypatch.setattr(module, "cell", lambda _: "while True: pass")
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    with pytest.raises(CompareError, match="not done within"):
        await comparer.compare("l", "a" * 12, "b" * 12)
    monkeypatch.setattr(module, "cell", lambda _: "raise ValueError('\x1b[31m' + 'x' * 1000)")
    with pytest.raises(CompareError, match="ValueError") as caught:
        await comparer.compare("l", "a" * 12, "b" * 12)
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 400
    monkeypatch.setattr(module, "cell", lambda _: "print('nothing')")
    with pytest.raises(CompareError, match="not complete"):
        await comparer.compare("l", "a" * 12, "b" * 12)
    lender.refusal = ForkEnded(fork=0, code="quota", reason="No.", hint="Do.")
    with pytest.raises(ApiError) as refused:
        await comparer.compare("l", "a" * 12, "b" * 12)
    assert (refused.value.code, refused.value.hint) == ("quota", "Do.")
    lender.refusal = None
    monkeypatch.setattr(module, "_SECONDS", 30)
    monkeypatch.setattr(module, "cell", lambda _: f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    with pytest.raises(CompareError, match="SIGKILL"):
        await comparer.compare("l", "a" * 12, "b" * 12)
    assert lender.open == 0
