"""HTML in the page: what libraries write survives, and what runs, fetches, submits or borrows names does not."""

from __future__ import annotations

import io
from typing import Any

import html5lib
import pytest
from firewall_bed import Said
from hypothesis import assume, given
from hypothesis import strategies as st
from output_checker import html_problems
from rich.console import Console
from rich.table import Table

from agentvm_kernel.bench import outputs
from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.html import MAX_CHARACTERS, clean_html, is_plain
from agentvm_kernel.firewall.reasons import Reason

STYLER = """<style type="text/css">
#T_c0ffe th { text-align: left; }
#T_c0ffe_row0_col0, #T_c0ffe_row1_col1 { background-color: #f7fbff; color: #000000; }
#T_c0ffe_row0_col1 { width: 10em; background: linear-gradient(90deg, #d65f5f 50.0%, transparent 50.0%); }
#T_c0ffe tr:nth-child(even) td { font-weight: bold; }
</style>
<table id="T_c0ffe"><thead><tr><th class="blank level0">&nbsp;</th>
<th id="T_c0ffe_level0_col0" class="col_heading level0 col0">a</th></tr></thead>
<tbody><tr><td id="T_c0ffe_row0_col0" class="data row0 col0">1.5</td></tr></tbody></table>"""

DOCS = """<h1 id="sum">sum<a class="headerlink" href="#sum" title="Link to this heading">#</a></h1>
<dl class="py function"><dt class="sig sig-object py" id="math.sum"><code class="descname">sum</code><em>(x)</em></dt>
<dd><p>Adds. See <a href="https://docs.python.org/3/">Python</a> or
<a href="mailto:a@example.org">write</a>.</p></dd></dl>
<details open><summary>More</summary><pre>&gt;&gt;&gt; sum([1])</pre></details>"""

SHAPES = """<svg viewBox="0 0 9 9" width="9"><defs><linearGradient id="g"><stop offset="0" stop-color="red"></stop>
</linearGradient><clipPath id="c"><rect width="9" height="9"></rect></clipPath></defs>
<g clip-path="url(#c)" transform="translate(1,2)"><path d="M 0 0 L 9 9" fill="url(#g)" style="stroke: #1f77b4"></path>
<text x="1">y</text></g></svg>"""


def clean(html: str, said: Said | None = None) -> str:
    return clean_html(html, (said or Said()).context) or ""


def tree(html: str) -> str:
    """Return the elements, attributes and text of a piece of HTML."""
    root = html5lib.parseFragment(html, container="div", treebuilder="etree")
    return repr([(item.tag, sorted(item.attrib.items()), item.text, item.tail) for item in root.iter()])


def test_a_table_of_pandas_stays_with_its_style() -> None:
    said = Said()
    html = clean(outputs.table(), said)
    assert said.reasons == []
    assert '<table border="1" class="dataframe">' in html
    assert html.count("<tr") == outputs.ROWS + 1
    assert "999</th>" in html
    assert ".dataframe tbody tr th { vertical-align: top }" in html
    assert list(html_problems(html)) == []


def test_a_styler_keeps_its_looks_under_names_of_our_own() -> None:
    said = Said()
    html = clean(STYLER, said)
    assert said.reasons == []
    assert 'id="vm-T_c0ffe_row0_col0" class="vm-data vm-row0 vm-col0"' in html
    assert "#vm-T_c0ffe_row0_col1 { width: 10em; background: linear-gradient(90deg, #d65f5f 50.0%, transparent" in html
    assert "tr:nth-child(even) td { font-weight: bold }" in html
    assert list(html_problems(html)) == []


def test_documentation_keeps_its_links_and_anchors() -> None:
    said = Said()
    html = clean(DOCS, said)
    assert said.reasons == []
    assert '<h1 id="vm-sum">' in html
    assert 'href="#vm-sum"' in html
    for target in ("https://docs.python.org/3/", "mailto:a@example.org"):
        assert f'href="{target}" rel="noopener noreferrer" target="_blank" title="{target}" referrerpolicy' in html
    assert "<summary>More</summary>" in html


def test_a_link_that_names_another_host_than_its_own_is_seen_to() -> None:
    html = clean('<a href="https://evil.example/?a&amp;b">https://<b>good</b>.example</a><a href="#x">good.example</a>')
    assert ">https://<b>good</b>.example [evil.example]</a>" in html
    assert ">good.example</a>" in html
    assert clean(html).count("[evil.example]") == 1


def test_a_table_of_rich_keeps_its_colours() -> None:
    console = Console(record=True, file=io.StringIO(), force_terminal=True, width=40)
    table = Table("name", "value")
    table.add_row("[red]a[/red]", "[bold]1[/bold]")
    console.print(table)
    said = Said()
    html = clean(
        console.export_html(inline_styles=True, code_format="<pre style='line-height:normal'>{code}</pre>"), said
    )
    assert said.reasons == []
    assert "color: #800000" in html
    assert "font-weight: bold" in html


def test_shapes_refer_to_each_other_and_to_nothing_else() -> None:
    said = Said()
    html = clean(SHAPES, said)
    assert said.reasons == []
    for kept in (
        'id="vm-g-',
        'fill="url(#vm-g-',
        'clip-path="url(#vm-c-',
        'transform="translate(1,2)"',
        "stroke: #1f77b4",
    ):
        assert kept in html
    assert "evil" not in clean('<svg><path fill="url(https://evil.example/x#y)" d="M 0 0"></path></svg>')
    assert "url" not in clean('<svg><path fill="rgb(url(x))" stroke="expression(1)"></path></svg>')


def test_pictures_and_sound_stay_as_data_only() -> None:
    said = Said()
    data = "data:image/png;base64,iVBORw0KGgo="
    wav = "data:audio/wav;base64,UklGRg=="
    assert f'src="{data}"' in clean(f'<img src="{data}" alt="x" width="9">')
    assert f'src="{wav}"' in clean(f'<audio controls src="{wav}"></audio>')
    assert clean('<img src="https://evil.example/x.png"><video src="/x"></video>', said) == "<img><video></video>"
    assert said.reasons == [Reason.REMOTE, Reason.REMOTE]


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        ("<script>go()</script>", Reason.SCRIPT),
        ("<img src=x onerror=go()>", Reason.SCRIPT),
        ("<svg/onload=go()>", Reason.SCRIPT),
        ("<p title='x'onclick=go()>", Reason.SCRIPT),
        ("<iframe src=/lab></iframe>", Reason.MARKUP),
        ("<form action=/api><input name=x></form>", Reason.MARKUP),
        ("<button formaction=/x>x</button>", Reason.MARKUP),
        ("<meta http-equiv=refresh content='0;url=/x'>", Reason.MARKUP),
        ("<base href=//evil.example>", Reason.MARKUP),
        ("<math><mtext><template>", Reason.MARKUP),
        ("<p data-commandlinker-command=x>", Reason.MARKUP),
        ("<a href='//evil.example/x'>x</a>", Reason.LINK),
        ("<a href='/lab/tree'>x</a>", Reason.LINK),
        ("<p style='position:fixed'>x</p>", Reason.STYLE),
        ("<style>body{color:expression(1)}</style>x", Reason.STYLE),
        (r"<p>$\href{javascript:x}{y}$</p>", Reason.MARKUP),
    ],
)
def test_what_runs_fetches_or_submits_goes_and_is_told(html: str, reason: Reason) -> None:
    said = Said()
    assert list(html_problems(clean(html, said))) == []
    assert reason in said.reasons


@pytest.mark.parametrize("text", ["a long phone = x", "data - x", "5 < 6 script", "&lt;script&gt;", "money=1"])
def test_words_that_only_look_like_scripts_are_not_told(text: str) -> None:
    said = Said()
    clean(f"<p title=x>{text}</p>", said)
    assert said.reasons == []


@pytest.mark.parametrize(
    "html",
    [
        # Angle brackets in an attribute: what rewrites links must not take them for one.
        '<b title="<a href=" lang="x=" dir="><img src=x onerror=alert(1)>">x</b>',
        "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=alert(1)&gt;'>",
        "<svg></p><style><a id='</style><img src=x onerror=alert(1)>'>",
        "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
        "<style></style ><img src=x onerror=alert(1)>",
        "<style><style></style><script>alert(1)</script>",
        "<style/><img src=x onerror=alert(1)>",
        "<svg><style>&lt;img src=x onerror=alert(1)&gt;</style></svg>",
        "<xmp><img title='</xmp><img src=x onerror=alert(1)>'></xmp>",
        "<a href='https://x' title='&quot;><img src=x onerror=alert(1)>'>x</a>",
        "<table><td></table></div></div><p id=main class='jp-Dialog agentvm-scope-0123456789abcdef'>x",
        "<p>$\\hr<wbr>ef{javascript:x}{y}$ \\hr<!-- -->ef{x} &#92;href{x}{y} &bsol;cssId{x}{y}</p>",
    ],
)
def test_what_a_parser_could_read_otherwise_stays_harmless(html: str) -> None:
    cleaned = clean(html)
    assert list(html_problems(cleaned)) == []
    assert list(html_problems(clean(cleaned))) == []


def test_cleaning_again_changes_nothing() -> None:
    for html in (STYLER, DOCS, SHAPES):
        assert tree(clean(clean(html))) == tree(clean(html))


def test_names_stay_apart_from_the_page() -> None:
    html = clean('<label for="a">x</label><td id="a b"></td><p id="a" class="b jp-X vm-c dataframe" name="d">x</p>')
    assert 'for="vm-a"' in html
    assert 'id="vm-a" class="vm-b vm-jp-X vm-c dataframe"' in html
    assert "name=" not in html


def test_html_that_is_too_large_or_empty_is_not_shown() -> None:
    said = Said()
    assert clean_html("x" * (MAX_CHARACTERS + 1), said.context) is None
    assert said.reasons == [Reason.SIZE]
    assert clean_html("<script>x</script>", Said(Mode.STRICT).context) is None


@pytest.mark.parametrize(
    ("html", "plain"),
    [
        ("<p>x &lt; y</p>", True),
        (
            '<table border="1" class="dataframe"><tr style="text-align: right;"><td colspan="2">1</td></tr></table>',
            True,
        ),
        ("<div><p>x</div></p>", False),
        ("<p>x</p></div>", False),
        ("<p>x", False),
        ("<p><!-- x --></p>", False),
        ("<p onclick=x>x</p>", False),
        ('<p class="dataframe jp-Dialog">x</p>', False),
        ('<p style="text-align: right;position:fixed">x</p>', False),
        ("<p><img></p>", False),
        ("<svg><p>x</p></svg>", False),
        (r"<p>\href{x}{y}</p>", False),
        ("<p>&#92;href{x}{y}</p>", False),
        ("<p>&bsol;href{x}{y}</p>", False),
        ("<p>x\x00</p>", False),
        ("<P>x</P>", False),
        ("<table><div><table></table></div></table>", False),
        ("<table><tr><td>1</td>x</tr></table>", False),
        ("<table><tr>x</tr></table>", False),
        ("<table>\n<thead>\n<tr>\n<th>1</th></tr></thead>\n <tbody></tbody>\n</table>", True),
    ],
)
def test_only_text_in_nested_harmless_elements_is_plain(html: str, plain: bool) -> None:
    assert is_plain(html) is plain


TAGS = ["td", "th", "tr", "tbody", "table", "div", "p", "b", "pre", "h1"]
ATTRIBUTES = ["", ' class="dataframe"', ' border="1"', ' style="text-align: right;"', ' colspan="2"']
leaves = st.sampled_from(["x", "1 &lt; 2", " ", "&amp;", "é"])
nested = st.recursive(
    leaves,
    lambda inner: st.tuples(st.sampled_from(TAGS), st.sampled_from(ATTRIBUTES), st.lists(inner, max_size=3)).map(
        lambda parts: f"<{parts[0]}{parts[1]}>{''.join(parts[2])}</{parts[0]}>"
    ),
    max_leaves=15,
)


@given(html=nested)
def test_plain_html_stays_within_its_place_and_is_harmless(html: str) -> None:
    assume(is_plain(html))
    assert list(html_problems(html)) == []
    # Nothing of it closes what it stands in.
    around = html5lib.parseFragment(f"<div><section>{html}</section><i>after</i></div>", treebuilder="etree")
    after: list[Any] = [item for item in around[0] if item.tag.endswith("}i")]
    assert [item.text for item in after] == ["after"]


def test_plain_html_reads_as_cleaned_html_does() -> None:
    plain = (
        '<div><table border="1" class="dataframe"><tbody><tr><td colspan="2">1 &lt; 2</td></tr></tbody></table></div>'
    )
    assert is_plain(plain)
    # An upper-case tag is not plain, and so goes the long way.
    assert tree(clean(plain)) == tree(clean(plain.replace("<div>", "<DIV>")))


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 100_000,
        "<p>" + "".join(f"<b id=a{number}>" for number in range(2000)) + "</p>" + "<p>x</p>" * 2000,
        "<font><p></font>" * 50_000,
        "<svg>" + "<td>" * 50_000,
        "<div></x>" * 50_000,
        "<div title='</div>'>" * 50_000,
        "<table><a>" * 50_000,
        ("<div>" * 30 + "x" + "</div>" * 30) * 24_000,
    ],
)
def test_many_elements_that_are_left_open_do_not_keep_the_kernel_busy(html: str) -> None:
    said = Said()
    assert clean_html(html, said.context) is None
    assert said.reasons == [Reason.SIZE]


def test_many_elements_that_are_closed_stay() -> None:
    cell = '<td id=a class=\'x y\' data-x="1" nowrap><a href="https://example.org">x</a><br><!-- y --></td>'
    said = Said()
    html = clean(f"<TABLE>{f'<tr>{cell * 10}</tr>' * 500}</TABLE>", said)
    assert html.count("<td") == 5000
    assert Reason.SIZE not in said.reasons
    assert clean("<p>x" * 2000).count("<p>") == 2000
