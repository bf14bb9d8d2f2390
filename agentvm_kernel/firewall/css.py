"""Style of the guest: what may be said about the looks of its own output, and of nothing else.

Declarations are kept by an allow-list of properties and of functions in their values: nothing that fetches, that moves
an element out of its place or that draws beyond it. Every rule of a style sheet is bound to one output: its selectors
reach only below an element of a class that the host gives, and ids and classes carry the prefix of ``names.py``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import tinycss2

from agentvm_kernel.firewall.context import Context
from agentvm_kernel.firewall.names import SCOPE_PREFIX, prefixed, words
from agentvm_kernel.firewall.reasons import Reason

MAX_CHARACTERS: Final = 4_000_000
"""Of a style sheet of plain rules."""

MAX_PARSED: Final = 60_000
"""Of all other style of a document: parsing takes a second for 250,000 characters."""

_MAX_DEPTH: Final = 8
# From here on, parsing blocks within blocks takes time that grows with the square of their number.
_LONG: Final = 20_000
_BLOCKS: Final = (re.compile(r"\{[^{}]*\}"), re.compile(r"\([^()]*\)"), re.compile(r"\[[^\[\]]*\]"))

# A rule in which nothing could begin or end another one, a comment or a string.
_RULE: Final = re.compile(r"""\s*+([^{}@\\"'/<]++)\{([^{}@\\"'/<>]*+)\}""")
_PLAIN: Final = re.compile(rf"(?:{_RULE.pattern})*+\s*+\Z")
_NAMES: Final = re.compile(r"\s*(?:(?:\.agentvm-scope-[0-9a-f]{16}\s+)?#[A-Za-z0-9_-]{1,190}\s*(?:,\s*|\Z))+\Z")
_NAME: Final = re.compile(r"#([A-Za-z0-9_-]+)")
_SIMPLE: Final = re.compile(r"[A-Za-z0-9#.,%:;()!\s-]{0,512}\Z")
_NUMBER: Final = re.compile(r"#[0-9a-fA-F]{3,8}(?![\w-])|[0-9]+(?:\.[0-9]+)?")
_COLON: Final = re.compile(r"\s*:\s*")

_PROPERTIES: Final = words(
    """
    accent-color align-content align-items align-self alignment-baseline appearance aspect-ratio background
    background-color background-image background-position background-repeat background-size baseline-shift border
    border-bottom border-bottom-color border-bottom-left-radius border-bottom-right-radius border-bottom-style
    border-bottom-width border-collapse border-color border-left border-left-color border-left-style border-left-width
    border-radius border-right border-right-color border-right-style border-right-width border-spacing border-style
    border-top border-top-color border-top-left-radius border-top-right-radius border-top-style border-top-width
    border-width box-sizing caption-side clear clip-rule color color-scheme column-count column-gap column-width
    columns cursor direction display dominant-baseline empty-cells fill fill-opacity fill-rule flex flex-basis
    flex-direction flex-flow flex-grow flex-shrink flex-wrap float font font-family font-feature-settings font-kerning
    font-size font-size-adjust font-stretch font-style font-variant font-variant-numeric font-weight gap grid
    grid-area grid-auto-columns grid-auto-flow grid-auto-rows grid-column grid-column-end grid-column-start grid-gap
    grid-row grid-row-end grid-row-start grid-template grid-template-areas grid-template-columns grid-template-rows
    height hyphens image-rendering justify-content justify-items justify-self letter-spacing line-height list-style
    list-style-position list-style-type margin margin-bottom margin-left margin-right margin-top max-height max-width
    min-height min-width object-fit object-position opacity order overflow overflow-wrap overflow-x overflow-y padding
    padding-bottom padding-left padding-right padding-top page-break-inside paint-order position row-gap
    shape-rendering stop-color stop-opacity stroke stroke-dasharray stroke-dashoffset stroke-linecap stroke-linejoin
    stroke-miterlimit stroke-opacity stroke-width tab-size table-layout text-align text-anchor text-decoration
    text-decoration-color text-decoration-line text-decoration-style text-overflow text-rendering text-transform
    text-wrap unicode-bidi user-select vector-effect vertical-align visibility white-space width word-break
    word-spacing word-wrap writing-mode
    """
)
_FUNCTIONS: Final = words(
    """
    rgb rgba hsl hsla hwb lab lch oklab oklch color color-mix light-dark calc min max clamp var minmax repeat
    fit-content linear-gradient radial-gradient conic-gradient repeating-linear-gradient repeating-radial-gradient
    """
)
_IN_PLACE: Final = re.compile(r"margin|letter-spacing|word-spacing")
"""Properties that could draw an element outside its place, were they negative."""
_NOWHERE: Final = re.compile(r"[<>{}@\\]|/\*|&")
"""Has no place in a value that is passed on: could end the element, the rule or the declaration for some parser."""

_PSEUDO: Final = words(
    """
    hover focus active checked disabled empty first-child last-child only-child first-of-type last-of-type only-of-type
    link visited open
    """
)
_PSEUDO_FUNCTIONS: Final = frozenset({"nth-child", "nth-last-child", "nth-of-type", "nth-last-of-type"})
_SIBLINGS: Final = ("+", "~")
_PREFIXES: Final = (".", ":")
_MARKS: Final = ("*", ">", *_SIBLINGS, *_PREFIXES)
_NTH: Final = re.compile(r"[0-9n+\- ]{1,20}\Z|odd\Z|even\Z")
_TYPE: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,30}\Z")
_MEDIA: Final = re.compile(r"[A-Za-z0-9():,. \-]{1,200}\Z")

_Nodes = Iterable[Any]


class Reader:
    """Reads the styles of one document, of which there may be much more of one kind than of others.

    Tables say the same few styles thousands of times, with other numbers and colours: a shape is parsed once. What was
    not parsed before may be so long in all.
    """

    def __init__(self) -> None:
        self._left = MAX_PARSED
        self._known: dict[str, tuple[str, bool]] = {}
        self._selectors: dict[str, str] = {}

    def declarations(self, text: str) -> tuple[str, bool] | None:
        """What is kept of declarations, and whether something is not; None if there was too much before."""
        if len(text) <= 512 and _is_kept_whole(_NUMBER.sub("1", text)):
            return _written(text), False
        if text not in self._known:
            if not (self._may_parse(text) and _is_flat(text)):
                return None
            self._known[text] = _declarations(text)
        return self._known[text]

    def selectors(self, text: str) -> str | None:
        """Selectors bound to the scope, as far as they are let through; None if there was too much before."""
        if _NAMES.match(text):
            names = (prefixed(name) for name in _NAME.findall(text))
            return ", ".join(f"{_SCOPE_MARK} #{name}" for name in names if name)
        if text not in self._selectors:
            if not self._may_parse(text):
                return None
            self._selectors[text] = _bound(tinycss2.parse_component_value_list(text))
        return self._selectors[text]

    def _may_parse(self, text: str) -> bool:
        self._left -= len(text)
        return self._left >= 0


def clean_declarations(text: str, context: Context, reader: Reader | None = None) -> str | None:
    """The value of a ``style`` attribute; None if nothing of it may stay.

    Args:
        text: Of the guest.
        context: Of the message.
        reader: Of the document that it belongs to, if there is one.
    """
    found = (reader or Reader()).declarations(text)
    if found is None:
        context.block(Reason.SIZE, "style of more than 60,000 characters, or blocks within blocks")
        return None
    kept, lost = found
    if lost:
        context.block(Reason.STYLE, "a style that fetches, or draws outside its own output")
    return kept or None


@lru_cache(maxsize=4096)
def _is_kept_whole(shape: str) -> bool:
    """Whether all of a style is kept that has a number or a colour wherever this one has ``1``.

    Of a number it matters only whether it is negative, and that stands before it.
    """
    return _SIMPLE.match(shape) is not None and _declarations(shape) == (_written(shape), False)


def _written(text: str) -> str:
    """Declarations in the form in which they are passed on."""
    parts = (" ".join(part.split()) for part in text.split(";"))
    return "; ".join(_COLON.sub(": ", part, count=1) for part in parts if part)


def _is_flat(text: str) -> bool:
    """Whether a style is short, or has its blocks at most four deep, as all have that are written to be seen."""
    if len(text) < _LONG:
        return True
    for pattern in _BLOCKS:
        for _ in range(4):
            text = pattern.sub("", text)
    return not {"{", "(", "["} & set(text)


def _declarations(text: str) -> tuple[str, bool]:
    kept: list[str] = []
    lost = False
    for node in tinycss2.parse_declaration_list(text, skip_comments=True, skip_whitespace=True):
        declaration = _declaration(node) if node.type == "declaration" else None
        if declaration is None:
            lost = True
        else:
            kept.append(declaration)
    return "; ".join(kept), lost


def _declaration(node: Any) -> str | None:
    name = node.lower_name
    if name.startswith("--"):
        if not re.fullmatch(r"--[a-z0-9-]{1,100}", name):
            return None
    elif name not in _PROPERTIES:
        return None
    if not _harmless(node.value, name, 0):
        return None
    value = tinycss2.serialize(node.value).strip()
    if _NOWHERE.search(value) or not value:
        return None
    if name == "position" and value.lower() not in {"relative", "static", "initial", "unset"}:
        return None
    return f"{name}: {value}" + (" !important" if node.important else "")


def _harmless(nodes: _Nodes, name: str, depth: int) -> bool:
    return depth <= _MAX_DEPTH and all(_harmless_node(node, name, depth) for node in nodes)


def _harmless_node(node: Any, name: str, depth: int) -> bool:
    in_place = _IN_PLACE.match(name) is not None
    if node.type == "function":
        return not in_place and node.lower_name in _FUNCTIONS and _harmless(node.arguments, name, depth + 1)
    if node.type == "() block":
        return _harmless(node.content, name, depth + 1)
    if node.type in {"number", "dimension", "percentage"}:
        return not in_place or node.value >= 0
    return node.type in {"ident", "hash", "string", "whitespace"} or (node.type == "literal" and not in_place)


def clean_stylesheet(text: str, context: Context) -> tuple[str, str] | None:
    """A style sheet for one output.

    Args:
        text: What stood in the guest's ``<style>`` elements, one after the other.
        context: Of the message.

    Returns:
        The class its rules are bound to, for the element around the output, and the rules; None if none is left.
    """
    lost: list[object] = []
    rules = _plain_rules(text, lost) if is_plain(text) else None
    if rules is None and len(text) <= MAX_PARSED and _is_flat(text):
        rules = _rules(tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True), lost, 0)
    if rules is None:
        context.block(Reason.SIZE, "a style sheet of more than 60,000 characters that is not plain")
        return None
    if lost:
        context.block(Reason.STYLE, "a style rule that fetches, or reaches beyond its own output")
    if not rules:
        return None
    unbound = "\n".join(rules)
    # The same rules have the same class, so that another output cannot be bound by rules it does not have itself.
    scope = SCOPE_PREFIX + hashlib.sha256(unbound.encode("utf-8", "replace")).hexdigest()[:16]
    return scope, unbound.replace(_SCOPE_MARK, "." + scope)


_SCOPE_MARK: Final = "\N{NULL}"
"""Stands for the scope until it is known; no style sheet has this character once it is parsed."""


def fits(text: str) -> bool:
    """Whether a style sheet is short enough to be looked through."""
    return len(text) <= MAX_PARSED or is_plain(text)


def is_plain(text: str) -> bool:
    """Whether a style sheet has nothing but rules of which each can be read by itself."""
    return len(text) <= MAX_CHARACTERS and _PLAIN.match(text) is not None


def _plain_rules(text: str, lost: list[object]) -> list[str] | None:
    reader = Reader()
    rules: list[str] = []
    for selectors, body in _RULE.findall(text):
        found, bound = reader.declarations(body), reader.selectors(selectors)
        if found is None or bound is None:
            return None
        kept, partly = found
        if partly or not (kept and bound):
            lost.append(bound)
        if kept and bound:
            rules.append(f"{bound} {{ {kept} }}")
    return rules


def _rules(nodes: _Nodes, lost: list[object], depth: int) -> list[str]:
    rules: list[str] = []
    for node in nodes:
        rule = None
        if node.type == "qualified-rule":
            rule = _rule(node, lost)
        elif node.type == "at-rule" and node.lower_at_keyword == "media" and node.content is not None and not depth:
            rule = _media(node, lost)
        if rule:
            rules.append(rule)
        else:
            lost.append(node.type)
    return rules


def _media(node: Any, lost: list[object]) -> str | None:
    if not _harmless(node.prelude, "media", 0):
        return None
    condition = tinycss2.serialize(node.prelude).strip()
    if not _MEDIA.match(condition):
        return None
    inner = _rules(tinycss2.parse_rule_list(node.content, skip_comments=True, skip_whitespace=True), lost, 1)
    return f"@media {condition} {{ {' '.join(inner)} }}" if inner else None


def _rule(node: Any, lost: list[object]) -> str | None:
    selectors = _bound(node.prelude)
    kept: list[str] = []
    for item in tinycss2.parse_blocks_contents(node.content, skip_comments=True, skip_whitespace=True):
        declaration = _declaration(item) if item.type == "declaration" else None
        if declaration is None:
            lost.append(item.type)
        else:
            kept.append(declaration)
    if not selectors or not kept:
        return None
    return f"{selectors} {{ {'; '.join(kept)} }}"


def _bound(nodes: _Nodes) -> str:
    """Selectors bound to the scope, but for those that are not let through."""
    return ", ".join(selector for part in _split(nodes) if (selector := _selector(part)))


def _split(nodes: _Nodes) -> list[list[Any]]:
    parts: list[list[Any]] = [[]]
    for node in nodes:
        if node.type == "literal" and node.value == ",":
            parts.append([])
        else:
            parts[-1].append(node)
    return parts


def _selector(nodes: list[Any]) -> str | None:
    """The selector bound to the scope, or None if it is of a kind that is not let through."""
    nodes = _stripped([node for node in nodes if node.type != "comment"])
    if len(nodes) >= 2 and nodes[0] == "." and nodes[1].type == "ident" and nodes[1].value.startswith(SCOPE_PREFIX):
        nodes = _stripped(nodes[2:])
    elif len(nodes) == 2 and nodes[0] == ":" and nodes[1].type == "ident" and nodes[1].lower_value == "root":
        nodes = []
    elif not nodes:
        return None
    # A sibling of the element with the scope would lie outside the output.
    if nodes and nodes[0] in _SIBLINGS:
        return None
    out: list[str] = []
    before = ""
    for node in nodes:
        piece = _piece(node, before)
        if piece is None:
            return None
        out.append(piece)
        before = node.value if node in _PREFIXES else ""
    return None if before else f"{_SCOPE_MARK} {''.join(out)}".rstrip()


def _stripped(nodes: list[Any]) -> list[Any]:
    begin, end = 0, len(nodes)
    while begin < end and nodes[begin].type == "whitespace":
        begin += 1
    while end > begin and nodes[end - 1].type == "whitespace":
        end -= 1
    return nodes[begin:end]


def _piece(node: Any, before: str) -> str | None:
    """One part of a selector, after the mark ``before`` (``.``, ``:`` or none)."""
    if before == ".":
        return prefixed(node.value) if node.type == "ident" else None
    if before == ":":
        return _pseudo(node)
    if node.type == "ident":
        return str(node.value) if _TYPE.match(node.value) else None
    if node.type == "hash":
        name = prefixed(node.value)
        return f"#{name}" if name else None
    return str(node.value) if node.type == "whitespace" or node in _MARKS else None


def _pseudo(node: Any) -> str | None:
    if node.type == "ident":
        return str(node.lower_value) if node.lower_value in _PSEUDO else None
    if node.type != "function" or node.lower_name not in _PSEUDO_FUNCTIONS or not _harmless(node.arguments, "", 0):
        return None
    argument = tinycss2.serialize(node.arguments).strip()
    return f"{node.lower_name}({argument})" if _NTH.match(argument) else None
