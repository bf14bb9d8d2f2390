"""What pages send becomes one magic, and never more than that."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.errors import RequestError
from agentvm_kernel.magics.call import Call, find_call
from agentvm_kernel.profiles import LIMIT_WORDS, Limits
from agentvm_kernel.server import lines
from agentvm_kernel.server.bodies import (
    AdoptBody,
    Body,
    ForkBody,
    LabelBody,
    LimitsBody,
    NetworkBody,
    PruneBody,
    SnapshotBody,
    ToBody,
    TravelBody,
    VMBody,
    WatchBody,
)
from agentvm_kernel.validation import parsed

MAGICS = ("snapshot", "rollback", "%fork", "adopt", "net", "limits", "timetravel", "vm")
ID = "0123456789ab"
BREAKS = ["\n", "\r", "\0", "\x0b", "\x0c", "\x1b", "\x1c", "\x85", "\u2028", "\u2029"]


def sent(model: type[Body] | type[LimitsBody], **fields: object) -> Body:
    return parsed(model, json.dumps(fields).encode())  # type: ignore[type-var, return-value]


def read(line: str) -> Call:
    call = find_call(line, MAGICS)
    assert call is not None, line
    return call


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_remark_is_refused_or_arrives_whole_in_one_snapshot(text: str) -> None:
    try:
        body = sent(SnapshotBody, label="here", text=text, now=True)
    except RequestError:
        assert any(not character.isprintable() for character in text)
        return
    line = lines.snapshot(body)  # type: ignore[arg-type]
    assert len(line.splitlines()) == 1
    call = read(line)
    assert call.alone
    arguments = call.read("", most=1, flags={"--now"}, texts={"-m"})
    assert arguments.texts.get("-m", "") == text.strip()
    assert (arguments.words, arguments.flags) == (["here"], {"--now"})


@pytest.mark.parametrize("text", ["--now", "-m", "' --now", '"', "#", "%rollback", "?", "\\", "a 'b' \"c\"", "$(id)"])
def test_a_remark_is_never_an_option(text: str) -> None:
    call = read(lines.snapshot(sent(SnapshotBody, text=text)))  # type: ignore[arg-type]
    arguments = call.read("", most=1, flags={"--now"}, texts={"-m"})
    assert (arguments.texts, arguments.words, arguments.flags) == ({"-m": text}, [], set())


def test_each_wish_is_its_magic() -> None:
    assert lines.snapshot(SnapshotBody()) == "%snapshot"
    assert lines.rollback(ToBody(to="~2")) == "%rollback ~2"
    assert lines.fork(ForkBody(count=3, code="%%time\nx", timeout=9)) == (
        "%%fork 3 --randomness diverge --timeout 9\n%%time\nx"
    )
    assert lines.adopt(AdoptBody(fork=7)) == "%adopt 7"
    assert lines.adopt(AdoptBody(fork=7, of=12)) == "%adopt 7 --of 12"
    assert lines.network(NetworkBody(allow=("B.example", "*.c.example:80,443"), deny=("a.example",))) == [
        "%net deny a.example",
        "%net allow b.example *.c.example:80,443",
    ]
    assert lines.travel(TravelBody(on=False)) == "%timetravel off"
    assert lines.machine(VMBody(do="stop")) == "%vm stop"
    assert (
        lines.limits(LimitsBody(cpu=1.5, lifetime=None, disk_iops=10)) == "%limits cpu=1.5 disk_iops=10 lifetime=none"
    )


def test_every_limit_has_its_word() -> None:
    assert set(LIMIT_WORDS) == set(Limits.model_fields)


def test_the_code_of_forks_stays_theirs() -> None:
    call = read(lines.fork(ForkBody(count=2, code="%rollback x\n%%fork 64\nprint(1)")))
    assert (call.name, call.words[0], call.body) == ("%fork", "2", "%rollback x\n%%fork 64\nprint(1)")


@pytest.mark.parametrize("broken", BREAKS)
def test_nothing_that_ends_a_line_gets_through(broken: str) -> None:
    for model, field in ((SnapshotBody, "label"), (SnapshotBody, "text"), (ToBody, "to"), (LabelBody, "label")):
        for text in (f"a{broken}%rollback", f"a{broken}", f"{broken}a"):
            with pytest.raises(RequestError):
                sent(model, **{field: text})
    for hosts in ([f"a.example{broken}%vm stop"], [f"a{broken}b.example"]):
        with pytest.raises(RequestError):
            sent(NetworkBody, allow=hosts)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (SnapshotBody, {"label": "two words"}),
        (SnapshotBody, {"label": "--now"}),
        (SnapshotBody, {"label": ID}),
        (SnapshotBody, {"label": 5}),
        (SnapshotBody, {"text": "x" * 2001}),
        (SnapshotBody, {"labels": "x"}),
        (SnapshotBody, {"now": "yes"}),
        (ToBody, {}),
        (ToBody, {"to": ""}),
        (ToBody, {"to": "--dry-run"}),
        (ToBody, {"to": "a b"}),
        (ToBody, {"to": "~1 x"}),
        (ForkBody, {"count": 0, "code": "1"}),
        (ForkBody, {"count": 65, "code": "1"}),
        (ForkBody, {"count": "2", "code": "1"}),
        (ForkBody, {"count": True, "code": "1"}),
        (ForkBody, {"count": 1, "code": "  \n"}),
        (ForkBody, {"count": 1, "code": "a\0b"}),
        (ForkBody, {"count": 1, "code": "1", "randomness": "diverge --timeout 1"}),
        (ForkBody, {"count": 1, "code": "1", "timeout": 0}),
        (AdoptBody, {"fork": "max"}),
        (AdoptBody, {"fork": 0}),
        (AdoptBody, {"fork": 1, "of": 0}),
        (AdoptBody, {"fork": 1, "of": "1"}),
        (NetworkBody, {}),
        (NetworkBody, {"allow": ["a.example b.example"]}),
        (NetworkBody, {"allow": ["127.0.0.1"]}),
        (NetworkBody, {"allow": "a.example"}),
        (NetworkBody, {"allow": ["a.example"] * 65}),
        (NetworkBody, {"allow": ["x" * 301]}),
        (LimitsBody, {}),
        (LimitsBody, {"cpu": "1 memory=1"}),
        (LimitsBody, {"memory": 5}),
        (LimitsBody, {"processes": None}),
        (LimitsBody, {"open_files": 1.5}),
        (TravelBody, {"on": 1}),
        (VMBody, {"do": "profile"}),
        (PruneBody, {"keep": -1}),
        (WatchBody, {"kernels": ["x"] * 65}),
        (WatchBody, {"kernels": ["x" * 65]}),
    ],
)
def test_what_is_not_valid_is_refused(model: type[Body], fields: dict[str, object]) -> None:
    with pytest.raises(RequestError) as refused:
        sent(model, **fields)
    assert refused.value.message
