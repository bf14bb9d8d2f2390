"""What a drawing amounts to whose parts refer to each other.

A part can be drawn again and again by reference (``use``, patterns, markers, masks, clip paths), and what is drawn
again can refer to others: forty lines amount to a thousand million shapes, and the page that shows them does not answer
any more. A browser has no bound, so it is counted here, in time that grows with the drawing's length.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

MAX_DRAWN: Final = 2_000_000
"""Shapes, and points of shapes, that a drawing may amount to."""

_MAX_PARTS: Final = 200_000
_MAX_DEPTH: Final = 500
_SURFACE: Final = 4000
"""What a filter or a mask counts as, each time that it is applied: it goes over each pixel."""

_PER_POINT: Final = 4
"""Characters of a path that a point takes at least."""

_TAG: Final = re.compile(r'<(/?)([a-zA-Z][a-zA-Z0-9]*)((?:\s[^\s"=<>]+="[^"]*")*)\s*>')
_ATTRIBUTE: Final = re.compile(r'([^\s"=<>]+)="([^"]*)"')
_URL: Final = re.compile(r"url\(#([A-Za-z0-9_-]+)\)\Z")
_REFERENCE: Final = re.compile(r'(?:(?<= id=")|(?<= href="#)|(?<=="url\(#))[A-Za-z0-9_-]+')
_OWN: Final = re.compile(r"-[0-9a-f]{16}\Z")
_VOID: Final = frozenset({"br", "col", "hr", "img", "wbr"})


class TooMuchError(ValueError):
    """A drawing amounts to more than a page can hold; the message says how."""


@dataclass
class Part:
    """An element.

    Attributes:
        tag: Its name, in small letters.
        parent: The part around it.
        points: About how many points it has; 0 if it is no shape of many.
        targets: What it refers to, by id.
        parts: How many elements it is made of.
        all_points: How many points these have.
        drawn: What it amounts to, once that is known.
    """

    tag: str
    parent: Part | None
    points: int = 0
    targets: list[tuple[str, str]] = field(default_factory=list)
    children: list[Part] = field(default_factory=list)
    parts: int = 1
    all_points: int = 0
    drawn: float | None = None
    is_open: bool = False

    def times(self, how: str) -> int:
        """How often what it refers to is drawn: once for what is within it, too, since that may inherit it."""
        if how == "href":
            return 1
        return self.parts + (self.all_points if how.startswith("marker") else 0)


class Drawing:
    """Elements in the order of their document; made by `begin` and `end`, as a parser finds them."""

    def __init__(self) -> None:
        self.root = Part("", None)
        self._around = self.root
        self._depth = 0
        self._all: list[Part] = [self.root]
        self._by_id: dict[str, Part] = {}

    def begin(self, tag: str, name: str | None, shape: str, targets: Iterable[tuple[str, str]]) -> Part:
        """Return the element that begins.

        Args:
            tag: Its name, in small letters.
            name: Its id.
            shape: What its path or its points are.
            targets: Ids that it refers to, each with the attribute or property that does.

        Raises:
            TooMuchError: there are too many of them, or elements within elements within ….
        """
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise TooMuchError("elements that are nested more than 500 deep")
        if len(self._all) > _MAX_PARTS:
            raise TooMuchError("more than 200,000 elements, and references among them")
        part = Part(tag, self._around, len(shape) // _PER_POINT, list(targets))
        self._around.children.append(part)
        self._around = part
        self._all.append(part)
        if name is not None:
            self._by_id.setdefault(name, part)
        return part

    def end(self) -> None:
        """The element that began last, of those that have not ended, ends."""
        if self._around.parent is not None:
            self._around = self._around.parent
            self._depth -= 1

    @property
    def targets(self) -> set[str]:
        """All ids that are referred to."""
        return {target for part in self._all for target, _ in part.targets}

    def check(self, most: int = MAX_DRAWN) -> None:
        """Count.

        Args:
            most: Shapes and points that it may amount to.

        Raises:
            TooMuchError: it amounts to too much, or refers to itself.
        """
        for part in reversed(self._all):  # what is within comes after what is around it
            part.all_points += part.points
            if part.parent is not None:
                part.parent.parts += part.parts
                part.parent.all_points += part.all_points
        if self._weigh() > most:
            raise TooMuchError("shapes that are drawn again and again, too many in all")

    def _weigh(self) -> float:
        """Return what all amounts to; without recursion, since a guest decides how deep it would go."""
        stack: list[tuple[Part, Iterator[Part]]] = []
        self._open(self.root, stack)
        while stack:
            part, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                part.is_open = False
                part.drawn = self._sum(part)
            elif following.is_open:
                raise TooMuchError("parts that refer to themselves")
            elif following.drawn is None:
                self._open(following, stack)
        return self.root.drawn or 0.0

    def _open(self, part: Part, stack: list[tuple[Part, Iterator[Part]]]) -> None:
        part.is_open = True
        known = (self._by_id.get(name) for name, _ in part.targets)
        stack.append((part, iter([*part.children, *(target for target in known if target is not None)])))

    def _sum(self, part: Part) -> float:
        drawn = 1.0 + part.points + sum(child.drawn or 0.0 for child in part.children)
        for name, how in part.targets:
            if (target := self._by_id.get(name)) is not None:
                surface = _SURFACE * target.parts if target.tag in {"filter", "mask"} else 0
                drawn += part.times(how) * ((target.drawn or 0.0) + surface)
        return min(drawn, 10.0 * MAX_DRAWN)


def with_own_references(html: str) -> str | None:
    """HTML in which references to parts reach only its own parts, whatever else is in the page.

    Args:
        html: It, as nh3 writes it: nested properly, values in double quotes.

    Returns:
        It, with other ids for what is referred to; ``None`` if that amounts to too much.
    """
    html = _TAG.sub(lambda tag: _REFERENCE.sub(lambda name: _OWN.sub("", name[0]), tag[0]), html)
    drawing = Drawing()
    try:
        for match in _TAG.finditer(html):
            if match[1]:
                drawing.end()
            else:
                _begin(drawing, match[2], dict(_ATTRIBUTE.findall(match[3])))
        drawing.check()
    except TooMuchError:
        return None
    suffix = "-" + hashlib.sha256(html.encode("utf-8", "replace")).hexdigest()[:16]
    wanted = drawing.targets
    return _TAG.sub(
        lambda tag: _REFERENCE.sub(lambda name: name[0] + suffix * (name[0] in wanted), tag[0]),
        html,
    )


def _begin(drawing: Drawing, tag: str, attributes: dict[str, str]) -> None:
    shape = attributes.get("d") or attributes.get("points") or ""
    targets = [(found[1], name) for name, value in attributes.items() if (found := _URL.match(value))]
    drawing.begin(tag.lower(), attributes.get("id"), shape, targets)
    if tag in _VOID:
        drawing.end()
