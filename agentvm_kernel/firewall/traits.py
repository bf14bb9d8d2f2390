"""Which values the traits of the core widgets may have: everything that the front end writes into markup or styles."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from agentvm_kernel.firewall.names import HOST_PREFIX

Check = Callable[[object], bool]

_REFERENCE: Final = re.compile(rf"IPY_MODEL_(?!{HOST_PREFIX})[0-9A-Za-z_-]{{1,128}}\Z")
_WORD: Final = re.compile(r"[A-Za-z_-]{0,32}\Z")
_ICON: Final = re.compile(r"(?:[a-z0-9-]{1,64}(?: [a-z0-9-]{1,64}){0,4})?\Z")
_ONE_ICON: Final = re.compile(r"[a-z0-9-]{0,64}\Z")
# What d3-format accepts, without a fill character: it puts what it refuses into an error that is shown as markup.
_FORMAT: Final = re.compile(r"[<>=^]?[-+( ]?[$#]?0?\d{0,3},?(?:\.\d{1,3})?~?[A-Za-z%]?\Z")
_CSS: Final = re.compile(r"[-\w\s.,%#()'\"/+*]{0,500}\Z")
_FUNCTION: Final = re.compile(r"([-\w]*)\s*\(")
_FUNCTIONS: Final = frozenset(
    {"", "rgb", "rgba", "hsl", "hsla", "calc", "min", "max", "minmax", "repeat", "fit-content"}
)
_SHIFT: Final = re.compile(r"(?:^|\s|\()-\s*[\d.(c]|calc|min|max")
_STILL: Final = re.compile(r"(?:0[a-z%]*|auto|initial|unset|inherit)?\Z")
_CLASS: Final = re.compile(r"(?:widget|jupyter|mod)-[A-Za-z0-9_-]{1,64}\Z")
_MEDIA: Final = frozenset(
    [
        "png",
        "jpeg",
        "jpg",
        "gif",
        "webp",
        "bmp",
        "x-icon",
        "mp4",
        "webm",
        "ogg",
        "ogv",
        "quicktime",
        "mpeg",
        "mp3",
        "wav",
        "x-wav",
        "flac",
        "aac",
        "m4a",
    ]
)


def is_text(value: object) -> bool:
    """Whether it is text or nothing; for traits that the front end shows as text."""
    return value is None or isinstance(value, str)


def is_reference(value: object) -> bool:
    """Whether it names another widget, or nothing."""
    return value is None or (isinstance(value, str) and _REFERENCE.match(value) is not None)


def is_css(value: object) -> bool:
    """Whether it is one CSS value that loads nothing."""
    if value is None:
        return True
    if not isinstance(value, str) or _CSS.match(value) is None:
        return False
    return all(name.lower() in _FUNCTIONS for name in _FUNCTION.findall(value))


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def is_plain(value: object) -> bool:
    """Whether it is a scalar, or a list or a flat object of scalars."""
    if isinstance(value, list):
        return all(map(_is_scalar, value))
    if isinstance(value, dict):
        return all(_is_scalar(item) and not key.startswith("__") for key, item in value.items())
    return _is_scalar(value)


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def _is_when(value: object) -> bool:
    """Whether it is a number, or a date or time in parts, or a word such as ``any``."""
    return _is_number(value) or (isinstance(value, str) and _WORD.match(value) is not None) or _is_parts(value)


def _is_parts(value: object) -> bool:
    return isinstance(value, dict) and all(_is_number(item) and _WORD.match(key) for key, item in value.items())


def _listed(check: Check) -> Check:
    return lambda value: isinstance(value, list) and None not in value and all(map(check, value))


def _matching(pattern: re.Pattern[str]) -> Check:
    return lambda value: value is None or (isinstance(value, str) and pattern.match(value) is not None)


def _is_margin(value: object) -> bool:
    """Whether it is a margin that moves nothing over its surroundings."""
    return is_css(value) and (value is None or _SHIFT.search(str(value)) is None)


def _is_media(value: object) -> bool:
    return isinstance(value, str) and value in _MEDIA


def _table(*rows: tuple[Check, str]) -> dict[str, Check]:
    return {name: check for check, names in rows for name in names.split()}


TRAITS: Final[Mapping[str, Check]] = _table(
    (
        _is_number,
        "disabled tabbable indent readout continuous_update multiple playing repeat show_repeat autoplay controls loop"
        " ensure_option allow_duplicates concise connected pressed timestamp interval rows base selected_index"
        " _view_count",
    ),
    (_is_when, "min max step"),
    (is_text, "tooltip placeholder accept error mapping name readout_text"),
    (is_plain, "index value allowed_tags options"),
    (_listed(is_text), "_options_labels titles tooltips"),
    (is_reference, "layout style"),
    (_listed(is_reference), "children axes buttons"),
    (_matching(_WORD), "box_style button_style bar_style tag_style orientation behavior"),
    (_matching(_FORMAT), "readout_format"),
    (_matching(_ICON), "icon"),
    (_listed(_matching(_ONE_ICON)), "icons"),
    (_listed(_matching(_CLASS)), "_dom_classes"),
    (_is_margin, "margin"),
    (_matching(_STILL), "top right bottom left"),
    (
        is_css,
        "align_content align_items align_self border border_top border_right border_bottom border_left display flex"
        " flex_flow height justify_content justify_items max_height max_width min_height min_width overflow order"
        " padding visibility width object_fit object_position grid_auto_columns grid_auto_flow grid_auto_rows grid_gap"
        " grid_template_rows grid_template_columns grid_template_areas grid_row grid_column grid_area button_color"
        " font_family font_size font_style font_variant font_weight text_color text_decoration background"
        " description_width bar_color handle_color button_width",
    ),
    (_matching(re.compile(r"[0-9A-Za-z_-]{0,128}\Z")), "msg_id"),
)
"""The check of each trait that needs no more than a look at its value; others are `widgets`' affair."""

MEDIA_FORMAT: Final[Check] = _is_media
"""Image, audio and video formats; not ``url``, which fetches, and not SVG, which can be opened as a page."""

NUMBER_FORMAT: Final[Check] = _matching(_FORMAT)
"""A number format of d3."""
