"""How a call of a host magic is read."""

from __future__ import annotations

import pytest

from agentvm_kernel.magics import Registry
from agentvm_kernel.magics.call import Call, UsageError, find_call
from agentvm_kernel.magics.registry import _FAMILIES

NAMES = {"snapshot", "vm", "%fork"}


def words(code: str) -> tuple[str, ...]:
    call = find_call(code, NAMES)
    assert call is not None
    return call.words


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("%snapshot a -m all is well", ("a", "-m", "all", "is", "well")),
        ("%snapshot -m 'all is # well'  # so far", ("-m", "all is # well")),
        ('%snapshot -m "it\'s fine"', ("-m", "it's fine")),
        ("%snapshot -m it's fine", ("-m", "it's", "fine")),
        (r"%snapshot -m C:\new", ("-m", r"C:\new")),
        ("%snapshot a\0b", ("a\0b",)),
    ],
)
def test_quotes_hold_words_together_and_a_lone_apostrophe_is_one(code: str, expected: tuple[str, ...]) -> None:
    assert words(code) == expected


def test_a_cell_magic_has_the_lines_below_as_its_body() -> None:
    call = find_call("# compare\n\n%%fork 3 --timeout 5\n\nx = 1\n  # not a comment of ours\nprint(x)\n", NAMES)
    assert call is not None
    assert (call.name, call.words) == ("%fork", ("3", "--timeout", "5"))
    assert call.body == "\nx = 1\n  # not a comment of ours\nprint(x)"


@pytest.mark.parametrize("code", ["%fork 3", "%%vm", "%%%fork", "%%fork2", "x\n%%fork 3"])
def test_a_line_magic_is_no_cell_magic_nor_the_other_way_round(code: str) -> None:
    assert find_call(code, NAMES) is None


def test_options_stand_anywhere() -> None:
    call = Call("snapshot", ("-m", "so", "far", "--now", "label"), False, True)
    read = call.read("…", most=1, flags={"--now"}, texts={"-m"})
    assert (read.words, read.flags, read.texts) == (["label"], {"--now"}, {"-m": "so far"})


@pytest.mark.parametrize(
    "said", [("a", "b"), ("--other",), ("-m",), ("-m", "--now"), ("-m", "x", "--now", "a", "b"), ("-x",)]
)
def test_what_cannot_be_read_says_what_is_valid(said: tuple[str, ...]) -> None:
    call = Call("snapshot", said, False, True)
    with pytest.raises(UsageError, match=r"^%snapshot .*: valid is THIS; %snapshot\? has help\.$"):
        call.read("THIS", most=1, flags={"--now"}, texts={"-m"})


def test_what_is_quoted_in_an_error_is_short_and_printable() -> None:
    error = Call("snapshot", ("\x1b[31m\u202e" * 100,), False, True).wrong("x")
    assert error.message.isprintable()
    assert len(error.message) < 200


@pytest.mark.parametrize("name", sorted(_FAMILIES))
def test_every_magic_has_help_with_an_example(name: str) -> None:
    magic = Registry().find(f"%{name}?")
    assert magic is not None
    assert magic.call.help
    help_text = magic.family.HELP
    assert help_text.startswith(f"%{name}")
    example = help_text.split("Example:\n\n")[1].splitlines()[0].strip()
    found = Registry().find(example)
    assert found is not None
    assert found.call.name == name


@pytest.mark.parametrize(
    ("code", "at_once", "discards"),
    [
        ("%snapshot x --now", True, False),
        ("%snapshot x", False, False),
        ("%rollback x", False, True),
        ("%undo 3", False, True),
        ("%adopt 1", False, True),
        ("%vm restart", False, True),
        ("%vm", False, False),
        ("%snapshots --now", False, False),
    ],
)
def test_which_magics_do_not_wait_for_the_guest(code: str, at_once: bool, discards: bool) -> None:
    magic = Registry().find(code)
    assert magic is not None
    assert (magic.at_once, magic.discards) == (at_once, discards)
