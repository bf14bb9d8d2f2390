"""The cleaners of JSON outputs: plots stay, what would be fetched or run goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.plots import (
    clean_geojson,
    clean_json,
    clean_plotly,
    clean_vdom,
    clean_vega,
)
from agentvm_kernel.firewall.reasons import Reason

EVIL = "https://evil.example/x"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["url", "data", "__proto__"]), inner),
)


def context(mode: Mode = Mode.STANDARD) -> tuple[Context, list[Reason]]:
    reasons: list[Reason] = []
    return Context(mode, lambda reason, words: reasons.append(reason)), reasons


def test_plain_plots_pass_as_they_are() -> None:
    ctx, reasons = context()
    vega = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": [{"a": 1}]},
        "mark": "bar",
        "transform": [{"filter": "datum['a'] > 0"}],
    }
    assert clean_vega(vega, ctx) == vega
    plotly = {
        "data": [{"type": "heatmap", "z": [[1]], "hovertemplate": "<b>%{x}</b><extra></extra>"}],
        "layout": {"title": {"text": "a < b"}},
        "config": {"responsive": True},
    }
    assert clean_plotly(plotly, ctx) == plotly
    assert clean_json({"a": [1, "<b>"]}, ctx) == {"a": [1, "<b>"]}
    assert reasons == []


@pytest.mark.parametrize(
    "spec",
    [
        {"data": {"url": EVIL}},
        {"data": [{"name": "x", "url": {"signal": f"'{EVIL}'"}}]},
        {"marks": [{"type": "image", "encode": {"enter": {"url": {"value": EVIL}}}}]},
        {"encoding": {"href": {"value": EVIL}}},
        {"usermeta": {"embedOptions": {"loader": EVIL}}},
        {"config": {"background": f"url({EVIL})"}},
    ],
)
def test_a_vega_plot_loads_and_links_nothing(spec: dict[str, object]) -> None:
    ctx, reasons = context()
    assert EVIL not in str(clean_vega(spec, ctx))
    assert reasons == [Reason.REMOTE]


@pytest.mark.parametrize("expression", ["event.view.alert(1)", "{toString: datum.x}+''", "event['v']", "'\\u0063'"])
def test_an_expression_that_reaches_beyond_the_data_blocks_the_plot(expression: str) -> None:
    ctx, reasons = context()
    assert clean_vega({"signals": [{"name": "s", "update": expression}]}, ctx) is None
    assert reasons == [Reason.SCRIPT]


@pytest.mark.parametrize(
    "figure",
    [
        {"data": [], "layout": {"images": [{"source": EVIL}]}},
        {"data": [{"type": "image", "source": EVIL}]},
        {"data": [{"type": "choropleth", "geojson": EVIL}]},
        {"data": [{"type": "scattermapbox", "subplot": EVIL}]},
        {"data": [], "layout": {"mapbox": {"style": EVIL}}},
        {"data": [{"text": [f"<span style='fill:url({EVIL})'>x</span>"]}]},
        {"data": [], "frames": [{"data": [{"source": EVIL}]}]},
    ],
)
def test_a_plotly_figure_loads_and_links_nothing(figure: dict[str, object]) -> None:
    ctx, reasons = context()
    assert EVIL not in str(clean_plotly(figure, ctx))
    assert reasons == [Reason.REMOTE]


def test_a_link_in_a_label_is_written_out() -> None:
    ctx, reasons = context()
    figure = clean_plotly({"data": [{"text": f"<a href='{EVIL}'>x</a>"}]}, ctx)
    assert "<a " not in str(figure)
    assert reasons == [Reason.REMOTE]


def test_what_is_left_around_a_tag_makes_no_other() -> None:
    ctx, _ = context()
    figure = clean_plotly({"data": [{"text": "<<x>a href='javas<x>cript:1'>y<b>z</b>"}]}, ctx)
    assert figure is not None
    assert figure["data"] == [{"text": "&lt;&lt;x>a href='javas&lt;x>cript:1'>y<b>z</b>"}]


def test_a_tag_that_does_not_end_is_written_out_and_less_than_stays() -> None:
    ctx, _ = context()
    figure = clean_plotly({"data": [{"text": ["<a onload=", "2 < 3", "<b>x"]}]}, ctx)
    assert figure is not None
    assert figure["data"] == [{"text": ["&lt;a onload=", "2 < 3", "<b>x"]}]


def test_a_plotly_configuration_is_kept_by_name() -> None:
    figure = {"data": [], "config": {"plotlyServerURL": EVIL, "topojsonURL": EVIL, "responsive": True}}
    assert clean_plotly(figure, context()[0]) == {"data": [], "config": {"responsive": True}}


def test_renderers_that_fetch_or_build_pages_are_for_trusted_mode() -> None:
    for clean in (clean_geojson, clean_vdom):
        assert clean({"type": "x"}, context()[0]) is None
        assert clean({"type": "x"}, context(Mode.TRUSTED)[0]) == {"type": "x"}


@given(JSON)
def test_no_cleaner_fails_and_cleaning_twice_changes_nothing_more(value: object) -> None:
    for clean in (clean_vega, clean_plotly, clean_json, clean_geojson, clean_vdom):
        ctx, reasons = context()
        cleaned = clean(value, ctx)
        if cleaned is not None:
            reasons.clear()
            assert clean(cleaned, ctx) == cleaned
            assert reasons == []


FORCE = {"type": "force", "forces": [{"force": "collide"}]}


@pytest.mark.parametrize(
    "mark",
    [
        {"type": "symbol", "transform": [FORCE]},
        {"type": "shape", "transform": [{"type": "geoshape", "projection": "p"}]},
        {"type": "path", "transform": [{"type": "linkpath", "as": "path"}]},
        {"type": "rect", "encode": {"hover": {"cursor": {"value": "pointer"}, "fill": {"value": "red"}}}},
        {"type": "rect", "encode": {"hover": {"cursor": [{"test": "datum.a", "value": "pointer"}, {"value": "auto"}]}}},
        {"type": "group", "marks": [{"type": "line"}], "signals": [{"name": "zoom", "value": 1}]},
        {"type": "text", "encode": {"enter": {"tooltip": {"signal": "datum.name"}}}},
    ],
)
def test_marks_that_are_moved_or_shaped_stay(mark: dict[str, object]) -> None:
    ctx, reasons = context()
    assert clean_vega({"marks": [mark]}, ctx) == {"marks": [mark]}
    assert reasons == []


@pytest.mark.parametrize(
    "transform",
    [
        {"type": "formula", "as": "url", "expr": f"'{EVIL}'"},
        {"type": "formula", "as": "x", "expr": "1"},
        {"type": "lookup", "from": "t", "key": "a", "values": ["cursor"]},
        {"type": "window", "ops": ["first_value"], "fields": ["a"], "as": ["href"]},
        {"type": "geopath", "as": "cursor"},
        {"type": "geopath", "as": {"signal": "'cur'+'sor'"}},
        {"type": "force", "as": ["x", "url"]},
        {"type": {"signal": "'formula'"}, "as": "url"},
        {"as": "url"},
        "formula",
    ],
)
def test_no_transform_gives_marks_an_address_or_a_cursor(transform: object) -> None:
    ctx, reasons = context()
    kind = {"type": "symbol", "name": "m"}
    assert clean_vega({"marks": [kind | {"transform": [transform, FORCE]}]}, ctx) == {
        "marks": [kind | {"transform": [FORCE]}]
    }
    assert clean_vega({"marks": [kind | {"transform": transform}]}, ctx) == {"marks": [kind]}
    assert reasons == [Reason.REMOTE, Reason.REMOTE]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"marks": [{"type": "image"}, {"type": "rect"}]}, {"marks": [{"type": "rect"}]}),
        ({"marks": [{"type": "group", "marks": [{"type": "image"}]}]}, {"marks": [{"type": "group", "marks": []}]}),
        ({"marks": [{"type": "rect", "on": [{"trigger": "x", "modify": "y"}]}]}, {"marks": [{"type": "rect"}]}),
        ({"mark": "image"}, {}),
        ({"mark": {"type": "image"}}, {}),
        ({"mark": {"type": "bar", "cursor": {"expr": "x"}}}, {"mark": {"type": "bar"}}),
        ({"mark": {"type": "bar", "cursor": "pointer"}}, {"mark": {"type": "bar", "cursor": "pointer"}}),
        ({"mark": {"type": "bar", "cursor": "x y"}}, {"mark": {"type": "bar"}}),
        ({"signals": [{"name": "cursor", "update": "'ur'+'l('+x+')'"}]}, {"signals": []}),
        ({"params": [{"name": "cursor", "expr": "x"}]}, {"params": []}),
        ({"encode": {"update": {"cursor": {"signal": "x"}}}}, {"encode": {"update": {}}}),
        ({"encode": {"update": {"cursor": {"value": "pointer", "offset": 1}}}}, {"encode": {"update": {}}}),
    ],
)
def test_no_picture_is_drawn_and_no_cursor_computed(given: dict[str, object], kept: dict[str, object]) -> None:
    ctx, reasons = context()
    assert clean_vega(given, ctx) == kept
    assert reasons == ([] if given == kept else [Reason.REMOTE])


@pytest.mark.parametrize("call", ["modify('m', x)", "setdata ('m', x)"])
def test_an_expression_that_changes_what_is_drawn_blocks_the_plot(call: str) -> None:
    ctx, reasons = context()
    assert clean_vega({"signals": [{"name": "s", "on": [{"events": "click", "update": call}]}]}, ctx) is None
    assert reasons == [Reason.SCRIPT]


def test_a_plot_that_is_none_is_not_shown() -> None:
    ctx, reasons = context()
    assert clean_plotly({"data": "x"}, ctx) is None
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    assert clean_json(deep, ctx) is not None
    assert reasons == [Reason.RENDERER, Reason.MALFORMED]
