"""Drawings whose parts refer to each other: let through if a browser can draw what they amount to."""

from __future__ import annotations

import base64
import re

import pytest
from firewall_bed import Said

from agentvm_kernel.firewall.html import clean_html
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.svg import clean_svg

SPACE = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
RECT = '<rect width="9" height="9"/>'


def svg(inner: str) -> str:
    return f"<svg {SPACE}>{inner}</svg>"


def levels(part: str, first: str = f'<g id="l0">{RECT}</g>', count: int = 30) -> str:
    """Parts of which each refers to the one before ten times; ``part`` is given its number and that of the other."""
    return svg(first + "".join(part.format(n, n - 1) for n in range(1, count)) + f'<use href="#l{count - 1}"/>')


def ten(reference: str) -> str:
    return "".join([reference] * 10)


BY_STYLE = (
    "".join(f".a{n}{{clip-path:url(#l{n})}}" for n in range(30))
    + "@media all { .b { marker-mid: URL( '#l0' ) } } .c > rect.a9:hover {mask:url(#l1)}"
)
HOSTILE = {
    "use": levels('<g id="l{0}">' + ten('<use xlink:href="#l{1}"/>') + "</g>"),
    "use, with spaces": levels('<g id="l{0}">' + ten('<use href=" &#10;#l{1}"/>') + "</g>"),
    "pattern": levels('<pattern id="l{0}">' + ten('<rect fill="url(#l{1})"/>') + "</pattern>"),
    "style": levels('<pattern id="l{0}">' + ten("<rect style=\"fill: url('#l{1}')\"/>") + "</pattern>"),
    "capitals": levels('<pattern id="l{0}">' + ten('<rect fill="URL(#l{1}) red"/>') + "</pattern>"),
    "symbol": levels('<symbol id="l{0}">' + ten('<use href="#l{1}"/>') + "</symbol>"),
    "clip path": levels('<clipPath id="l{0}">' + ten('<path d="M0 0" clip-path="url(#l{1})"/>') + "</clipPath>"),
    "mask": levels('<mask id="l{0}">' + ten('<path d="M0 0" mask="url(#l{1})"/>') + "</mask>"),
    "gradients": levels('<g id="l{0}">' + ten('<linearGradient href="#l{1}"/>') + "</g>"),
    "filter": levels('<filter id="l{0}">' + ten('<feImage href="#l{1}"/>') + "</filter>"),
    "class": svg(
        f"<style>{BY_STYLE}</style>"
        + "".join(f'<clipPath id="l{n}">' + ten(f'<rect class="x a{n - 1}"/>') + "</clipPath>" for n in range(30))
        + '<rect class="a29"/>'
    ),
    "inherited": svg(
        f'<clipPath id="c">{RECT * 3000}</clipPath><g style="--x: url(#c)">'
        + '<rect style="clip-path: var(--x)"/>' * 3000
        + "</g>"
    ),
    "markers": svg(
        f'<marker id="m">{RECT * 2000}</marker><path marker-mid="url(#m)" d="{"L1 1" * 10_000}"/>'
    ),
    "inherited markers": svg(
        f'<marker id="m">{RECT * 2000}</marker><g style="marker:url(#m)"><g><path d="{"L1 1" * 10_000}"/></g></g>'
    ),
    "prefix": '<x:svg xmlns:x="http://www.w3.org/2000/svg" xmlns:y="http://www.w3.org/1999/xlink"><x:g id="l0"/>'
    + "".join(f'<x:g id="l{n}">{ten(f"<x:use y:href={chr(34)}#l{n - 1}{chr(34)}/>")}</x:g>' for n in range(1, 30))
    + "</x:svg>",
    "default attributes": '<!DOCTYPE svg [<!ATTLIST use href CDATA "#l1">]>'
    + svg(f'<g id="l1">{RECT * 3000}</g>' + "<use/>" * 3000),
    "itself": svg('<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g>'),
    "filters": svg('<filter id="f"><feTurbulence/></filter>' + '<rect filter="url(#f)"/>' * 501),
    "deep": svg("<g>" * 501 + '<use href="#a"/>' + "</g>" * 501),
    "inner": svg('<image href="data:image/svg+xml;base64,PHN2Zy8+"/>'),
    "inner, folded": svg('<image href="da&#10;ta:image/SVG+xml;base64,PHN2Zy8+"/>'),
    "inner, style": svg("<style>rect{fill:url(data:image/svg+xml;base64,PHN2Zy8+)}</style>"),
    "sheet": svg('<style>@import "data:text/css,*{fill:red}";</style>'),
    "sheet, escaped": svg("<style>@\\69mport 'data:text/css,*{fill:red}';</style>"),
    "instruction": '<?xml-stylesheet href="data:text/css,x"?>' + svg(""),
    "link": svg('<link xmlns="http://www.w3.org/1999/xhtml" rel="stylesheet" href="data:text/css,x"/>'),
    "escapes": svg('<rect fill="u\\72l(#a)"/>'),
    "all": svg('<g id="a"/><style>* { fill: url(#a) }</style>'),
    "set": svg('<use href="#a"><set attributeName="xlink:href" to="#b"/></use>'),
    "animated": svg('<rect><animate attributeName="fill" values="url(#a);url(#b)"/></rect>'),
    "frames": svg("<style>@keyframes a { to { fill: url(#b) } }</style>"),
    "moving": svg(f'<g id="a">{RECT * 1000}</g>' + '<use href="#a"/>' * 30 + "<animateTransform/>"),
    "shapes by style": svg('<style>.a { d: path("M0 0") } rect { fill: url(#a) }</style>'),
    "pixels": svg(
        '<image href="data:image/png;base64,{}"/>'.format(
            base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0" + bytes(60)).decode()
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_amounts_to_too_much_is_not_shown(text: str) -> None:
    said = Said()
    assert clean_svg(text, {}, said.context) is None
    assert said.reasons == [Reason.SIZE]


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE svg [<!ENTITY a "x">]>' + svg("&a;"),
        svg('<use href="#a">'),
        "href",
        svg('<y:use href="#a"/>'),
    ],
)
def test_what_cannot_be_read_is_not_shown(text: str) -> None:
    said = Said()
    assert clean_svg(text, {}, said.context) is None
    assert said.reasons == [Reason.MALFORMED]


ORDINARY = {
    "plain": svg(RECT),
    "glyphs": svg(f'<defs><path id="g" d="{"L1 1" * 20}"/></defs>' + '<use xlink:href="#g" x="1"/>' * 20_000),
    "clipped": svg(f'<clipPath id="c">{RECT}</clipPath>' + '<path clip-path="url(#c)" d="M0 0"/>' * 50_000),
    "classes": svg(
        "<style>.cls-1{fill:url(#a);} .cls-2, g.cls-3 > path{clip-path:url(#a)} text{fill:#fff}"
        "*{stroke-linejoin:round}"
        '@font-face{font-family:x;src:url(data:font/woff2;base64,AAAA)}</style><linearGradient id="a"/>'
        '<rect class="cls-1"/><g class="cls-3"><path class="cls-2"/></g>'
    ),
    "links": svg('<g id="top"><a xlink:href="#top"><text>up</text></a></g>'),
    "picture": svg('<image href="data:image/png;base64,iVBORw0KGgo="/>'),
    "named encoding": '<?xml version="1.0" encoding="utf-7"?>' + svg('<use href="#a"/>'),
    "doctype": '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">'
    + svg('<use href="#a"/>'),
    "spinner": svg('<rect><animateTransform attributeName="transform" type="rotate" to="360"/></rect>'),
    "shadows": svg('<filter id="f"><feGaussianBlur/><feOffset/></filter>' + '<rect filter="url(#f)"/>' * 100),
    "outside": svg('<use href="https://elsewhere.example/a.svg#b"/><rect fill="url(#none)"/>'),
}


@pytest.mark.parametrize("text", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_drawings_are_shown_as_they_are(text: str) -> None:
    said = Said()
    html = clean_svg(text, {}, said.context)
    assert said.reasons == []
    assert html is not None
    shown = base64.b64decode(html.partition("base64,")[2].rstrip('">')).decode()
    assert shown == re.sub(r"^<\?xml[^>]*>", "", text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (svg("<g href=''>" * 400_000), Reason.SIZE),
        (svg('<g class="a b" style="fill:url(#a)"></g>' * 150_000), None),
        (svg("<g/>" * 200_001 + '<use href="#a"/>'), Reason.SIZE),
        (svg(f"<style>{'.a{fill:url(#b)}' * 3000}</style>" + '<g class="a"/>' * 150_000), Reason.SIZE),
    ],
)
def test_long_drawings_are_read_in_time_that_grows_with_their_length(text: str, reason: Reason | None) -> None:
    said = Said()
    assert (clean_svg(text, {}, said.context) is None) == (reason is not None)
    assert said.reasons == ([reason] if reason else [])


def shapes(inner: str) -> str:
    return f"<p>x</p><svg>{inner}</svg>"


def test_shapes_of_html_are_counted_as_well() -> None:
    nested = "".join(
        f'<clipPath id="l{n}">' + ten(f'<path d="M0 0" clip-path="url(#l{n - 1})"></path>') + "</clipPath>"
        for n in range(30)
    )
    for inner in (nested, nested.replace("<path", '<g title="</clipPath><br>"></g><path')):
        said = Said()
        assert clean_html(shapes(inner), said.context) is None
        assert said.reasons == [Reason.SIZE]


def test_shapes_reach_only_what_is_in_the_same_output() -> None:
    one = clean_html(shapes('<clipPath id="c"></clipPath><rect clip-path="url(#c)"></rect>'), Said().context)
    other = clean_html(shapes('<clipPath id="c"><rect></rect></clipPath><g clip-path="url(#c)"></g>'), Said().context)
    assert one is not None
    assert other is not None
    names = [re.findall(r'id="([^"]+)"', html) for html in (one, other)]
    assert names[0] != names[1]
    for html, (name,) in zip((one, other), names, strict=True):
        assert f'clip-path="url(#{name})"' in html
    missing = clean_html(shapes(f'<rect clip-path="url(#{names[0][0]})"></rect>'), Said().context)
    assert missing is not None
    assert f"url(#{names[0][0]})" not in missing
