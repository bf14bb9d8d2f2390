"""The comm guard: core widgets pass as they are, and nothing that the front end would run or fetch does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ipywidgets import Widget  # type: ignore[import-untyped]

from agentvm_kernel.firewall.comms import CommGuard, Passed
from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.widgets import clean_widget_view

CONTROLS = "@jupyter-widgets/controls"


class Bed:
    def __init__(self, mode: Mode = Mode.STANDARD, **options: tuple[str, ...]) -> None:
        self.reasons: list[Reason] = []
        self.context = Context(mode, lambda reason, words: self.reasons.append(reason), **options)
        self.guard = CommGuard(lambda output, context: {"output_type": "stream", "name": "stdout", "text": "cleaned"})

    def open(self, model: str, name: str = "w", buffers: tuple[bytes, ...] = (), **state: object) -> Passed | None:
        given = {"_model_module": CONTROLS, "_model_name": model, "_model_module_version": "2.0.0"} | state
        paths = [["value"]] * len(buffers)
        content = {"comm_id": name, "target_name": "jupyter.widget", "data": {"state": given, "buffer_paths": paths}}
        return self.guard.opened(content, {"version": "2.1.0"}, list(buffers), self.context)

    def update(self, name: str = "w", **state: object) -> dict[str, object]:
        content = {"comm_id": name, "data": {"method": "update", "state": state}}
        passed = self.guard.message(content, {}, [], self.context)
        assert passed is not None
        return passed.content["data"]["state"]  # type: ignore[index, no-any-return]


def state_of(passed: Passed | None) -> dict[str, object]:
    assert passed is not None
    return passed.content["data"]["state"]  # type: ignore[index, no-any-return]


def core_widgets() -> list[type[Widget]]:
    from ipywidgets import widgets

    found = {cls for cls in vars(widgets).values() if isinstance(cls, type) and issubclass(cls, Widget)}
    abstract = {"Widget", "DOMWidget", "CoreWidget", "ValueWidget", "Style", "Controller", "Axis"}
    needy = {"Link", "DirectionalLink", "interactive", "GridspecLayout"}
    return sorted((cls for cls in found if cls.__name__ not in abstract | needy), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", core_widgets(), ids=lambda cls: cls.__name__)
def test_a_core_widget_passes_as_it_is(cls: type[Widget]) -> None:
    options = {"options": ["a", "b"]} if "options" in cls.class_trait_names() else {}
    widget = cls(**options)
    bed = Bed()
    buffers = (b"",) if cls.__name__ in {"Image", "Audio", "Video"} else ()
    state = {name: value for name, value in widget.get_state().items() if not isinstance(value, bytes | memoryview)}
    state = {name: list(value) if isinstance(value, tuple) else value for name, value in state.items()}
    passed = bed.open(str(state["_model_name"]), buffers=buffers, **state)
    assert state_of(passed) == state
    assert bed.reasons == []
    assert passed is not None
    assert passed.buffers == list(buffers)


def test_the_html_of_a_widget_is_cleaned_when_it_opens_and_when_it_changes() -> None:
    bed = Bed()
    assert "onerror" not in str(bed.open("HTMLModel", value="<b>x</b><img src=x onerror=alert(1)>"))
    assert "onerror" not in str(bed.update(value="<img src=x onerror=alert(1)>"))


@pytest.mark.parametrize(
    ("model", "trait", "value"),
    [
        ("ImageModel", "format", "url"),
        ("ImageModel", "format", "svg+xml"),
        ("VideoModel", "format", "url"),
        ("ButtonModel", "_dom_classes", ["jp-Dialog"]),
        ("ButtonModel", "icon", "x\tjp-Dialog"),
        ("ToggleButtonsModel", "icons", ["x jp-Dialog"]),
        ("HTMLStyleModel", "background", "url(https://evil.example/x)"),
        ("HTMLStyleModel", "background", "ur\\6c(https://evil.example/x)"),
        ("HTMLStyleModel", "background", "image-set('https://evil.example/x' 1x)"),
        ("IntSliderModel", "readout_format", "<img src=x onerror=alert(1)>"),
        ("VBoxModel", "children", ["IPY_MODEL_<img src=x>"]),
        ("ButtonModel", "_view_module", "evil"),
        ("ButtonModel", "_esm", "export default {}"),
    ],
)
def test_a_hostile_value_of_a_trait_is_taken_out(model: str, trait: str, value: object) -> None:
    bed = Bed()
    assert trait not in state_of(bed.open(model, **{trait: value}))  # type: ignore[arg-type]
    assert trait not in bed.update(**{trait: value})  # type: ignore[arg-type]
    assert Reason.WIDGET in bed.reasons


def test_a_layout_does_not_draw_over_its_surroundings() -> None:
    bed = Bed()
    layout = bed.open("LayoutModel", _model_module="@jupyter-widgets/base", margin="-900px 0", top="-9px", width="50%")
    assert {"margin", "top"}.isdisjoint(state_of(layout))
    assert state_of(layout)["width"] == "50%"


def test_a_widget_of_another_module_is_blocked_unless_it_is_configured() -> None:
    assert Bed().open("AnyModel", _model_module="anywidget", _esm="alert(1)") is None
    allowed = Bed(widget_modules=("anywidget",)).open("AnyModel", _model_module="anywidget", _esm="x")
    assert state_of(allowed)["_esm"] == "x"


def test_a_description_let_through_as_text_does_not_become_html() -> None:
    bed = Bed()
    bed.open("ButtonModel", description="<img src=x onerror=alert(1)>", description_allow_html=False)
    assert bed.update(description_allow_html=True) == {"description_allow_html": False}
    both = bed.update(description="<img src=x onerror=alert(1)>", description_allow_html=True)
    assert "onerror" not in str(both)
    assert "onerror" not in str(bed.update(description="<img src=x onerror=alert(1)>"))


def test_a_link_copies_numbers_but_never_into_markup() -> None:
    bed = Bed()
    for model, name in (("PlayModel", "p"), ("IntSliderModel", "s"), ("TextModel", "t"), ("HTMLModel", "h")):
        bed.open(model, name)
    fine = bed.open("LinkModel", "l", source=["IPY_MODEL_p", "value"], target=["IPY_MODEL_s", "value"])
    bad = bed.open("LinkModel", "m", source=["IPY_MODEL_t", "value"], target=["IPY_MODEL_h", "value"])
    assert {"source", "target"} <= state_of(fine).keys()
    assert "target" not in state_of(bad)
    assert bed.open("HTMLModel", "s") is None, "an id keeps its class"


def test_nested_outputs_are_cleaned() -> None:
    outputs = [{"output_type": "display_data", "data": {"text/html": "<script>"}}]
    state = state_of(Bed().open("OutputModel", _model_module="@jupyter-widgets/output", outputs=outputs))
    assert state["outputs"] == [{"output_type": "stream", "name": "stdout", "text": "cleaned"}]


def test_a_comm_of_another_target_and_what_follows_on_it_are_blocked() -> None:
    bed = Bed()
    content = {"comm_id": "x", "target_name": "evil", "target_module": "https://evil.example", "data": {}}
    assert bed.guard.opened(content, {}, [], bed.context) is None
    assert bed.guard.message({"comm_id": "x", "data": {}}, {}, [], bed.context) is None
    assert bed.reasons == [Reason.COMM, Reason.COMM]


def test_no_module_to_load_and_no_place_for_binary_data_but_media() -> None:
    bed = Bed()
    data = {
        "state": {"_model_module": CONTROLS, "_model_name": "TextModel", "_model_module_version": "2.0.0"},
        "buffer_paths": [["__proto__", "x"], ["value"]],
    }
    content = {"comm_id": "x", "target_name": "jupyter.widget", "target_module": "m", "data": data}
    passed = bed.guard.opened(content, {}, [b"1", b"2"], bed.context)
    assert passed is not None
    assert "target_module" not in passed.content
    assert passed.buffers == []


def test_a_class_that_is_none_is_no_class() -> None:
    assert "_dom_classes" not in state_of(Bed().open("TextModel", _dom_classes=[None]))


def test_the_states_of_all_widgets_are_cleaned() -> None:
    bed = Bed()
    bed.guard.opened_by_client({"comm_id": "c", "target_name": "jupyter.widget.control"})
    entry = {"model_name": "HTMLModel", "model_module": CONTROLS, "model_module_version": "2.0.0"}
    evil = {"model_name": "AnyModel", "model_module": "anywidget", "model_module_version": "0.9", "state": {}}
    states = {"a": entry | {"state": {"value": "<script>alert(1)</script>ok"}}, "b": evil}
    data = {"method": "update_states", "states": states, "buffer_paths": []}
    passed = bed.guard.message({"comm_id": "c", "data": data}, {}, [], bed.context)
    assert passed is not None
    assert "script" not in str(passed.content)
    assert "anywidget" not in str(passed.content)
    assert "ok" in str(passed.content)


@pytest.mark.parametrize(("mode", "passes"), [(Mode.STANDARD, True), (Mode.STRICT, False)])
def test_who_opened_a_comm_hears_what_the_guest_says_on_it(mode: Mode, passes: bool) -> None:
    bed = Bed()
    context = replace(bed.context, mode=mode)
    said = {"comm_id": "c", "data": {"n": 1}}
    assert bed.guard.message(said, {}, [b"x"], context) is None
    bed.guard.opened_by_client({"comm_id": "c", "target_name": "own"})
    heard = bed.guard.message(said, {}, [b"x"], context)
    assert heard == (Passed(said, {}, [b"x"]) if passes else None)


def test_comms_are_bounded_and_end() -> None:
    bed = Bed()
    bed.guard = CommGuard(lambda output, context: output, most=1)
    assert bed.open("TextModel", "a") is not None
    assert bed.open("TextModel", "b") is None
    assert bed.guard.closed({"comm_id": "a"}, bed.context) == {"comm_id": "a", "data": {}}
    assert bed.guard.closed({"comm_id": "a"}, bed.context) is None


def test_a_widget_view_names_a_widget_and_nothing_else() -> None:
    context = Bed().context
    assert clean_widget_view({"model_id": "a", "x": 1}, context) == {
        "version_major": 2,
        "version_minor": 0,
        "model_id": "a",
    }
    assert clean_widget_view({"model_id": "<img>"}, context) is None


CUSTOM = [
    ({"do": "blur"}, True),
    ({"do": "click"}, True),
    ({"do": "focus"}, False),
    ({"html": "<b>"}, False),
    ("x", False),
]


@pytest.mark.parametrize(("said", "passes"), CUSTOM)
def test_a_core_widget_is_told_no_more_than_to_click_or_to_let_go(said: object, passes: bool) -> None:
    bed = Bed()
    bed.open("TextModel")
    content = {"comm_id": "w", "data": {"method": "custom", "content": said}}
    heard = bed.guard.message(content, {}, [b"x"], bed.context)
    assert heard == (Passed({"comm_id": "w", "data": content["data"]}, {}, []) if passes else None)
    assert bed.reasons == ([] if passes else [Reason.WIDGET])


def test_a_configured_widget_hears_its_own_messages() -> None:
    bed = Bed(widget_modules=("anywidget",))
    bed.open("AnyModel", _model_module="anywidget")
    data = {"method": "custom", "content": {"kind": "x"}}
    assert bed.guard.message({"comm_id": "w", "data": data}, {}, [b"x"], bed.context) == Passed(
        {"comm_id": "w", "data": data}, {}, [b"x"]
    )


@pytest.mark.parametrize(
    "content",
    [
        {"comm_id": "<b>", "target_name": "jupyter.widget", "data": {}},
        {"comm_id": "x", "target_name": 5, "data": {}},
        {"comm_id": "x", "target_name": "jupyter.widget", "data": []},
        {"comm_id": "x", "target_name": "jupyter.widget", "data": {"state": []}},
        {"comm_id": "x", "target_name": "jupyter.widget", "data": {"state": {}, "method": "run"}},
        {"comm_id": "x", "target_name": "jupyter.widget", "data": {"state": {"_model_name": "TextModel"}}},
    ],
)
def test_a_comm_that_makes_no_sense_is_not_opened(content: dict[str, object]) -> None:
    bed = Bed()
    assert bed.guard.opened(content, {}, [], bed.context) is None
    assert bed.reasons == [Reason.MALFORMED]
    assert bed.guard.message({"comm_id": "x", "data": {}}, {}, [], bed.context) is None


def test_a_target_that_the_user_allows_passes_unchanged_in_both_directions() -> None:
    bed = Bed()
    bed.guard = CommGuard(lambda output, context: output, ("own",))
    data = {"n": 1}
    content = {"comm_id": "x", "target_name": "own", "data": data}
    assert bed.guard.opened(content, {"m": 1}, [b"x"], bed.context) == Passed(content, {"m": 1}, [b"x"])
    said = {"comm_id": "x", "data": data}
    assert bed.guard.message(said, {"m": 1}, [b"x"], bed.context) == Passed(said, {"m": 1}, [b"x"])


def test_an_answer_with_the_states_keeps_their_pictures_and_nothing_else_binary() -> None:
    bed = Bed()
    bed.guard.opened_by_client({"comm_id": "c", "target_name": "jupyter.widget.control"})
    entry = {"model_module": CONTROLS, "model_module_version": "2.0.0", "state": {}}
    states = {"i": entry | {"model_name": "ImageModel"}, "t": entry | {"model_name": "TextModel"}, "<b>": entry, "x": 5}
    paths = [["i", "value"], ["t", "value"], ["i", "format"], [5], "x", []]
    data = {"method": "update_states", "states": states, "buffer_paths": paths}
    passed = bed.guard.message({"comm_id": "c", "data": data}, {}, [b"1", b"2", b"3", b"4", b"5", b"6"], bed.context)
    assert passed is not None
    told: dict[str, object] = passed.content["data"]  # type: ignore[assignment]
    assert set(told["states"]) == {"i", "t"}  # type: ignore[call-overload]
    assert (told["buffer_paths"], passed.buffers) == ([["i", "value"]], [b"1"])
    assert bed.guard.message({"comm_id": "c", "data": {"method": "x"}}, {}, [], bed.context) is None


def test_comms_of_clients_are_bounded_and_old_ones_end() -> None:
    bed = Bed()
    for number in range(1001):
        bed.guard.opened_by_client({"comm_id": f"c{number}", "target_name": "own"})
    bed.guard.opened_by_client({"comm_id": 5, "target_name": "own"})
    assert bed.guard.message({"comm_id": "c0", "data": {}}, {}, [], bed.context) is None
    assert bed.guard.message({"comm_id": "c1", "data": {}}, {}, [], bed.context) is not None
    assert bed.guard.closed({"comm_id": "c1"}, bed.context) == {"comm_id": "c1", "data": {}}


def test_classes_of_widgets_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentvm_kernel.firewall.comms._MOST_MODELS", 2)
    bed = Bed()
    bed.open("TextModel", "a")
    bed.guard.closed({"comm_id": "a"}, bed.context)
    for name in ("b", "c", "d"):
        assert bed.open("TextModel", name) is not None
    assert bed.open("HTMLModel", "a") is not None, "the oldest that is closed has given way"
    assert bed.open("HTMLModel", "b") is None


@pytest.mark.parametrize(
    ("model", "trait", "value", "kept"),
    [
        ("HTMLModel", "value", 5, ""),
        ("LabelModel", "value", r"$\href{javascript:x}{y}$", "$ href{javascript:x}{y}$"),
        ("FileUploadModel", "value", [{"name": "x"}], []),
        ("ValidModel", "readout", "no", "no"),
        ("PlayModel", "_view_name", None, None),
        ("ColorPickerModel", "value", "red", "red"),
        ("DatePickerModel", "value", {"year": 2020, "month": 1, "date": 1}, {"year": 2020, "month": 1, "date": 1}),
        ("DatePickerModel", "min", {"year": 2020}, {"year": 2020}),
        ("IntSliderModel", "value", [1, 2], [1, 2]),
    ],
)
def test_a_value_stays_or_becomes_harmless(model: str, trait: str, value: object, kept: object) -> None:
    assert state_of(Bed().open(model, **{trait: value}))[trait] == kept  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "trait", "value"),
    [
        ("ValidModel", "readout", 5),
        ("LinkModel", "source", "IPY_MODEL_x"),
        ("LinkModel", "source", ["IPY_MODEL_x", "value"]),
        ("TextModel", "source", None),
        ("TextModel", "outputs", []),
        ("DatePickerModel", "min", {"<b>": 1}),
        ("TextModel", "value", {"__proto__": 1}),
        ("TextModel", "value", [[1]]),
        ("LayoutModel", "width", 5),
    ],
)
def test_a_value_that_fits_no_trait_is_taken_out(model: str, trait: str, value: object) -> None:
    module = "@jupyter-widgets/base" if model == "LayoutModel" else CONTROLS
    bed = Bed()
    assert trait not in state_of(bed.open(model, _model_module=module, **{trait: value}))  # type: ignore[arg-type]
    assert bed.reasons == [Reason.WIDGET]


def test_binary_data_of_a_configured_widget_goes_anywhere_but_into_prototypes() -> None:
    bed = Bed(widget_modules=("anywidget",))
    state = {"_model_module": "anywidget", "_model_name": "AnyModel", "_model_module_version": "1"}
    paths: list[object] = [["data", 0], ["constructor", "x"], "x"]
    content = {"comm_id": "a", "target_name": "jupyter.widget", "data": {"state": state, "buffer_paths": paths}}
    passed = bed.guard.opened(content, {}, [b"1", b"2", b"3"], bed.context)
    assert passed is not None
    assert passed.buffers == [b"1"]
