"""Styles: the looks of an output stay, and nothing fetches, covers what is around or reaches another output."""

from __future__ import annotations

import re

import pytest
from firewall_bed import Said
from hypothesis import given, settings
from hypothesis import strategies as st
from output_checker import css_problems, sheet_problems

from agentvm_kernel.firewall.css import MAX_CHARACTERS, MAX_PARSED, Reader, clean_declarations, clean_stylesheet
from agentvm_kernel.firewall.reasons import Reason

BENIGN = [
    "color: red",
    "background-color: rgba(1, 2, 3, 0.5)",
    "background: linear-gradient(90deg, #d65f5f 50.0%, transparent 50.0%)",
    "width: calc(100% - 2em)",
    "margin: 0 auto 1em",
    "padding: .5em",
    'font-family: "DejaVu Sans Mono", monospace',
    "border: 1px solid hsl(120, 50%, 50%)",
    "position: relative",
    "display: grid; grid-template-columns: repeat(2, minmax(0, 1fr))",
    "text-align: right !important",
    "--my-color: red; color: var(--my-color)",
    "color: light-dark(black, white)",
]

HOSTILE = [
    "background: url(https://evil.example/x)",
    "background: URL('x')",
    "background: u\\72l(https://evil.example/x)",
    "background: ur/**/l(x)",
    "background-image: image-set('https://evil.example/x' 1x)",
    "background-image: -webkit-image-set(url(x) 1x)",
    "background-image: cross-fade(url(x), red)",
    "background-image: element(#x)",
    "background-image: paint(x)",
    "cursor: url(x), auto",
    "list-style: url(x)",
    "list-style-image: none",
    "content: 'x'",
    "content: attr(x)",
    "behavior: url(x)",
    "-moz-binding: url(x)",
    "width: expression(alert(1))",
    "position: fixed",
    "position: absolute",
    "position: sticky",
    "position: var(--x)",
    "position: \\66ixed",
    "top: 0",
    "inset: 0",
    "z-index: 99999",
    "transform: translate(-99px)",
    "translate: -99px",
    "scale: 99",
    "zoom: 99",
    "margin: -99px",
    "margin-left: calc(0px - 99px)",
    "margin: var(--x)",
    "letter-spacing: -9em",
    "filter: url(#x)",
    "box-shadow: 0 0 0 9999px red",
    "outline: 9999px solid red",
    "text-indent: -999px",
    "animation: x 1s",
    "transition: all 1s",
    "mask-image: url(x)",
    "clip-path: url(#x)",
    "pointer-events: none",
    "all: initial",
    "anchor-name: --x",
    "view-transition-name: x",
    "--X: url(x)",
    "--x_: red",
    "color: {}",
    "color: red}body{color:red",
    "color: </style>",
    "color: @import",
    "color",
    "",
    "color:",
    "color: " + "(" * 20 + "red" + ")" * 20,
]


@pytest.mark.parametrize("style", BENIGN)
def test_looks_of_an_output_stay(style: str) -> None:
    said = Said()
    assert clean_declarations(style, said.context) == style
    assert said.reasons == []
    assert list(css_problems(style)) == []


@pytest.mark.parametrize("style", HOSTILE)
def test_what_fetches_or_draws_elsewhere_goes(style: str) -> None:
    said = Said()
    kept = clean_declarations(f"color: red; {style}; opacity: 1", said.context) or ""
    assert list(css_problems(kept)) == []
    assert "evil" not in kept
    assert re.fullmatch(r"color: red(; opacity: 1)?", kept), kept
    assert said.reasons == ([Reason.STYLE] if style else [])


def test_a_style_of_which_nothing_is_left_is_none() -> None:
    assert clean_declarations("position: fixed", Said().context) is None


def test_a_long_style_is_cleaned_as_a_short_one_is() -> None:
    assert clean_declarations("color: red; " * 100, Said().context) == "; ".join(["color: red"] * 100)


def test_a_style_without_end_is_not_read() -> None:
    said = Said()
    assert clean_declarations("x" * (MAX_CHARACTERS + 1), said.context) is None
    assert clean_stylesheet("x" * (MAX_CHARACTERS + 1), said.context) is None
    assert said.reasons == [Reason.SIZE, Reason.SIZE]


def sheet(text: str, said: Said | None = None) -> str:
    """Return the rules that are left, with ``SCOPE`` for the class they are bound to."""
    found = clean_stylesheet(text, (said or Said()).context)
    if found is None:
        return ""
    scope, rules = found
    assert list(sheet_problems(rules, {scope})) == []
    return rules.replace(f".{scope}", "SCOPE")


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ("table { color: red }", "SCOPE table { color: red }"),
        (".a .b > td, #c { color: red }", "SCOPE .vm-a .vm-b > td, SCOPE #vm-c { color: red }"),
        (".dataframe th { color: red }", "SCOPE .dataframe th { color: red }"),
        (
            "tr:nth-child(2n + 1):hover td + td ~ td { color: red }",
            "SCOPE tr:nth-child(2n + 1):hover td + td ~ td { color: red }",
        ),
        (":root { --x: red }", "SCOPE { --x: red }"),
        ("* { color: red }", "SCOPE * { color: red }"),
        ("/* x */ td/* y */ { color: red; /* z */ }", "SCOPE td { color: red }"),
        ("@media print { td { color: red } }", "@media print { SCOPE td { color: red } }"),
        ("@media (max-width: 9em) { td { color: red } }", "@media (max-width: 9em) { SCOPE td { color: red } }"),
    ],
)
def test_rules_are_bound_to_their_own_output(given: str, bound: str) -> None:
    said = Said()
    assert sheet(given, said) == bound
    assert said.reasons == []


@pytest.mark.parametrize(
    "rule",
    [
        "+ p { color: red }",
        "~ p { color: red }",
        ":host { color: red }",
        ":root body { color: red }",
        "body:has(input) { color: red }",
        "p::before { color: red }",
        "p:not(.x) { color: red }",
        "p:nth-child(2 of .x) { color: red }",
        "p:nth-child(url(x)) { color: red }",
        "input[value^=a] { color: red }",
        "a:visited:is(x) { color: red }",
        ".a. { color: red }",
        ".a, { position: fixed }",
        "# { color: red }",
        "{ color: red }",
        "x-y { color: red }",
        "svg|a { color: red }",
        "& p { color: red }",
        "p { position: fixed }",
        "p { }",
        "p { & a { background: url(x) } }",
        "@import url(https://evil.example/x);",
        "@import 'https://evil.example/x';",
        "@font-face { font-family: x; src: url(https://evil.example/x) }",
        "@keyframes x { from { color: red } }",
        "@namespace x url(y);",
        "@supports (color: red) { td { color: red } }",
        "@layer x { td { color: red } }",
        "@page { margin: 0 }",
        "@media print;",
        "@media screen and url(x) { td { color: red } }",
        "@media print { @media screen { td { color: red } } }",
        "@media <x> { td { color: red } }",
        "@media print { body { position: fixed } }",
    ],
)
def test_rules_that_fetch_or_reach_elsewhere_go(rule: str) -> None:
    said = Said()
    kept = sheet(f"td {{ opacity: 1 }} {rule}", said)
    assert kept == "SCOPE td { opacity: 1 }"
    assert said.reasons == [Reason.STYLE]


def test_a_sheet_that_was_cleaned_is_left_as_it_is() -> None:
    scope, rules = clean_stylesheet(".a td, :root { color: red }", Said().context) or ("", "")
    assert clean_stylesheet(rules, Said().context) == (scope, rules)


def test_the_same_rules_have_the_same_class_and_others_another() -> None:
    one, two, three = (clean_stylesheet(f"td {{ color: {color} }}", Said().context) for color in ("red", "red", "blue"))
    assert one == two
    assert one is not None
    assert three is not None
    assert one[0] != three[0]


def test_a_sheet_of_which_nothing_is_left_is_none() -> None:
    assert clean_stylesheet("p { position: fixed }", Said().context) is None


@pytest.mark.parametrize(
    "text", ["{" * 200_000, "td { color: " + "(" * 200_000, "{" * 90_000 + "}" * 90_000, "[(" * 99_000]
)
def test_a_long_sheet_of_blocks_within_blocks_is_not_read(text: str) -> None:
    said = Said()
    assert clean_stylesheet(text, said.context) is None
    assert clean_declarations(text, said.context) is None
    assert said.reasons == [Reason.SIZE, Reason.SIZE]


def test_a_long_sheet_of_rules_stays() -> None:
    rules = " ".join(f"#T_row{number}_col0 {{ background-color: rgb(1, 2, {number}) }}" for number in range(500))
    said = Said()
    assert sheet(f"{rules} @media print {{ td {{ color: red }} }}", said).count("SCOPE") == 501
    assert said.reasons == []


@pytest.mark.parametrize(
    "style",
    [
        "margin: -1px",
        "margin: -0.5px",
        "margin: - 1px",
        "margin: -#fffpx",
        "letter-spacing: -.5em",
        "margin: 1px; margin: -1px",
        "width: url1(x)",
        "background: url(#fff)",
        "background: ur#fff(x)",
        "position: fixed1",
        "color: (1",
        "color: 1)",
        "color1: red",
    ],
)
def test_what_goes_with_one_number_goes_with_any(style: str) -> None:
    reader = Reader()
    for number in ("1", "7", "12.5", "999"):
        given = style.replace("1", number)
        kept, lost = reader.declarations(f"padding: {number}px; {given}") or ("", False)
        assert list(css_problems(kept)) == []
        assert lost or re.fullmatch(r"padding: [0-9.]+px; (?:color|background): [^\\;]*\)", kept)
        assert "SCOPE p { color: red }" in sheet(f"td {{ padding: 0; {given} }} p {{ color: red }}")


def test_a_style_is_the_same_with_other_numbers_and_colours() -> None:
    reader = Reader()
    for number in range(2000):
        style = f"width: {number}px;\n background:linear-gradient( 90deg, #{number:06x} {number / 10}% )"
        assert reader.declarations(style) == (
            f"width: {number}px; background: linear-gradient( 90deg, #{number:06x} {number / 10}% )",
            False,
        )


def test_no_more_style_is_parsed_for_a_document_than_is_said() -> None:
    said = Said()
    reader = Reader()
    size = 0
    while not said.reasons:
        size += 60
        assert size < MAX_PARSED + 120
        clean_declarations(f"font-family: 'font number {size:040}'", said.context, reader)
    assert said.reasons == [Reason.SIZE]
    assert clean_declarations("color: red", said.context, reader) == "color: red"


def rule(row: int, column: int) -> str:
    return f"#T_1_row{row}_col{column} {{\n  background-color: #{row * 7 + column:06x};\n  width: {row}.5em;\n}}\n"


def test_the_sheet_of_a_styler_of_ten_thousand_rows_stays() -> None:
    said = Said()
    rules = "".join(rule(row, column) for row in range(10_000) for column in range(2))
    assert len(rules) > 1_000_000
    kept = clean_stylesheet(f"#T_1 th {{ text-align: left }}\n{rules}#T_1 td:hover {{ color: red }}", said.context)
    assert said.reasons == []
    assert kept is not None
    scope, bound = kept
    lines = bound.splitlines()
    assert len(lines) == 20_002
    assert lines[0] == f".{scope} #vm-T_1 th {{ text-align: left }}"
    assert lines[3] == f".{scope} #vm-T_1_row1_col0 {{ background-color: #000007; width: 1.5em }}"
    assert clean_stylesheet(bound, Said().context) == kept


def test_a_sheet_that_is_long_and_not_plain_goes() -> None:
    said = Said()
    rules = "".join(f"@media print {{ .a{number} {{ color: red }} }}" for number in range(3000))
    assert clean_stylesheet(rules, said.context) is None
    assert said.reasons == [Reason.SIZE]


PARTS = r"""
margin color position width background padding url( rgb( calc( linear-gradient( ( ) - + 1 -1 .5 #fff #bad px % ; : ; : ,
! !important fixed red { } @ /* */ \ \66 ' " < > # . e i x a --x
"""
PIECES = st.sampled_from([*PARTS.split(), " ", "\n"])


@settings(max_examples=400)
@given(text=st.lists(PIECES, max_size=14).map("".join))
def test_no_style_of_such_pieces_fetches_or_reaches_beyond_its_output(text: str) -> None:
    assert list(css_problems(clean_declarations(text, Said().context) or "")) == []
    sheet(f"td {{ {text} }}")
    sheet(f"#T {text} {{ margin: 0; {text} }} #U {{ {text} }}")
