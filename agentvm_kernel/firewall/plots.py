"""What the renderers of JSON outputs get to see: plots and trees without anything that is fetched or run."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.names import words
from agentvm_kernel.firewall.reasons import Reason

_DEEPEST: Final = 100
_LONGEST_TEXT: Final = 1_000_000
"""Of a text with markup; numbers come in one of any length, too."""

_POLLUTING: Final = frozenset({"__proto__", "constructor", "prototype"})
_PICTURE: Final = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*\Z")
_MARKUP: Final = re.compile(r"<(?:[^<>]*>|[a-zA-Z/!?])")
_PARTS: Final = re.compile(r"(<[^<>]*>)")
_TAG: Final = re.compile(r"</?(?:b|i|br|sub|sup|em|strong|s|u|span|a|extra)\s*/?>\Z", re.IGNORECASE)
_LOADING: Final = re.compile(r"url\s*\(|image-set\s*\(|@import|javascript\s*:", re.IGNORECASE)

_PLOTLY_DROPPED: Final = frozenset({"mapbox", "map", "plotlyServerURL", "topojsonURL", "mapboxAccessToken"})
_PLOTLY_CONFIG: Final = frozenset(
    {"responsive", "displayModeBar", "displaylogo", "scrollZoom", "staticPlot", "doubleClick", "modeBarButtonsToRemove"}
)
_PLOTLY_FETCHING: Final = re.compile(r"scattergeo|choropleth|(?:scatter|density|choropleth)map(?:box)?\Z")
_VEGA_DROPPED: Final = frozenset({"url", "href", "usermeta", "loader", "baseURL", "bind"})
# Of what is drawn, two properties lead to a fetch: an image's address, and a cursor, which is a style. Neither may be
# computed, neither by an encoding nor by a transform or a trigger on the marks themselves.
_VEGA_LAYOUTS: Final = frozenset(
    {"force", "geopath", "geopoint", "geoshape", "label", "linkpath", "voronoi", "wordcloud"}
)
_VEGA_PLACES: Final = words(
    "align angle baseline font fontSize fontStyle fontWeight opacity path shape vx vy x x0 x1 y y0 y1"
)
_VEGA_CURSOR: Final = re.compile(r"[a-z-]{1,20}\Z")
# Names by which an expression comes from a datum or an event to the page around it, makes its own what is called, or
# changes what is drawn.
_VEGA_ESCAPES: Final = re.compile(
    r"\\[ux0-7]|constructor|prototype|__proto__|toString|toJSON|valueOf|dataflow|VEGA_DEBUG|vlSelectionTuples"
    r"|ownerDocument|defaultView|currentTarget|srcElement|\bevent\s*(?:\[|\.\s*(?:view|target|path)\b)|\bcontext\b|\b(?:modify|setdata)\s*\("
)

_Leaf = Callable[[str, str], object]
_Node = Callable[[str, dict[str, object]], dict[str, object] | None]
_REFUSED: Final = object()


def _walk(
    value: object,
    key: str,
    dropped: frozenset[str],
    leaf: _Leaf,
    lost: list[str],
    node: _Node | None = None,
    depth: int = 0,
) -> object:
    """Copy a value.

    ``leaf`` is given each text and the key it stands under, and returns what is kept of it; ``node`` likewise each
    object.
    """
    if depth > _DEEPEST:
        lost.append("depth")
        return _REFUSED
    if isinstance(value, str):
        kept = leaf(key, value)
        if kept != value:
            lost.append(key)
        return kept
    if isinstance(value, list):
        items = [_walk(item, key, dropped, leaf, lost, node, depth + 1) for item in value]
        return [item for item in items if item is not _REFUSED]
    if isinstance(value, dict):
        kept_object = node(key, value) if node is not None else value
        if kept_object is not value:
            lost.append(key)
        if kept_object is None:
            return _REFUSED
        value = kept_object
        lost += [name for name in value if name in dropped or name in _POLLUTING]
        pairs = {
            name: _walk(item, name, dropped, leaf, lost, node, depth + 1)
            for name, item in value.items()
            if name not in dropped and name not in _POLLUTING
        }
        return {name: item for name, item in pairs.items() if item is not _REFUSED}
    return value


def clean_vega(value: object, context: Context) -> dict[str, object] | None:
    """Clean a Vega or Vega-Lite specification.

    Nothing it names is fetched; an expression that reaches for what is not data blocks all of it, because a plot
    without one of its expressions is another plot. Vega compiles expressions to code, so strict mode shows none.

    Returns:
        The specification, or None if it may not be shown.
    """
    if context.mode is Mode.TRUSTED and isinstance(value, dict):
        return value
    if context.mode is Mode.STRICT or not isinstance(value, dict):
        context.block(Reason.RENDERER, "a Vega plot")
        return None
    lost: list[str] = []
    escapes: list[str] = []

    def leaf(key: str, text: str) -> object:
        if key == "$schema":
            return text
        if _VEGA_ESCAPES.search(text):
            escapes.append(key)
        if _LOADING.search(text) or (key == "mark" and text == "image"):
            return _REFUSED
        return _REFUSED if key == "cursor" and not _VEGA_CURSOR.match(text) else text

    cleaned = _walk(value, "", _VEGA_DROPPED, leaf, lost, _vega_object)
    if escapes or not isinstance(cleaned, dict):
        context.block(Reason.SCRIPT, "a Vega plot whose expressions reach beyond its data")
        return None
    if lost:
        context.block(Reason.REMOTE, "what a Vega plot would load or link to")
    return cleaned


def _vega_object(key: str, value: dict[str, object]) -> dict[str, object] | None:
    if value.get("name") == "cursor" or (key in {"mark", "marks"} and value.get("type") == "image"):
        return None
    if key == "cursor" and not value.keys() <= {"value", "test"}:
        return None
    if key != "marks" or not {"on", "transform"} & value.keys():
        return value
    kept = {name: item for name, item in value.items() if name not in {"on", "transform"}}
    given = value.get("transform")
    transforms = [item for item in given if _is_layout(item)] if isinstance(given, list) else []
    if "on" not in value and transforms == given:
        return value
    return kept | ({"transform": transforms} if transforms else {})


def _is_layout(transform: object) -> bool:
    """Whether a transform of marks only moves or shapes them."""
    if not isinstance(transform, dict):
        return False
    kind = transform.get("type")
    if not isinstance(kind, str) or kind not in _VEGA_LAYOUTS:
        return False
    names = transform.get("as", [])
    return all(
        isinstance(name, str) and name in _VEGA_PLACES for name in (names if isinstance(names, list) else [names])
    )


def vega_metadata() -> dict[str, object]:
    """Return the only metadata that a Vega plot gets.

    Expressions are interpreted, not compiled to code; and what is under the pointer is told by the browser's own
    tooltip, since Vega's would fetch an image that a datum names.
    """
    return {"embed_options": {"ast": True, "actions": False, "tooltip": False}}


def clean_plotly(value: object, context: Context) -> dict[str, object] | None:
    """Clean ``application/vnd.plotly.v1+json``; maps, which Plotly fetches, are taken out.

    Returns:
        The figure, or None if it may not be shown.
    """
    if context.mode is Mode.TRUSTED and isinstance(value, dict):
        return value
    if context.mode is Mode.STRICT or not isinstance(value, dict) or not isinstance(value.get("data"), list):
        context.block(Reason.RENDERER, "a Plotly figure")
        return None
    lost: list[str] = []
    figure = {name: value[name] for name in ("data", "layout", "frames") if name in value}
    traces = [trace for trace in value["data"] if not _fetches(trace)]
    lost += ["map"] * (len(value["data"]) - len(traces))
    figure["data"] = traces
    cleaned = _walk(figure, "", _PLOTLY_DROPPED, _plotly_text, lost)
    if lost:
        context.block(Reason.REMOTE, "what a Plotly figure would load, run or link to")
    if not isinstance(cleaned, dict):
        return None
    config = value.get("config")
    given = config if isinstance(config, dict) else {}
    return cleaned | {"config": {name: given[name] for name in given if name in _PLOTLY_CONFIG}}


def _fetches(trace: object) -> bool:
    kind = trace.get("type") if isinstance(trace, dict) else None
    return isinstance(kind, str) and _PLOTLY_FETCHING.match(kind) is not None


def _plotly_text(key: str, text: str) -> object:
    """Keep of a text of Plotly's own markup the plain tags; pictures only as data."""
    if key in {"source", "geojson"}:
        return text if _PICTURE.match(text) else _REFUSED
    if len(text) > _LONGEST_TEXT and "<" in text:
        return _REFUSED
    if any(_TAG.match(tag) is None for tag in _MARKUP.findall(text)):
        # Written out, not taken out: what is left around a tag could make another.
        text = "".join(part if _TAG.match(part) else part.replace("<", "&lt;") for part in _PARTS.split(text))
    return _REFUSED if _LOADING.search(text) else text


def clean_json(value: object, context: Context) -> object | None:
    """Clean ``application/json``, which front ends show as a tree of text."""
    lost: list[str] = []
    cleaned = _walk(value, "", frozenset(), lambda key, text: text, lost)
    if lost:
        context.block(Reason.MALFORMED, "parts of a JSON output")
    return None if cleaned is _REFUSED else cleaned


def clean_geojson(value: object, context: Context) -> dict[str, object] | None:
    """Clean ``application/geo+json``: its renderer fetches map tiles, so only trusted mode shows it."""
    if context.mode is Mode.TRUSTED and isinstance(value, dict):
        return value
    context.block(Reason.REMOTE, "a GeoJSON map, whose tiles are fetched")
    return None


def clean_vdom(value: object, context: Context) -> dict[str, object] | None:
    """Clean ``application/vdom.v1+json``: it builds any element of a page, so only trusted mode shows it."""
    if context.mode is Mode.TRUSTED and isinstance(value, dict):
        return value
    context.block(Reason.RENDERER, "a virtual page (vdom)")
    return None
