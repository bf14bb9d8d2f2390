"""Messages as no kernel sends them: the firewall answers all of them, and with nothing that the checker refuses."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from output_checker import Checker

from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.firewall import Firewall
from agentvm_kernel.firewall.policy import Policy

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1").decode()
CONTROLS = {"_model_module": "@jupyter-widgets/controls", "_model_module_version": "2.0.0"}
STATE = CONTROLS | {
    "_model_name": "HTMLModel",
    "_view_module": "@jupyter-widgets/controls",
    "_view_module_version": "2.0.0",
    "_view_name": "HTMLView",
    "_dom_classes": ["widget-x"],
    "value": "<b>x</b>",
    "description": "x",
    "description_allow_html": True,
    "layout": "IPY_MODEL_a",
    "icon": "check",
    "children": ["IPY_MODEL_a"],
    "titles": ["a"],
    "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}],
    "format": "png",
    "margin": "1px",
    "background": "red",
    "_options_labels": ["a"],
}

MARKUP = """
<b> </b> <p> </p> <div </div> <img <svg> <svg </svg> <math> </math> <mtext> <mglyph> <style> </style> <style
<script> </script> <iframe <iframe> </iframe> <a </a> <table> <td> </table> <template> </template> <title>
</title> <noscript> <!-- --> --!> <![CDATA[ ]]> <form <input <button <select> <option> <textarea> </textarea>
<object <embed <link <meta <base <foreignObject> <use <animate <set <annotation-xml <body <html <frameset>
<plaintext> <xmp> <details <audio <video <source <marquee <isindex <x-y <desc> <mi> <br> src= href= xlink:href=
srcset= style= class= id= name= onerror= onload= onclick= data-x= formaction= action= background= poster= ping=
srcdoc= for= title= lang= dir= headers= fill= clip-path= sandbox=allow-same-origin target=_top is= slot=
autofocus javascript:alert(1) JaVaScRiPt&colon;alert(1) data:text/html,x data:image/svg+xml;base64,PHN2Zz4=
data:image/png;base64,iVBORw0= //evil.example/x http://evil.example/x https://evil.example/ mailto:x /lab /api
#x #vm-x \\ / > " ' ` = & &lt; &#x3c; &quot; &Tab; \x00 \x0c position:fixed position:absolute;top:0
url(http://evil.example/x) u\\72l( image-set( @import @media{ } { ; /* */ :root body *, margin:-9px --x:url(
var(--x) z-index:9 transform:scale(9) !important content:'x' .jp-Dialog #main ::before :has(x) +p ~p \\3c
agentvm-scope-0123456789abcdef vm-x jp-Dialog dataframe $\\href{x}{y}$ \\cssId{ \\def\\x{ \\hr<wbr>ef{ $$ \\(
\\) \\style{ ![x](http://evil.example/x) [x](javascript:alert(1)) ``` ~~~ # | --- [r]: <http://x> <javascript:x>
*x* _x_ \\newcommand{\\x} \x1b[2J \x1b]8;;http://x\x07 \x1b[31m \x1b[0m \x9b5n \x1bP \x1b[1A \r \x7f \u202e
\ud800 \udc00 \U0001f600 onafterscriptexecute=x
""".split()  # noqa: SIM905 - a list of these would fill a page
TYPES = [
    "text/plain", "text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "image/jpeg",
    "application/javascript", "application/json", "application/geo+json", "application/vdom.v1+json",
    "application/vnd.vega.v5+json", "application/vnd.vegalite.v5+json", "application/vnd.plotly.v1+json",
    "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.stderr", "TEXT/HTML", "application/pdf",
]  # fmt: skip

characters = st.characters(exclude_categories=())
words = st.one_of(st.sampled_from(MARKUP), st.text(characters, max_size=4), st.sampled_from([" ", "", "\n"]))
hostile = st.lists(words, max_size=24).map("".join)
texts = st.one_of(hostile, st.text(characters, max_size=20), st.sampled_from([PNG, "url", "svg+xml", "x" * 5000]))
numbers = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.sampled_from([1e308, 10**30, -(10**400), float("inf")])
)
names = st.one_of(
    st.sampled_from([*TYPES, *STATE, "url", "href", "cursor", "marks", "type", "name", "as", "transform", "__proto__"]),
    texts,
)
values = st.recursive(
    st.one_of(st.none(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=12,
)
bundles = st.dictionaries(st.one_of(st.sampled_from(TYPES), texts), st.one_of(values, hostile), max_size=5)

MESSAGES: dict[str, dict[str, Any]] = {
    "stream": {"name": "stdout", "text": "x"},
    "display_data": {"data": {"text/html": "<b>x</b>"}, "metadata": {"image/png": {"width": 5}}, "transient": {}},
    "update_display_data": {"data": {"text/markdown": "x"}, "metadata": {}, "transient": {"display_id": "x"}},
    "execute_result": {"data": {"text/plain": "x", "image/png": PNG}, "metadata": {}, "execution_count": 1},
    "error": {"ename": "E", "evalue": "x", "traceback": ["\x1b[31mx"]},
    "clear_output": {"wait": True},
    "debug_event": {"event": "stopped", "body": {"threadId": 1}},
    "comm_open": {"comm_id": "w", "target_name": "jupyter.widget", "data": {"state": STATE, "buffer_paths": []}},
    "comm_msg": {"comm_id": "w", "data": {"method": "update", "state": STATE, "buffer_paths": []}},
    "comm_close": {"comm_id": "w", "data": {}},
    "no_such_message": {"data": {}},
}
REPLIES: dict[str, dict[str, Any]] = {
    "execute_reply": {
        "status": "ok",
        "execution_count": 1,
        "payload": [
            {"source": "page", "data": {"text/plain": "x"}, "start": 0},
            {"source": "set_next_input", "text": "x"},
        ],
        "user_expressions": {"x": {"status": "ok", "data": {"text/html": "<b>"}, "metadata": {}}},
    },
    "inspect_reply": {"status": "ok", "found": True, "data": {"text/html": "<b>"}, "metadata": {}},
    "complete_reply": {
        "status": "ok",
        "matches": ["x"],
        "cursor_start": 0,
        "cursor_end": 1,
        "metadata": {"_jupyter_types_experimental": [{"text": "x", "type": "function", "start": 0, "end": 1}]},
    },
    "is_complete_reply": {"status": "incomplete", "indent": "  "},
    "history_reply": {"status": "ok", "history": [[1, 2, ["x", "y"]]]},
    "comm_info_reply": {"status": "ok", "comms": {"x": {"target_name": "y"}}},
    "kernel_info_reply": {"status": "ok", "banner": "x", "help_links": [], "language_info": {"version": "3"}},
    "debug_reply": {"type": "response", "success": True, "body": {"data": {"text/html": "x"}, "metadata": {}}},
    "create_subshell_reply": {"status": "ok", "subshell_id": "x"},
    "list_subshell_reply": {"status": "ok", "subshell_id": ["x"]},
    "no_such_reply": {"status": "ok"},
}  # fmt: skip


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the ways to all parts of a value."""
    found = [path]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, item in pairs for place in places(item, (*path, key))]


def replaced(value: Any, path: tuple[Any, ...], new: object) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@st.composite
def mutated(draw: st.DrawFn, messages: dict[str, dict[str, Any]]) -> tuple[str, Any]:
    """A real message with one to three of its parts replaced by anything."""
    msg_type = draw(st.sampled_from(sorted(messages)))
    content: Any = messages[msg_type]
    for _ in range(draw(st.integers(1, 3))):
        content = replaced(content, draw(st.sampled_from(places(content)[1:] or [()])), draw(values))
    return msg_type, content


class Bed:
    """A firewall with a widget of each kind, and a checker that knows them."""

    def __init__(self, mode: Mode) -> None:
        self.firewall = Firewall(Policy(mode=mode))
        self.firewall.is_host_code = lambda code: code.lstrip().startswith(("%", "!"))
        self.checker = Checker()
        for name, model in (("w", "HTMLModel"), ("i", "ImageModel"), ("s", "IntSliderModel"), ("o", "OutputModel")):
            module = {"_model_module": "@jupyter-widgets/output"} if model == "OutputModel" else {}
            state = CONTROLS | module | {"_model_name": model}
            content = {"comm_id": name, "target_name": "jupyter.widget", "data": {"state": state}}
            assert self.output("comm_open", content) == []

    def output(self, msg_type: str, content: object, buffers: tuple[bytes, ...] = ()) -> list[str]:
        data = json.dumps(content).encode()
        shown = self.firewall.output(msg_type, data, b"{}", buffers, lambda *_: None)
        return [] if shown is None else self.checker.output(msg_type, shown.content, shown.metadata, shown.buffers)

    def reply(self, msg_type: str, content: object) -> list[str]:
        data = json.dumps(content).encode()
        return self.checker.reply(msg_type, self.firewall.reply(msg_type, data, lambda *_: None))


modes = st.sampled_from([Mode.STANDARD, Mode.STRICT])


@given(mode=modes, message=mutated(MESSAGES), buffers=st.lists(st.binary(max_size=9), max_size=3))
@settings(max_examples=120)
def test_mutated_messages_leave_nothing_hostile(mode: Mode, message: tuple[str, Any], buffers: list[bytes]) -> None:
    assert Bed(mode).output(*message, tuple(buffers)) == []


@given(mode=modes, msg_type=st.sampled_from(sorted(MESSAGES)), content=st.dictionaries(names, values, max_size=6))
def test_random_objects_leave_nothing_hostile(mode: Mode, msg_type: str, content: Any) -> None:
    assert Bed(mode).output(msg_type, content) == []


@given(mode=modes, data=bundles, metadata=st.dictionaries(st.sampled_from(TYPES), values, max_size=3))
@settings(max_examples=120)
def test_bundles_leave_nothing_hostile(mode: Mode, data: Any, metadata: Any) -> None:
    assert Bed(mode).output("display_data", {"data": data, "metadata": metadata}) == []


@given(mode=modes, kind=st.sampled_from(["text/html", "text/markdown", "text/latex", "image/svg+xml"]), text=hostile)
@settings(max_examples=200)
@example(mode=Mode.STRICT, kind="text/html", text='<b title="<a href=" lang="x=" dir="><img src=x onerror=x>">x</b>')
@example(
    mode=Mode.STRICT, kind="text/html", text="<math><mtext><table><mglyph><style><!--</style><img src=x onerror=x>"
)
@example(mode=Mode.STRICT, kind="text/html", text="<style>.a{}</style><style>*{color:red}}body{color:red}</style>")
def test_markup_of_hostile_pieces_leaves_nothing_hostile(mode: Mode, kind: str, text: str) -> None:
    assert Bed(mode).output("display_data", {"data": {kind: text}, "metadata": {}}) == []


@given(declarations=hostile, selector=hostile)
@settings(max_examples=120)
def test_styles_of_hostile_pieces_leave_nothing_hostile(declarations: str, selector: str) -> None:
    html = f'<style>{selector}{{{declarations}}}</style><p style="{declarations}">x</p>'
    assert Bed(Mode.STRICT).output("display_data", {"data": {"text/html": html}, "metadata": {}}) == []


@given(mode=modes, spec=st.dictionaries(names, values, max_size=4))
def test_plots_leave_nothing_hostile(mode: Mode, spec: Any) -> None:
    data = {"application/vnd.vega.v5+json": {"marks": [spec]}, "application/vnd.plotly.v1+json": {"data": [spec]}}
    assert Bed(mode).output("display_data", {"data": data, "metadata": {}}) == []


@given(
    mode=modes, state=st.dictionaries(st.sampled_from(sorted(STATE)), values, max_size=4), name=st.sampled_from("wiso")
)
def test_updates_of_widgets_leave_nothing_hostile(mode: Mode, state: Any, name: str) -> None:
    content = {"comm_id": name, "data": {"method": "update", "state": state, "buffer_paths": [["value"]]}}
    assert Bed(mode).output("comm_msg", content, (b"x",)) == []


@given(mode=modes, message=mutated(REPLIES))
@settings(max_examples=120)
def test_mutated_replies_leave_nothing_hostile(mode: Mode, message: tuple[str, Any]) -> None:
    assert Bed(mode).reply(*message) == []


@given(mode=modes, msg_type=st.sampled_from(sorted(REPLIES)), content=st.dictionaries(names, values, max_size=6))
def test_random_replies_leave_nothing_hostile(mode: Mode, msg_type: str, content: Any) -> None:
    assert Bed(mode).reply(msg_type, content) == []


@given(mode=modes, content=st.one_of(values, st.fixed_dictionaries({"prompt": values, "password": values})))
def test_prompts_leave_nothing_hostile(mode: Mode, content: Any) -> None:
    bed = Bed(mode)
    assert bed.checker.prompt(bed.firewall.prompt(json.dumps(content).encode(), "", lambda *_: None)) == []


@given(data=st.binary(max_size=200), msg_type=st.sampled_from([*MESSAGES, *REPLIES]))
@example(data='{"text": "a\ud800"}'.encode("utf-16-le", "surrogatepass"), msg_type="stream")
@example(data=b'{"text": "\xed\xa0\x80"}', msg_type="stream")
@example(data=b'{"data": {"application/json": [1e999, NaN, -Infinity]}}', msg_type="display_data")
@example(data=b'{"a":' * 5000, msg_type="stream")
def test_bytes_that_may_be_no_json_are_answered(data: bytes, msg_type: str) -> None:
    firewall, checker = Firewall(), Checker()
    shown = firewall.output(msg_type, data, b"{}", [], lambda *_: None)
    assert shown is None or checker.output(msg_type, shown.content) == []
    assert checker.reply(msg_type, firewall.reply(msg_type, data, lambda *_: None)) == []
    assert checker.prompt(firewall.prompt(data, "", lambda *_: None)) == []


@pytest.mark.parametrize("depth", [50, 150, 190, 900])
@pytest.mark.parametrize("opened", ['{"a":', "["])
def test_deep_nesting_is_answered(depth: int, opened: str) -> None:
    closed = "}" if opened == '{"a":' else "]"
    deep = opened * depth + "0" + closed * depth
    for mime in (*TYPES, "metadata"):
        data = f'{{"data": {{"{mime}": {deep}}}, "metadata": {deep}}}'.encode()
        shown = Firewall().output("display_data", data, b"{}", [], lambda *_: None)
        assert shown is None or Checker().output("display_data", shown.content) == []
    html = json.dumps({"data": {"text/html": "<div>" * depth * 20}, "metadata": {}}).encode()
    shown = Firewall().output("display_data", html, b"{}", [], lambda *_: None)
    assert shown is None or Checker().output("display_data", shown.content) == []
