"""The state of Jupyter widgets: which classes, which traits, and what may be in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.html import clean_html
from agentvm_kernel.firewall.latex import clean_latex
from agentvm_kernel.firewall.names import HOST_PREFIX
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.traits import MEDIA_FORMAT, NUMBER_FORMAT, TRAITS

State = dict[str, object]
CleanOutput = Callable[[dict[str, object], Context], dict[str, object] | None]
"""Cleans one output as a notebook stores it (``output_type`` and the rest), for the Output widget."""

_VERSION: Final = re.compile(r"[~^]?\d{1,4}(?:\.\d{1,4}){0,2}\Z")
_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,128}\Z")
_CORE: Final = {
    "@jupyter-widgets/base": frozenset({"Layout", "Style", "Widget", "DOMWidget"}),
    "@jupyter-widgets/output": frozenset({"Output"}),
    "@jupyter-widgets/controls": frozenset(
        [
            "Accordion",
            "Audio",
            "BoundedFloatText",
            "BoundedIntText",
            "Box",
            "Button",
            "ButtonStyle",
            "Checkbox",
            "CheckboxStyle",
            "ColorPicker",
            "ColorsInput",
            "Combobox",
            "Controller",
            "ControllerAxis",
            "ControllerButton",
            "DatePicker",
            "Datetime",
            "DatetimePicker",
            "Description",
            "DescriptionStyle",
            "DirectionalLink",
            "Dropdown",
            "FileUpload",
            "FloatLogSlider",
            "FloatProgress",
            "FloatRangeSlider",
            "FloatSlider",
            "FloatText",
            "FloatsInput",
            "GridBox",
            "HBox",
            "HTML",
            "HTMLMath",
            "HTMLMathStyle",
            "HTMLStyle",
            "Image",
            "IntProgress",
            "IntRangeSlider",
            "IntSlider",
            "IntText",
            "IntsInput",
            "Label",
            "LabelStyle",
            "Link",
            "NaiveDatetime",
            "Password",
            "Play",
            "Progress",
            "ProgressStyle",
            "RadioButtons",
            "Select",
            "SelectMultiple",
            "SelectionRangeSlider",
            "SelectionSlider",
            "SliderStyle",
            "Stack",
            "Tab",
            "TagsInput",
            "Text",
            "TextStyle",
            "Textarea",
            "Time",
            "ToggleButton",
            "ToggleButtonStyle",
            "ToggleButtons",
            "ToggleButtonsStyle",
            "VBox",
            "Valid",
            "Video",
        ]
    ),
}
_IDENTITY: Final = ("_model_module", "_model_name", "_model_module_version")
_VIEW: Final = ("_view_module", "_view_name", "_view_module_version")
_MARKUP: Final = frozenset({"HTMLModel", "HTMLMathModel"})
_MEDIA: Final = frozenset({"ImageModel", "AudioModel", "VideoModel"})
_LINKS: Final = frozenset({"LinkModel", "DirectionalLinkModel"})
_LINKED: Final = frozenset(
    ["value", "index", "min", "max", "step", "selected_index", "disabled", "playing", "pressed", "connected"]
)


@dataclass
class Model:
    """A widget that the front end has.

    Attributes:
        module: Its model's module.
        name: Its model's class.
        version: Of the module.
        core: Whether it is one of ipywidgets' own; others are passed on unchecked, as the user configured.
        raw: Whether its description was let through as text, and so may not be declared HTML.
        html: Whether its description is HTML.
    """

    module: str
    name: str
    version: str
    core: bool
    raw: bool = False
    html: bool = False


def known_model(state: Mapping[str, object], context: Context) -> Model | None:
    """Tell the model of a new widget from its state.

    Returns:
        None if its module or class is not allowed, which has been noted.
    """
    module, name, version = (state.get(key) for key in _IDENTITY)
    if not (isinstance(module, str) and isinstance(name, str) and isinstance(version, str)):
        context.block(Reason.MALFORMED, "a widget without a class")
        return None
    if context.mode is Mode.TRUSTED or module in context.widget_modules:
        return Model(module, name, version, core=False)
    if name.removesuffix("Model") in _CORE.get(module, ()) and name.endswith("Model") and _VERSION.match(version):
        return Model(module, name, version, core=True)
    context.block(Reason.WIDGET, "a widget of a module or class that is not allowed")
    return None


def clean_state(
    model: Model, state: Mapping[str, object], models: Mapping[str, Model], output: CleanOutput, context: Context
) -> State:
    """Take out of a state, or of an update of one, what may not reach the front end.

    Args:
        model: The widget; remembers what its description is.
        state: Traits by name.
        models: The other widgets, by comm id.
        output: Cleans what an Output widget holds.
        context: Of the message.
    """
    if not model.core:
        return {name: value for name, value in state.items() if name not in _IDENTITY} | _identity(model, state)
    cleaned = _identity(model, state) | _view(state, context) | _description(model, state, context)
    for name, value in state.items():
        if name in _IDENTITY or name in _VIEW or (name.startswith("description") and name != "description_width"):
            continue
        if name in {"outputs", "source", "target"}:
            cleaned |= _special(model, name, value, models, output, context)
        elif name == "value" and (model.name in _MARKUP or model.name == "LabelModel"):
            cleaned["value"] = _markup(model, value, context)
        elif name == "format":
            cleaned |= _if(_format_fits(model, value), name, value, context)
        elif name == "value" and model.name == "FileUploadModel":
            cleaned["value"] = []
        elif name == "readout" and model.name == "ValidModel":
            cleaned |= _if(isinstance(value, str), name, value, context)
        elif name in TRAITS:
            cleaned |= _if(TRAITS[name](value), name, value, context)
        else:
            context.block(Reason.WIDGET, "a trait that is not known")
    return cleaned


def _identity(model: Model, state: Mapping[str, object]) -> State:
    known = dict(zip(_IDENTITY, (model.module, model.name, model.version), strict=True))
    return {name: value for name, value in known.items() if name in state}


def _view(state: Mapping[str, object], context: Context) -> State:
    """Return the view's class if it is one that belongs to a core module; a change of a part of it is no change."""
    if not any(name in state for name in _VIEW):
        return {}
    module, name, version = (state.get(key) for key in _VIEW)
    if name is None and (module is None or module in _CORE) and (version is None or _is_version(version)):
        return {key: state[key] for key in _VIEW if key in state}
    if isinstance(name, str) and isinstance(module, str) and module in _CORE and _is_version(version):
        base = name.removesuffix("View")
        if base in _CORE[module] | {"Progress", "Datetime", "Time"}:
            return {key: state[key] for key in _VIEW}
    context.block(Reason.WIDGET, "a view that is not allowed")
    return {}


def _is_version(value: object) -> bool:
    return isinstance(value, str) and _VERSION.match(value) is not None


def _description(model: Model, state: Mapping[str, object], context: Context) -> State:
    cleaned: State = {}
    text = state.get("description")
    if "description_allow_html" in state:
        model.html = state["description_allow_html"] is True and (isinstance(text, str) or not model.raw)
        if model.html is not (state["description_allow_html"] is True):
            context.block(Reason.MARKUP, "a description that became HTML")
        cleaned["description_allow_html"] = model.html
    if isinstance(text, str):
        model.raw = not model.html and "<" in text
        cleaned["description"] = (clean_html(text, context) or "") if model.html else _typeset(text, context)
    return cleaned


def _typeset(text: str, context: Context) -> str:
    """Clean a text in which the front end typesets formulas."""
    return (clean_latex(text, context) or "") if "\\" in text else text


def _markup(model: Model, value: object, context: Context) -> str:
    if not isinstance(value, str):
        return ""
    return (clean_html(value, context) or "") if model.name in _MARKUP else _typeset(value, context)


def _format_fits(model: Model, value: object) -> bool:
    return MEDIA_FORMAT(value) if model.name in _MEDIA else NUMBER_FORMAT(value)


def _if(fine: bool, name: str, value: object, context: Context) -> State:
    if fine:
        return {name: value}
    context.block(Reason.WIDGET, "the value of a widget's trait")
    return {}


def _special(
    model: Model, name: str, value: object, models: Mapping[str, Model], output: CleanOutput, context: Context
) -> State:
    if name != "outputs":
        return _if(model.name in _LINKS and _is_end(value, models), name, value, context)
    if model.name != "OutputModel" or not isinstance(value, list):
        return _if(False, name, value, context)
    outputs = [output(item, context) for item in value if isinstance(item, dict)]
    return {name: [item for item in outputs if item is not None]}


def _is_end(value: object, models: Mapping[str, Model]) -> bool:
    """Whether a link may begin or end there.

    A link copies a value in the browser, behind the firewall: never to or from a trait that is markup.
    """
    if value is None:
        return True
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)):
        return False
    linked = models.get(str(value[0]).removeprefix("IPY_MODEL_"))
    if linked is None or not linked.core or value[1] not in _LINKED:
        return False
    return linked.name not in _MARKUP | _MEDIA | {"LabelModel", "FileUploadModel"}


def buffer_fits(model: Model, path: object) -> bool:
    """Whether a binary value may go where a message says: the value of an image, audio or video."""
    if not isinstance(path, list) or any(isinstance(part, str) and part.startswith("__") for part in path):
        return False
    if not model.core:
        return all(part not in {"constructor", "prototype"} for part in path)
    return model.name in _MEDIA and path == ["value"]


def clean_widget_view(value: object, context: Context) -> dict[str, object] | None:
    """Clean ``application/vnd.jupyter.widget-view+json``, which names a widget to show."""
    name = value.get("model_id") if isinstance(value, dict) else None
    if isinstance(name, str) and name.startswith(HOST_PREFIX):
        context.block(Reason.MESSAGE, "a view of one of the host's own widgets")
        return None
    if isinstance(name, str) and _ID.match(name):
        return {"version_major": 2, "version_minor": 0, "model_id": name}
    context.block(Reason.MALFORMED, "a widget view without a widget")
    return None
