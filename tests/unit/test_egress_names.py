"""Names and patterns: one form for each host, and no form for what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.egress.names import NameRefusedError, Pattern, normalize, shown

_LABELS = st.from_regex(r"[a-z]([a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
_NAMES = st.lists(_LABELS, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("PyPI.org", "pypi.org"),
        ("pypi.org.", "pypi.org"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_a_name_has_one_form(text: str, name: str) -> None:
    assert normalize(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "pypi.org..",
        "pypi..org",
        ".pypi.org",
        "pypi.org\0.evil.example",
        "pypi.org\n",
        "pypi.org/evil",
        "pypi.org@evil.example",
        "pypi.org:443",
        "pypi_org.example",
        "-pypi.org",
        "pypi-.org",
        "py--pi.org",
        "a" * 64 + ".example",
        "a." * 127 + "example",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "[::1]",
        "::1",
        "pypi.org%25",
        "xn--a",
        "xn--pypi-.org",
        "\u0440ypi.org",  # the first letter is Cyrillic
        "xn--ypi-7cd.org",  # the same as an A-label
        "\ud800.example",
        "*.example",
        "pypi.org ",
    ],
)
def test_what_is_no_plain_name_is_refused(text: str) -> None:
    with pytest.raises(NameRefusedError):
        normalize(text)


@given(st.text(max_size=300))
def test_any_text_is_refused_or_has_a_stable_safe_form(text: str) -> None:
    try:
        name = normalize(text)
    except NameRefusedError as error:
        said = error.message
    else:
        said = ""
        assert normalize(name) == name
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
        assert 0 < len(name) <= 253
    assert said.isprintable()
    assert len(said) < 250


@given(_NAMES, st.sampled_from(["", "."]))
def test_case_and_trailing_dot_do_not_matter(name: str, dot: str) -> None:
    assert normalize(name.upper() + dot) == name


@given(st.text())
def test_what_is_shown_is_short_printable_ascii(text: str) -> None:
    assert len(shown(text)) <= 80
    assert shown(text).isascii()
    assert shown(text).isprintable()


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("pypi.org", ["pypi.org"], ["www.pypi.org", "evilpypi.org", "pypi.org.evil.example", "org"]),
        ("*.example.org", ["a.example.org"], ["example.org", "a.b.example.org", "aexample.org", "a.example.org.x"]),
        ("**.example.org", ["a.example.org", "a.b.example.org"], ["example.org", "aexample.org"]),
    ],
)
def test_wildcards_stand_for_whole_labels(pattern: str, matching: list[str], others: list[str]) -> None:
    parsed = Pattern.parse(pattern)
    assert [name for name in matching + others if parsed.matches(name)] == matching


@given(_NAMES, _NAMES)
def test_a_wildcard_matches_only_what_is_below(first: str, second: str) -> None:
    assert Pattern.parse(f"**.{second}").matches(f"{first}.{second}")
    assert not Pattern.parse(f"**.{second}").matches(f"{first}{second}") or f".{second}" in first + second
    assert not Pattern.parse(f"*.{second}").matches(second)


@given(_NAMES, st.sampled_from(["", "*.", "**."]), st.sets(st.integers(1, 65535), max_size=3))
def test_a_pattern_reads_what_it_writes(name: str, wildcard: str, ports: set[int]) -> None:
    text = wildcard + name + (":" + ",".join(map(str, sorted(ports))) if ports else "")
    assert str(Pattern.parse(text)) == text


@pytest.mark.parametrize("text", ["*", "**", "*.", "a*.org", "a.*.org", "pypi.org:", "pypi.org:0", "pypi.org:65536",
                                  "pypi.org:80,", "pypi.org:-1", "pypi.org:http", "pypi.org:\uff11"])  # fmt: skip
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(NameRefusedError):
        Pattern.parse(text)
