"""HTML with scripts: whole, and in a frame that reaches nothing but the hosts the user has allowed."""

from __future__ import annotations

from typing import Any

import html5lib
import pytest
from firewall_bed import Said
from output_checker import HTML, html_problems

from agentvm_kernel.bench import outputs
from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.frame import MAX_CHARACTERS, framed, framed_script, needs_frame
from agentvm_kernel.firewall.reasons import Reason


def document_of(html: str) -> str:
    """Return the guest's document, as the browser gets it out of both frames."""
    for _ in range(2):
        root: Any = html5lib.parse(html, treebuilder="etree")
        frames = [item for item in root.iter() if item.tag == f"{HTML}iframe"]
        assert len(frames) == 1
        html = frames[0].get("srcdoc")
    return html


def test_a_plot_stays_whole_within_its_frame() -> None:
    said = Said()
    html = framed(outputs.plot(), said.context)
    assert said.reasons == []
    assert document_of(html).endswith(outputs.plot())
    assert list(html_problems(html)) == []


@pytest.mark.parametrize(
    "html",
    [
        "</iframe><img src=x onerror=alert(1)><script>",
        '"></iframe><script>alert(1)</script>',
        "&quot;&gt;<script>",
        "</body></html><meta http-equiv=Content-Security-Policy content='default-src *'><script>",
        "<base href=//evil.example><iframe sandbox=allow-same-origin src=/lab>",
        "<!-- <script>",
        "<plaintext><script>",
        "{policy}{document}{0}<script>",
    ],
)
def test_nothing_comes_out_of_the_frame(html: str) -> None:
    shown = framed(html, Said().context)
    assert list(html_problems(shown)) == []
    assert document_of(shown).endswith(html)


@pytest.mark.parametrize(
    ("html", "needs"),
    [
        ("<script>x</script>", True),
        ("<SCRIPT src=x>", True),
        ("<iframe/src=x>", True),
        ("<scripture>", False),
        ("&lt;script&gt;", False),
        ("<p onclick=x>", False),
    ],
)
def test_only_scripts_and_frames_need_one(html: str, needs: bool) -> None:
    assert needs_frame(html) is needs


@pytest.mark.parametrize(
    ("hosts", "html", "blocked"),
    [
        ((), "<script src=https://cdn.example/x.js></script>", True),
        ((), '<script>const url = "https://cdn.example/x.js"</script>', False),
        ((), '<link HREF = "//cdn.example/x.css">', True),
        (("cdn.example",), "<script src=https://cdn.example/x.js></script>", False),
        (("CDN.example",), "<script src='http://cdn.EXAMPLE/x.js'></script>", False),
        (("*.example",), "<script src=https://cdn.example/x.js></script>", False),
        (("*.example",), "<script src=https://example/x.js></script>", True),
        (("cdn.example",), "<script src=https://evil.example/x.js></script>", True),
    ],
)
def test_a_host_that_is_not_allowed_is_told(hosts: tuple[str, ...], html: str, blocked: bool) -> None:
    said = Said(frame_hosts=hosts)
    shown = framed(html, said.context)
    assert said.reasons == ([Reason.REMOTE] if blocked else [])
    assert list(html_problems(shown, hosts)) == []


def test_a_policy_takes_no_more_from_the_configuration_than_hosts() -> None:
    hosts = ("good.example", "x; script-src *", "*", "'self'", "a b", "https://x", "good.example:8443", '">')
    shown = framed("<script>", Said(frame_hosts=hosts).context)
    assert "https://good.example https://good.example:8443" in shown
    assert list(html_problems(shown, ("good.example", "good.example:8443"))) == []


def test_a_script_gets_an_element_and_does_not_end_early() -> None:
    script = "element.innerHTML = '</script><!--<script>'; x < y"
    shown = framed_script(script, Said().context, "<p>before</p>")
    assert list(html_problems(shown)) == []
    root: Any = html5lib.parse(document_of(shown), treebuilder="etree")
    last = [item for item in root.iter() if item.tag == f"{HTML}script"][-1]
    assert r"'\x3c/script>\x3c!--\x3cscript>'; x < y" in last.text
    assert '<p>before</p><div id="element">' in document_of(shown)


def test_a_document_that_is_too_large_is_not_shown() -> None:
    said = Said()
    assert framed("x" * (MAX_CHARACTERS + 1), said.context) == ""
    assert framed_script("x" * (MAX_CHARACTERS + 1), said.context) == ""
    assert said.reasons == [Reason.SIZE, Reason.SIZE]


@pytest.mark.parametrize(
    "html",
    [
        """<script>const tag = '<img src="https://cdn.example/x.png">'</script>""",
        """<script>x</script><a href="https://example.org/">a link</a>""",
        """<SCRIPT>link.href="//cdn.example/x.css"</SCRIPT>""",
    ],
)
def test_what_scripts_and_links_name_is_not_told_to_be_blocked(html: str) -> None:
    reasons: list[Reason] = []
    framed(html, Context(Mode.STANDARD, lambda reason, _words: reasons.append(reason)))
    assert reasons == []


@pytest.mark.parametrize(
    "tag",
    [
        "<script src=//cdn.example/x.js>",
        "<SCRIPT>1</SCRIPT><link href='https://cdn.example'>",
        '<iframe srcdoc="&lt;script src=&quot;https://cdn.example/x.js&quot;&gt;">',
    ],
)
def test_what_elements_load_is_told_to_be_blocked(tag: str) -> None:
    reasons: list[Reason] = []
    framed(tag, Context(Mode.STANDARD, lambda reason, _words: reasons.append(reason)))
    assert reasons == [Reason.REMOTE]
