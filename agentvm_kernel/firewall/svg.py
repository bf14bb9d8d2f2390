"""SVG as a picture: a browser runs no script of it, follows no link and fetches nothing, but draws all that it says.

So it is read first, and let through as it is if what it amounts to can be drawn (``references.py``). What could make it
amount to more behind the reader's back is refused: entities, style sheets from elsewhere, escapes that hide a
reference, SVG within SVG.
"""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, Final
from xml.etree.ElementTree import ParseError  # nosec B405: defusedxml parses

import tinycss2
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from agentvm_kernel.firewall.context import Context
from agentvm_kernel.firewall.images import MAX_PIXELS, pixels
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.references import MAX_DRAWN, Drawing, Part, TooMuchError

MAX_CHARACTERS: Final = 8 * 1024 * 1024
_MAX_SHEET: Final = 60_000
_MAX_REFERENCES: Final = 200_000
_MOVING: Final = 100
"""By how much less may be drawn where it is drawn again all the time."""

_HEAD: Final = re.compile(r"\A\s*<\?xml\s[^>]*>")
# Only what has one of these can draw anything twice, or fetch what does.
_REFERS: Final = re.compile(r"href|url|data:|import|\\|&#|<!entity|<\?xml-|animat|transition|\bset\b", re.IGNORECASE)
_MOVES: Final = re.compile(r"animat|transition|\bset\b", re.IGNORECASE)
_XLINK: Final = "{http://www.w3.org/1999/xlink}href"
_SHAPES: Final = ("d", "points", "style")
_LOCAL: Final = re.compile(r"#([^\s;,'\")]+)")
_URL: Final = re.compile(r"url", re.IGNORECASE)
_INNER: Final = re.compile(r"data:\s*image/svg", re.IGNORECASE)
_FOLDED: Final = str.maketrans("", "", "\t\r\n")
_RASTER: Final = re.compile(r"data:(image/(?:png|gif));base64,([A-Za-z0-9+/=]{44})")
_LAST: Final = re.compile(r"[\s>+~]+")
_COMPOUND: Final = re.compile(r"([A-Za-z][\w-]*|\*)?((?:[.#][\w-]+)*)((?::[\w-]+)*)\Z")
_NO_TARGET: Final = frozenset({"a", "animate", "set", "animatemotion", "animatetransform", "script"})
_REFUSED: Final = frozenset({"link", "iframe", "object", "embed"})


def clean_svg(value: object, size: dict[str, object], context: Context) -> str | None:
    """An SVG as an image element.

    Args:
        value: What the guest gives.
        size: ``width`` and ``height`` in pixels, if they are given.
        context: Of the message.

    Returns:
        HTML, or None.
    """
    if not isinstance(value, str):
        context.block(Reason.MALFORMED, "an SVG that is no text")
        return None
    if len(value) > MAX_CHARACTERS:
        context.block(Reason.SIZE, "an SVG of more than 8 million characters")
        return None
    text = _HEAD.sub("", value)  # it may name an encoding, and then a browser would read another text
    if _REFERS.search(text) and not _can_be_drawn(text, context):
        return None
    data = base64.b64encode(text.encode("utf-8", "replace")).decode()
    given = "".join(f' {escape(name)}="{number}"' for name, number in size.items() if name in {"width", "height"})
    return f'<img alt="SVG"{given} style="max-width: 100%" src="data:image/svg+xml;base64,{data}">'


def _can_be_drawn(text: str, context: Context) -> bool:
    reader = _Reader()
    try:
        parser = DefusedXMLParser(target=reader)
        parser.feed(text)
        parser.close()
        reader.check(MAX_DRAWN // _MOVING if _MOVES.search(text) else MAX_DRAWN)
    except TooMuchError as error:
        context.block(Reason.SIZE, f"an SVG with {error}")
    except (ParseError, DefusedXmlException, ValueError):
        context.block(Reason.MALFORMED, "an SVG that is not well-formed, or has entities of its own")
    else:
        return True
    return False


class _Reader:
    """Is told by a parser what is in an SVG."""

    def __init__(self) -> None:
        self._drawing = Drawing()
        self._by_word: defaultdict[str, list[Part]] = defaultdict(list)
        self._sheets: list[str] = []
        self._in_sheet = 0
        self._pixels = 0
        self._references = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        name = tag.rpartition("}")[2].lower()
        if name in _REFUSED:
            raise TooMuchError("what loads more than itself")
        self._in_sheet += name == "style"
        shape = max((attributes.get(key, "") for key in _SHAPES), key=len)
        part = self._drawing.begin(name, attributes.get("id"), shape, self._targets(name, attributes))
        for word in (name, "#" + attributes.get("id", ""), *("." + one for one in attributes.get("class", "").split())):
            self._by_word[word].append(part)

    def end(self, tag: str) -> None:
        """An element ends."""
        self._in_sheet -= tag.rpartition("}")[2].lower() == "style"
        self._drawing.end()

    def data(self, text: str) -> None:
        """Text between elements."""
        if self._in_sheet:
            self._sheets.append(text)

    def pi(self, target: str, _: str | None = None) -> None:
        """An instruction to whoever reads it."""
        if target.lower().startswith("xml-"):
            raise TooMuchError("a style sheet from elsewhere")

    def close(self) -> None:
        """The document ends."""

    def check(self, most: int) -> None:
        """Count what it amounts to."""
        sheet = "".join(self._sheets)
        if _REFERS.search(sheet):
            self._read_sheet(sheet)
        self._drawing.check(most)

    def _targets(self, tag: str, attributes: dict[str, str]) -> Iterator[tuple[str, str]]:
        is_animation = tag in {"animate", "set"}
        if is_animation and attributes.get("attributeName", "").rpartition(":")[2] == "href":
            raise TooMuchError("references that change")
        for key, value in attributes.items():
            folded = value.translate(_FOLDED)
            if _INNER.search(folded):
                raise TooMuchError("an SVG within it")
            if key in {"href", _XLINK}:
                self._see_picture(folded)
                if folded.strip().startswith("#") and tag not in _NO_TARGET:
                    yield folded.strip()[1:], "href"
            elif "(" in value and "}" not in key:
                if "\\" in value or (is_animation and _URL.search(value)):
                    raise TooMuchError("references that change, or are written in escapes")
                if _URL.search(value):
                    how = "marker" if "marker" in (key + value).lower() else key
                    yield from ((target, how) for target in _LOCAL.findall(folded))

    def _see_picture(self, address: str) -> None:
        if match := _RASTER.match(address.strip()):
            self._pixels += pixels(match[1], base64.b64decode(match[2]))
            if self._pixels > MAX_PIXELS:
                raise TooMuchError("pictures of more than 100 million pixels")

    def _read_sheet(self, sheet: str) -> None:
        if len(sheet) > _MAX_SHEET:
            raise TooMuchError("a style sheet of more than 60,000 characters")
        if "\\" in sheet or _INNER.search(sheet):
            raise TooMuchError("a style sheet with escapes, or with an SVG in it")
        self._read_rules(tinycss2.parse_stylesheet(sheet, skip_comments=True, skip_whitespace=True))

    def _read_rules(self, rules: Iterable[Any]) -> None:
        for rule in rules:
            if rule.type == "at-rule" and rule.lower_at_keyword in {"media", "supports"} and rule.content:
                self._read_rules(tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True))
            elif rule.type == "at-rule" and rule.lower_at_keyword == "font-face":
                continue
            elif rule.type != "qualified-rule":
                if rule.type == "error" or rule.lower_at_keyword == "import" or _URL.search(rule.serialize()):
                    raise TooMuchError("a style sheet from elsewhere, or one that changes references")
            else:
                self._read_rule(tinycss2.serialize(rule.prelude), tinycss2.serialize(rule.content))

    def _read_rule(self, selectors: str, style: str) -> None:
        if "path(" in style.lower():
            raise TooMuchError("a style sheet that makes shapes")
        if not _URL.search(style):
            return
        how = "marker" if "marker" in style.lower() else "style"
        targets = [(target, how) for target in _LOCAL.findall(style)]
        for selector in selectors.split(",") if targets else ():
            selected = self._selected(selector)
            self._references += len(selected) * len(targets)
            if self._references > _MAX_REFERENCES:
                raise TooMuchError("a style sheet that makes more than 200,000 references")
            for part in selected:
                part.targets += targets

    def _selected(self, selector: str) -> list[Part]:
        """Return the elements that a selector may match: all of the last of its words."""
        match = _COMPOUND.match(_LAST.split(selector.strip())[-1])
        if match is None or not (match[2] or (match[1] and match[1] != "*")):
            raise TooMuchError("references from whatever is in it")
        words = re.findall(r"[.#][\w-]+", match[2]) or [match[1].lower()]
        return min((self._by_word.get(word, []) for word in words), key=len)
