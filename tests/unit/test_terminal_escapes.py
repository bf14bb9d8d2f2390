"""What a guest may do to the terminal of whoever runs something in it: write text, in colours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.run.escapes import RESET, TerminalFilter


def shown(*pieces: bytes) -> str:
    one = TerminalFilter()
    return b"".join(one.feed(piece) for piece in pieces).decode()


@pytest.mark.parametrize(
    "text",
    [
        "plain text\n\tand\r\n",
        "\u00e9\u4e2d\u3000\u00a0 \U0001f469\u200d\U0001f52c",
        "\x1b[31;1mred\x1b[0m \x1b[38;2;1;2;3mrgb\x1b[m \x1b[4:3mcurly",
    ],
)
def test_text_and_colours_pass(text: str) -> None:
    assert shown(text.encode()) == text
    assert shown(*(bytes([byte]) for byte in text.encode())) == text


@pytest.mark.parametrize(
    ("sent", "left"),
    [
        pytest.param("a\x1b[2Jb\x1b[1;1Hc\x1b[?1049hd", "abcd", id="screen"),
        pytest.param("a\x1b]0;title\x07b\x1b]52;c;ZXZpbA==\x1b\\c", "abc", id="title-and-clipboard"),
        pytest.param("a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\b", "alinkb", id="link"),
        pytest.param("a\x1bP+q544e\x1b\\b\x1b_x\x1b\\c\x1b^x\x1b\\d\x1bXx\x1b\\e", "abcde", id="strings"),
        pytest.param("a\x1bcb\x1b(0c\x1b#8d\x1b=e", "abcde", id="short-sequences"),
        pytest.param("a\x9b2Jb\x9d0;x\x07c", "a2Jb0;xc", id="c1"),
        pytest.param("a\x07\x08\x0b\x0c\x0e\x7f\x00b", "ab", id="controls"),
        pytest.param("a\x1b[>4;2mb\x1b[?25mc\x1b[1 md", "abcd", id="private-parameters"),
        pytest.param("a\u202eb\u2066c\u200ed\ufeff", "abcd", id="directions"),
        pytest.param("a\x1b[" + "1" * 65 + "mb", "amb", id="too-many-parameters"),
        pytest.param("a\x1b]0;unfinished\nb", "a\nb", id="unfinished-string"),
        pytest.param("a\x1b[31\nb", "a\nb", id="unfinished-colour"),
        pytest.param("a\x1b\x1b[31mb", "a\x1b[31mb", id="two-escapes"),
        pytest.param("a\x1b]0;x\x1b[31mb", "a\x1b[31mb", id="colour-ends-string"),
        pytest.param("a\x1b[\x1b[2Jb", "ab", id="nested"),
    ],
)
def test_everything_else_is_dropped(sent: str, left: str) -> None:
    assert shown(sent.encode()) == left
    assert shown(*(bytes([byte]) for byte in sent.encode())) == left


def test_a_string_without_end_does_not_swallow_everything() -> None:
    assert shown(b"\x1b]0;" + b"x" * 10_000 + b"\xff tail").endswith("x\ufffd tail")


def test_colours_end_with_the_program() -> None:
    one = TerminalFilter()
    one.feed(b"plain")
    assert one.end() == b""
    one.feed(b"\x1b[31")
    assert one.end() == b""
    one.feed(b"m")
    assert one.end() == RESET.encode()


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_whatever_is_sent_only_text_and_colours_come_out(pieces: list[bytes]) -> None:
    text = shown(*pieces)
    for sequence in text.split("\x1b")[1:]:
        assert sequence.startswith("[")
        assert sequence.lstrip("[0123456789;:")[:1] == "m"
    assert not any((char < " " and char not in "\n\t\r\x1b") or "\x7f" <= char < "\xa0" for char in text)
    assert shown(text.encode()) == text


@given(st.text(alphabet="\x1b[]0m;:J\x07\\a\n", max_size=60), st.integers(0, 60))
def test_it_does_not_matter_how_the_stream_is_cut(text: str, place: int) -> None:
    data = text.encode()
    assert shown(data[:place], data[place:]) == shown(data)
