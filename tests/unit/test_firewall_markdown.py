"""Markdown becomes HTML on the host, with its formulas, and is cleaned as HTML is."""

from __future__ import annotations

import pytest
from firewall_bed import Said
from output_checker import html_problems

from agentvm_kernel.firewall.markdown import MAX_CHARACTERS, clean_markdown
from agentvm_kernel.firewall.reasons import Reason


def clean(text: str, said: Said | None = None) -> str:
    return clean_markdown(text, (said or Said()).context) or ""


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("# Title", "<h1>Title</h1>"),
        ("**bold** *it* ~~gone~~ `a<b`", "<strong>bold</strong> <em>it</em> <s>gone</s> <code>a&lt;b</code>"),
        ("* one\n* two", "<li>one</li>"),
        ("|a|b|\n|-|-|\n|1|2|", "<td>1</td>"),
        ("```python\nx < y\n```", '<pre><code class="vm-language-python">x &lt; y'),
        ("> said", "<blockquote>"),
        ("<b>html</b> &amp; more", "<b>html</b> &amp; more"),
        ("[x](https://example.org/)", '<a href="https://example.org/"'),
        ("![x](data:image/png;base64,AAAA)", '<img src="data:image/png;base64,AAAA" alt="x">'),
    ],
)
def test_what_people_write_is_rendered(text: str, html: str) -> None:
    said = Said()
    assert html in clean(text, said)
    assert said.reasons == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$a_1*b*c<d$", "$a_1*b*c&lt;d$"),
        ("in $$x^2$$ line", "$$x^2$$"),
        ("$$\n\\frac{a}{b}\n$$", "\\frac{a}{b}"),
        ("costs $5 and $6", "$5 and $6"),
        ("$\\alpha \\text{a} \\sum_{i=0}^n$", "$\\alpha \\text{a} \\sum_{i=0}^n$"),
    ],
)
def test_formulas_stay_for_mathjax(text: str, shown: str) -> None:
    said = Said()
    assert shown in clean(text, said)
    assert said.reasons == []


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "x <img src=x onerror=alert(1)>",
        "![x](https://evil.example/x.png)",
        "![x][r]\n\n[r]: //evil.example/x.png",
        "[x](javascript:alert(1))",
        "<javascript:alert(1)>",
        "[x](/lab/tree)",
        "$\\href{javascript:alert(1)}{x}$",
        "$$\n\\cssId{x}{y}\n$$",
        "$<img src=x onerror=alert(1)>$",
        "$$</style><img src=x onerror=alert(1)>$$",
        '```"><img/src=x/onerror=alert(1)>\nx\n```',
        "<style>body{position:fixed}</style>",
        "<div style='position:fixed'>\n\n# x\n\n</div>",
        "```mermaid\ngraph TD\n click A 'javascript:x'\n```",
    ],
)
def test_nothing_hostile_is_rendered(text: str) -> None:
    assert list(html_problems(clean(text))) == []


def test_markdown_that_is_too_long_is_not_rendered() -> None:
    said = Said()
    assert clean_markdown("x" * (MAX_CHARACTERS + 1), said.context) is None
    assert said.reasons == [Reason.SIZE]
