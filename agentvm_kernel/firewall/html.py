"""HTML without scripts, as it may stand in the page of the front end.

nh3 parses, keeps what is on the lists below and writes the tree anew; attributes with a meaning of their own (links,
images, styles, names) are rewritten on the way. Style sheets are taken out first, cleaned by ``css.py`` and put in
front, within an element of the class their rules are bound to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape, unescape
from itertools import islice
from typing import Final

import nh3

from agentvm_kernel.firewall.context import Context
from agentvm_kernel.firewall.css import MAX_PARSED, Reader, clean_declarations, clean_stylesheet, fits
from agentvm_kernel.firewall.latex import neutral
from agentvm_kernel.firewall.links import SCHEMES, clean_image, clean_link, clean_media, other_host
from agentvm_kernel.firewall.names import SCOPE_PREFIX, prefixed, prefixed_list, words
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.references import with_own_references

MAX_CHARACTERS: Final = 8 * 1024 * 1024

_TAGS: Final = words(
    """
    a abbr address article aside audio b bdi bdo big blockquote br caption center cite code col colgroup dd del details
    dfn div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hr i img ins kbd label li main mark meter
    nav ol p pre progress q rp rt ruby s samp section small span strike strong sub summary sup table tbody td tfoot th
    thead time tr tt u ul var video
    """
)
_SHAPES: Final = words(
    """
    svg g path rect circle ellipse line polyline polygon text tspan defs linearGradient radialGradient stop clipPath
    """
)
_WITH_CONTENT: Final = {"script", "style", "template", "title", "noscript", "iframe", "object", "textarea", "select"}

_EVERYWHERE: Final = frozenset({"id", "class", "style", "title", "dir", "lang", "align", "valign", "role", "hidden"})
_ATTRIBUTES: Final[dict[str, frozenset[str]]] = {
    "a": frozenset({"href"}),
    "audio": frozenset({"src", "controls", "loop", "muted"}),
    "col": frozenset({"span", "width"}),
    "colgroup": frozenset({"span", "width"}),
    "details": frozenset({"open"}),
    "div": frozenset({"width", "height"}),
    "font": frozenset({"color", "size", "face"}),
    "img": frozenset({"src", "alt", "width", "height"}),
    "label": frozenset({"for"}),
    "li": frozenset({"value"}),
    "meter": frozenset({"value", "min", "max", "low", "high", "optimum"}),
    "ol": frozenset({"start", "type", "reversed"}),
    "progress": frozenset({"value", "max"}),
    "table": frozenset({"border", "cellpadding", "cellspacing", "width", "height", "bgcolor", "rules", "frame"}),
    "td": frozenset({"colspan", "rowspan", "headers", "width", "height", "bgcolor", "nowrap"}),
    "th": frozenset({"colspan", "rowspan", "headers", "scope", "width", "height", "bgcolor", "nowrap"}),
    "time": frozenset({"datetime"}),
    "tr": frozenset({"bgcolor"}),
    "video": frozenset({"src", "controls", "loop", "muted", "width", "height"}),
}
_SHAPE_ATTRIBUTES: Final = words(
    """
    viewBox preserveAspectRatio width height x y x1 y1 x2 y2 cx cy r rx ry fx fy d points transform offset
    gradientUnits gradientTransform spreadMethod clipPathUnits dx dy rotate textLength lengthAdjust pathLength fill
    fill-opacity fill-rule stroke stroke-width stroke-opacity stroke-linecap stroke-linejoin stroke-dasharray
    stroke-dashoffset stroke-miterlimit stop-color stop-opacity opacity clip-path clip-rule font-family font-size
    font-weight font-style text-anchor dominant-baseline alignment-baseline shape-rendering vector-effect visibility
    """
)
_LOCAL: Final = re.compile(r"url\(\s*['\"]?#([A-Za-z0-9_-]{1,200})['\"]?\s*\)\s*\Z")

_PLAIN_DEPTH: Final = 12
# A backslash may begin a formula's command; so may what a character reference stands for.
_UNPLAIN: Final = re.compile(r"[\\\x00-\x08\x0b-\x1f\x7f]")
_REFERENCE: Final = re.compile(r"&(?!(?:lt|gt|amp|quot|nbsp|times);)")
# What parsers put in front of a table, because nothing but its parts may stand there.
_MISPLACED: Final = re.compile(
    r"<(?:(?:table|thead|tbody|tr)\b[^>]*+|/(?:thead|tbody|tr|td|th))>\s*+"
    r"(?!<(?:thead|tbody|tr|td|th)\b|</(?:table|thead|tbody|tr)>)"
)
# Most of a table, and much faster than what follows.
_CELL: Final = re.compile(r"<td>[^<]*</td>")
_PLAIN: Final = re.compile(
    r"<(td|th|tr|thead|tbody|table|div|p|b|i|em|strong|pre|code|h[1-6])"
    r'(?: (?:border|colspan|rowspan)="[0-9]{1,4}"| (?:valign|halign)="(?:top|left|right)"| class="dataframe"'
    r'| style="text-align: (?:left|right|center);"){0,4}>[^<]*+</\1>'
)

_MOST_LOOSE: Final = 2000
_BEGIN: Final = re.compile(r"<[a-zA-Z]")
_PASSES: Final = 32
_MOST_LOOKED_AT: Final = 5 * MAX_CHARACTERS
_LEAF: Final = re.compile(
    r"""<([a-zA-Z][a-zA-Z0-9]{0,30}+)(?:\s++[\w:.-]{1,60}+(?:=(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=]++))?+)*+\s*+>[^<]*+</\1\s*>"""
    r"|<(?:br|hr|img|col|wbr)(?:\s[^<>]*)?>|<!--[^<>]*-->",
    re.IGNORECASE,
)

_STYLE: Final = re.compile(r"<style\b[^<>]*+>", re.IGNORECASE)
_STYLE_END: Final = re.compile(r"</style[^<>]*+>?", re.IGNORECASE)
_SCOPED: Final = re.compile(rf'\s*<div class="{SCOPE_PREFIX}[0-9a-f]{{16}}">(.*)</div>\s*\Z', re.DOTALL)
_ANCHOR: Final = re.compile(r'<a ((?:[a-z]+="[^"]*" ?)+)>(.*?)(?=</a>)', re.DOTALL)
_ATTRIBUTE: Final = re.compile(r'([a-z]+)="([^"]*)"')
# Of what is taken out, only what the user may miss is told. They are looked for in small letters: a pattern without a
# fixed beginning takes longer over a table than all the rest.
_ELEMENT: Final = re.compile(
    r"<\s*(?:(script)|(?:iframe|object|embed|form|input|button|link|meta|base|textarea|select|frame|template|math|applet)\b)"
)
_EVENT: Final = re.compile(r"on[a-z]{3,32}+\s*+=")
_DATA: Final = re.compile(r"data-[a-z]")
_FOUND: Final = {
    "script": (Reason.SCRIPT, "a script"),
    "event": (Reason.SCRIPT, "a script in an attribute"),
    "markup": (Reason.MARKUP, "an element that takes input, loads a page or changes this one"),
    "data": (Reason.MARKUP, "an attribute for scripts of the page"),
}


def clean_html(text: str, context: Context) -> str | None:
    """HTML that runs nothing, fetches nothing and touches nothing beyond itself.

    Args:
        text: HTML of the guest.
        context: Of the message.

    Returns:
        What may be shown in the page, or None if it is too large or nothing is left of it.
    """
    if len(text) > MAX_CHARACTERS:
        context.block(Reason.SIZE, "HTML of more than 8 million characters")
        return None
    text, sheets = _without_sheets(text)
    if is_plain(text):
        body = text
    elif not _is_nested(text):
        context.block(Reason.SIZE, "HTML of more than 2,000 elements that are not nested properly")
        return None
    else:
        for found in _seen(text):
            context.block(*_FOUND[found])
        if inner := _SCOPED.match(text):
            text = inner[1]
        body = neutral(_announced(_cleaner(context).clean(text)), context)
        if "url(#" in body:
            own = with_own_references(body)
            if own is None:
                context.block(Reason.SIZE, "shapes that refer to others again and again, too many in all")
                return None
            body = own
    sheet = clean_stylesheet(sheets, context) if sheets else None
    if sheet is not None:
        body = f'<div class="{sheet[0]}"><style>{sheet[1]}</style>{body}</div>'
    return body if body.strip() else None


def has_too_much_style(text: str) -> bool:
    """Whether HTML has a style sheet that is too long for the page."""
    return len(text) > MAX_PARSED and "<style" in text.lower() and not fits(_without_sheets(text)[1])


def is_plain(text: str) -> bool:
    """Whether HTML is nothing but text in nested elements that stay as they are: a table of numbers, mostly.

    Such HTML needs no cleaning, which would take ten times as long. Elements without others in them are taken out until
    nothing is left: what is not nested properly, or has any other tag or attribute, leaves something.
    """
    if _UNPLAIN.search(text) or ("&" in text and _REFERENCE.search(text)) or _MISPLACED.search(text):
        return False
    text = _CELL.sub("", text)
    for _ in range(_PLAIN_DEPTH):
        text, found = _PLAIN.subn("", text)
        if not found:
            break
    return "<" not in text


def _is_nested(text: str) -> bool:
    """Whether a parser gets along with HTML: it has few elements, or closes them in their order and not too deep.

    What a parser does for elements left open grows with the square of their number, and can make a million of a
    thousand: the kernel's process would not answer for hours.
    """
    if sum(1 for _ in islice(_BEGIN.finditer(text), _MOST_LOOSE + 1)) <= _MOST_LOOSE:
        return True
    looked_at = 0
    for _ in range(_PASSES):
        looked_at += len(text)
        text, found = _LEAF.subn("", text)
        if not found or looked_at > _MOST_LOOKED_AT:
            break
    return _BEGIN.search(text) is None


def _seen(text: str) -> set[str]:
    """Return which kinds of things are in HTML that will be gone."""
    low = text.lower()
    found = {"script" if match[1] else "markup" for match in _ELEMENT.finditer(low)}
    for kind, pattern in (("event", _EVENT), ("data", _DATA)):
        if any(low[match.start() - 1] in " \t\n\r\f/\"'" for match in pattern.finditer(low, 1)):
            found.add(kind)
    return found


def _without_sheets(text: str) -> tuple[str, str]:
    """The text with its plain ``<style>`` elements taken out, and what was in them; nh3 takes out all others."""
    rest: list[str] = []
    sheets: list[str] = []
    position = 0
    while begin := _STYLE.search(text, position):
        end = _STYLE_END.search(text, begin.end())
        rest.append(text[position : begin.start()])
        sheets.append(text[begin.end() : end.start() if end else len(text)])
        position = end.end() if end else len(text)
    return "".join([*rest, text[position:]]), "\n".join(sheets)


def _cleaner(context: Context) -> nh3.Cleaner:
    attributes = {tag: set(_EVERYWHERE | _ATTRIBUTES.get(tag, frozenset())) for tag in _TAGS}
    attributes |= {tag: set(_EVERYWHERE | _SHAPE_ATTRIBUTES) for tag in _SHAPES}
    return nh3.Cleaner(
        tags=set(_TAGS | _SHAPES),
        clean_content_tags=_WITH_CONTENT,
        attributes=attributes,
        attribute_filter=_attribute_filter(context),
        url_schemes=set(SCHEMES | {"data"}),
        url_relative="pass_through",
    )


def _attribute_filter(context: Context) -> Callable[[str, str, str], str | None]:
    reader = Reader()
    rewrites: dict[str, Callable[[str], str | None]] = {
        "style": lambda value: clean_declarations(value, context, reader),
        "class": prefixed_list,
        "headers": prefixed_list,
        "id": lambda value: prefixed(value.strip()),
        "for": lambda value: prefixed(value.strip()),
        "href": lambda value: clean_link(value, context),
    }

    def clean(tag: str, name: str, value: str) -> str | None:
        if name in rewrites:
            return rewrites[name](value)
        if name == "src":
            return clean_image(value, context) if tag == "img" else clean_media(value, context)
        return _shape_attribute(value) if tag in _SHAPES else value

    return clean


def _shape_attribute(value: str) -> str | None:
    if "(" not in value or value.lstrip().lower().startswith(
        ("rgb", "hsl", "translate", "rotate", "scale", "matrix", "skew")
    ):
        return value if "url" not in value.lower() else None
    local = _LOCAL.match(value)
    name = prefixed(local[1]) if local else None
    return f"url(#{name})" if name else None


def _announced(html: str) -> str:
    """Links that lead elsewhere open apart and say where to; nh3 has written them in one form.

    All say so under the pointer, and beside their text if that names another host.
    """

    def announce(match: re.Match[str]) -> str:
        attributes = dict(_ATTRIBUTE.findall(match[1]))
        target = attributes.get("href", "#")
        if target.startswith("#"):
            return match[0]
        # JupyterLab takes "noreferrer" out of "rel".
        attributes |= {"target": "_blank", "title": target, "referrerpolicy": "no-referrer"}
        host = other_host(match[2], unescape(target))
        shown = f"{match[2]} [{escape(host)}]" if host else match[2]
        return "<a " + " ".join(f'{name}="{value}"' for name, value in attributes.items()) + ">" + shown

    return _ANCHOR.sub(announce, html) if "<a " in html else html
