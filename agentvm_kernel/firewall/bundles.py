"""MIME bundles: what an output consists of, each type with its own rule, and none without one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.frame import framed, framed_script, needs_frame
from agentvm_kernel.firewall.html import clean_html, has_too_much_style
from agentvm_kernel.firewall.images import TYPES, clean_picture
from agentvm_kernel.firewall.latex import clean_latex
from agentvm_kernel.firewall.markdown import clean_markdown
from agentvm_kernel.firewall.names import HOST_MIME
from agentvm_kernel.firewall.plots import (
    clean_geojson,
    clean_json,
    clean_plotly,
    clean_vdom,
    clean_vega,
    vega_metadata,
)
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.svg import clean_svg
from agentvm_kernel.firewall.text import clean_text
from agentvm_kernel.firewall.widgets import clean_widget_view

Bundle = dict[str, object]

_MOST_TYPES: Final = 32
_SIDE: Final = 16_384
_VEGA: Final = re.compile(r"application/vnd\.vega(?:lite)?\.v[0-9]{1,2}(?:\.[0-9]{1,2})?\+json\Z")
_TEXTS: Final = frozenset({"text/plain", "application/vnd.jupyter.stdout", "application/vnd.jupyter.stderr"})
# Goes along with what libraries show as HTML or a picture as well; nothing is lost that would be seen.
_COMPANIONS: Final = re.compile(
    r"application/vnd\.(?:bokehjs_(?:load|exec)|holoviews_(?:load|exec)|dataresource\+json|jupyter\.widget-state\+json)"
)
# Its renderer draws in the page first, by rules that the diagram may change, and its labels are HTML.
_MERMAID: Final = "text/vnd.mermaid"
_SCRIPT: Final = "application/javascript"
_SVG: Final = "image/svg+xml"
_MARKUP: Final = frozenset({"text/html", "text/markdown", _SVG, _SCRIPT})
_OBJECTS: Final[Mapping[str, Callable[[object, Context], object | None]]] = {
    "application/json": clean_json,
    "application/vnd.plotly.v1+json": clean_plotly,
    "application/geo+json": clean_geojson,
    "application/vdom.v1+json": clean_vdom,
    "application/vnd.jupyter.widget-view+json": clean_widget_view,
}


def clean_bundle(data: object, metadata: object, context: Context) -> tuple[Bundle, Bundle] | None:
    """Clean what one output consists of.

    Args:
        data: Values by MIME type, of the guest.
        metadata: The same for what it says of them.
        context: Of the message.

    Returns:
        Both, or None if nothing is left that could be shown.
    """
    if not isinstance(data, dict):
        context.block(Reason.MALFORMED, "an output without data")
        return None
    about = metadata if isinstance(metadata, dict) else {}
    data = _guests(data, context)
    if context.mode is Mode.TRUSTED:
        return data, about
    if len(data) > _MOST_TYPES:
        context.block(Reason.SIZE, "an output of more than 32 types at once")
        return None
    kept: Bundle = {}
    told: Bundle = {}
    for mime, value in data.items():
        if mime in _MARKUP and mime not in context.mime_types:
            continue
        cleaned = value if mime in context.mime_types else _cleaned(mime, value, context)
        if cleaned is not None:
            kept[mime] = cleaned
            if hint := _metadata(mime, about.get(mime), context):
                told[mime] = hint
    if _MERMAID in data and not {_MERMAID, "text/plain"} & kept.keys():
        kept["text/plain"] = _text("text/plain", joined(data[_MERMAID]), context) or ""
    shown = _markup(data, about, context)
    if shown:
        kept["text/html"] = shown
    return (kept, told) if kept or not data else None


def _guests(data: Bundle, context: Context) -> Bundle:
    """Return what is left of a bundle without the types that are the host's."""
    forged = [mime for mime in data if mime.strip().lower().startswith(HOST_MIME)]
    if not forged:
        return data
    context.block(Reason.MIME, "output of a type that only the host shows")
    return {mime: value for mime, value in data.items() if mime not in forged}


def _cleaned(mime: str, value: object, context: Context) -> object | None:
    """Return what is kept of a value that stays what it is."""
    if mime in TYPES:
        return clean_picture(mime, value, context)
    if mime in _OBJECTS:
        return _OBJECTS[mime](value, context)
    if _VEGA.match(mime):
        return clean_vega(value, context)
    if mime in _TEXTS or mime == "text/latex":
        return _text(mime, joined(value), context)
    if mime == _MERMAID:
        context.block(Reason.RENDERER, "a Mermaid diagram, of which the text is shown")
    elif not _COMPANIONS.match(mime):
        context.block(Reason.MIME, "output of a type that is not known to be safe")
    return None


def _text(mime: str, text: str | None, context: Context) -> str | None:
    if text is None:
        context.block(Reason.MALFORMED, "text that is no text")
        return None
    return clean_latex(text, context) if mime == "text/latex" else clean_text(text, context)


def _markup(data: Bundle, about: Bundle, context: Context) -> str | None:
    """Return the HTML to show for what is HTML or becomes it."""
    values = {mime: joined(data[mime]) for mime in _MARKUP if mime in data and mime not in context.mime_types}
    if any(value is None for value in values.values()):
        context.block(Reason.MALFORMED, "markup that is no text")
    texts = {mime: value for mime, value in values.items() if value is not None}
    html, script = texts.get("text/html"), texts.get(_SCRIPT)
    if script is not None:
        shown = _scripted(html or "", script, context)
        if shown:
            return shown
    if html is not None:
        rich = context.mode is not Mode.STRICT and (needs_frame(html) or has_too_much_style(html))
        return framed(html, context) or None if rich else clean_html(html, context)
    if _SVG in texts:
        return clean_svg(texts[_SVG], _size(about.get(_SVG)), context)
    return clean_markdown(texts["text/markdown"], context) if "text/markdown" in texts else None


def _scripted(html: str, script: str, context: Context) -> str | None:
    if context.mode is Mode.STRICT:
        context.block(Reason.SCRIPT, "a script")
        return None
    return framed_script(script, context, html) or None


def _metadata(mime: str, hint: object, context: Context) -> Bundle:
    """Return what is passed on of what the guest says about a value: sizes and whether a tree is open."""
    if mime in context.mime_types:
        return hint if isinstance(hint, dict) else {}
    if _VEGA.match(mime):
        return vega_metadata()
    if not isinstance(hint, dict):
        return {}
    if mime in TYPES:
        return _size(hint)
    expanded = hint.get("expanded")
    return {"expanded": expanded} if mime == "application/json" and isinstance(expanded, bool) else {}


def _size(hint: object) -> Bundle:
    given = hint if isinstance(hint, dict) else {}
    sizes = {name: given.get(name) for name in ("width", "height")}
    return {
        name: value
        for name, value in sizes.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _SIDE
    }


def joined(value: object) -> str | None:
    """Return a text, which notebooks also keep as a list of lines; None if it is neither."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "".join(value)
    return value if isinstance(value, str) else None
