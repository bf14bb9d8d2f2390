"""The firewall's own decisions, message by message; what they do in a browser is seen in tests/security."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any

import pytest
from output_checker import text_problems

from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.firewall import PROMPT, Firewall
from agentvm_kernel.firewall.policy import Policy, note
from agentvm_kernel.firewall.reasons import Reason

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1").decode()
OPTIONS = {"ast": True, "actions": False, "tooltip": False}
HUGE = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0").decode()


class Said:
    """A firewall, and what it has blocked."""

    def __init__(self, **policy: Any) -> None:
        self.firewall = Firewall(Policy(**policy))
        self.firewall.is_host_code = lambda code: code.startswith("%")
        self.reasons: Counter[Reason] = Counter()

    def block(self, reason: Reason, _words: str) -> None:
        self.reasons[reason] += 1

    def output(self, msg_type: str, content: object) -> dict[str, Any] | None:
        shown = self.firewall.output(msg_type, json.dumps(content).encode(), b"{}", [], self.block)
        return dict(shown.content) if shown else None

    def shown(self, data: dict[str, object]) -> dict[str, Any]:
        content = self.output("display_data", {"data": data, "metadata": {}})
        return content["data"] if content else {}

    def reply(self, msg_type: str, content: object) -> dict[str, Any]:
        return self.firewall.reply(msg_type, json.dumps(content).encode(), self.block)


def test_colours_stay_and_what_steers_a_terminal_goes() -> None:
    said = Said()
    text = "\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b[2J\x1b]8;;http://x\x1b\\link\x9b5n\rdone"
    stream = said.output("stream", {"name": "elsewhere", "text": text})
    assert stream == {"name": "stdout", "text": "\x1b[31mred\x1b[0m link5n\rdone"}
    assert said.reasons == {Reason.TERMINAL: 1}


def test_long_lines_arrive_whole() -> None:
    stream = Said().output("stream", {"name": "stdout", "text": "x" * 100_000})
    assert stream == {"name": "stdout", "text": "x" * 100_000}


@pytest.mark.parametrize("mode", [Mode.STANDARD, Mode.STRICT])
def test_html_without_scripts_is_cleaned_in_place(mode: Mode) -> None:
    shown = Said(mode=mode).shown({"text/html": "<b onclick=x>bold</b>"})
    assert shown == {"text/html": "<b>bold</b>"}


def test_html_with_scripts_goes_into_a_frame_or_loses_them() -> None:
    script = {"text/html": "<p>seen</p><script>go()</script>"}
    framed = Said().shown(script)["text/html"]
    assert framed.startswith('<iframe class="agentvm-frame" sandbox="allow-scripts"')
    assert Said(mode=Mode.STRICT).shown(script) == {"text/html": "<p>seen</p>"}
    assert Said(mode=Mode.TRUSTED).shown(script) == script


def test_javascript_becomes_a_frame_with_the_html_of_the_same_output() -> None:
    shown = Said().shown({"application/javascript": "element.id", "text/html": "<div id=plot></div>"})
    assert set(shown) == {"text/html"}
    assert "div id=plot" in shown["text/html"]
    said = Said(mode=Mode.STRICT)
    assert said.shown({"application/javascript": "element.id"}) == {}
    assert said.reasons == {Reason.SCRIPT: 1}


def test_markdown_becomes_html_with_its_formulas() -> None:
    shown = Said().shown({"text/markdown": "**bold** $a_1*b*c<d$ <img src=http://x/y> [x](javascript:alert(1))"})
    assert "<strong>bold</strong> $a_1*b*c&lt;d$" in shown["text/html"]
    assert "http://x" not in shown["text/html"]
    assert "href" not in shown["text/html"]


def test_an_svg_becomes_an_image() -> None:
    svg = "<svg onload='alert(1)'></svg>"
    shown = Said().shown({"image/svg+xml": svg})["text/html"]
    assert shown.startswith("<img ")
    assert base64.b64encode(svg.encode()).decode() in shown


@pytest.mark.parametrize(
    ("picture", "reason"),
    [(HUGE, Reason.SIZE), ("<svg/>", Reason.MALFORMED), ("AAAA", Reason.MALFORMED), (["x"], Reason.MALFORMED)],
)
def test_only_pictures_are_shown_as_pictures(picture: object, reason: Reason) -> None:
    said = Said()
    assert said.shown({"image/png": PNG}) == {"image/png": PNG}
    assert said.shown({"image/png": picture}) == {}
    assert said.reasons == {reason: 1}


def test_types_that_are_not_known_are_dropped_unless_the_user_allows_them() -> None:
    data = {"application/pdf": "x", "text/plain": "plain"}
    said = Said()
    assert said.shown(data) == {"text/plain": "plain"}
    assert said.reasons == {Reason.MIME: 1}
    assert Said(mime_types=("application/pdf",)).shown(data) == data


def test_vega_is_interpreted_and_not_compiled() -> None:
    content = Said().output("display_data", {"data": {"application/vnd.vega.v5+json": {"marks": []}}, "metadata": {}})
    assert content is not None
    assert content["metadata"] == {"application/vnd.vega.v5+json": {"embed_options": OPTIONS}}


def test_payloads_show_text_and_propose_cells_but_none_for_the_host() -> None:
    page = {"source": "page", "data": {"text/html": "<script>", "text/plain": "help"}, "start": 0}
    given = [
        page,
        {"source": "set_next_input", "text": "x = 1", "replace": True},
        {"source": "set_next_input", "text": "%net allow all"},
        {"source": "edit_magic", "filename": "/etc/passwd"},
    ]
    said = Said()
    reply = said.reply("execute_reply", {"status": "ok", "execution_count": 3, "payload": given, "extra": 1})
    assert reply == {
        "status": "ok",
        "execution_count": 3,
        "user_expressions": {},
        "payload": [
            {"source": "page", "data": {"text/plain": "help"}, "start": 0},
            {"source": "set_next_input", "text": "x = 1", "replace": True},
        ],
    }
    assert said.reasons == {Reason.PAYLOAD: 2}


def test_completions_have_no_markup_and_kernel_info_is_fixed() -> None:
    said = Said()
    completed = said.reply("complete_reply", {"status": "ok", "matches": ["fine", "<img src=x>", 1], "cursor_end": 2})
    assert completed["matches"] == ["fine"]
    info = said.reply(
        "kernel_info_reply",
        {
            "status": "ok",
            "help_links": [{"url": "javascript:x"}],
            "language_info": {"version": "3.13.1", "name": "evil"},
        },
    )
    assert info["help_links"] == []
    assert info["language_info"]["name"] == "python"
    assert info["language_info"]["version"] == "3.13.1"


def test_subshells_are_named_and_listed() -> None:
    assert Said().reply("create_subshell_reply", {"status": "ok", "subshell_id": "a-1"})["subshell_id"] == "a-1"
    listed = Said().reply("list_subshell_reply", {"status": "ok", "subshell_id": ["a-1", 5, "<b>"]})
    assert listed == {"status": "ok", "subshell_id": ["a-1"]}


def test_history_keeps_its_numbers_below_zero_and_its_texts() -> None:
    given = [[-1, 2, "x"], [1, 2, ["in\x07", "out"]], [1, 3, ["in", None]], ["1", None, 3], "x"]
    reply = Said().reply("history_reply", {"status": "ok", "history": given})
    assert reply["history"] == [[-1, 2, "x"], [1, 2, ["in", "out"]], [1, 3, ["in", None]], [0, 0, ""]]


def test_prompts_name_the_vm_and_masks_are_for_cells_that_ask_for_them() -> None:
    said = Said()
    asked = json.dumps({"prompt": "password: ", "password": True}).encode()
    assert said.firewall.prompt(asked, "getpass()", said.block) == {"prompt": PROMPT + "password: ", "password": True}
    assert not said.reasons
    assert said.firewall.prompt(asked, "work()", said.block)["password"] is False
    assert said.reasons == {Reason.INPUT: 1}


def test_the_note_names_what_was_blocked_how_often_and_the_way_out() -> None:
    text = note({(Reason.MIME, "a type"): 2, (Reason.LINK, "a link"): 1})
    assert text == "blocked: a type (2 times); [output] mime_types allows types\nblocked: a link\n"


@pytest.mark.parametrize(
    "content", [b"[]", b"x", b"\xff", b"[" * 100_000, b'{"data": ' + b"[" * 900 + b"]" * 900 + b"}"]
)
def test_what_makes_no_sense_is_blocked(content: bytes) -> None:
    said = Said()
    assert said.firewall.output("display_data", content, b"{}", [], said.block) is None
    assert said.firewall.reply("execute_reply", content, said.block)["status"] == "error"
    assert said.reasons


def test_halves_of_surrogate_pairs_are_replaced() -> None:
    stream = Said().firewall.output("stream", b'{"text": "a\\ud800b"}', b"{}", [], lambda *_: None)
    assert stream is not None
    assert stream.content["text"] == "a?b"


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'{"data": {"application/json": [1e999, -1e999, 1.5]}}', [None, None, 1.5]),
        (b'{"data": {"application/json": NaN}}', None),
    ],
)
def test_numbers_that_json_does_not_have_do_not_get_through(content: bytes, value: object) -> None:
    shown = Said().firewall.output("display_data", content, b"{}", [], lambda *_: None)
    data = shown.content["data"] if shown else {}
    assert data == ({"application/json": value} if value else {})
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("content", [b'{"text": "\xed\xa0\x80"}', '{"text": "a"}'.encode("utf-16-le")])
def test_a_message_that_is_no_utf_8_is_blocked(content: bytes) -> None:
    said = Said()
    assert said.firewall.output("stream", content, b"{}", [], said.block) is None
    assert said.reasons == {Reason.MALFORMED: 1}


def test_a_message_of_too_many_elements_is_blocked_before_it_is_built() -> None:
    said = Said()
    assert said.firewall.output("stream", b'{"text": [' + b"[]," * 300_000 + b"[]]}", b"{}", [], said.block) is None
    assert said.reasons == {Reason.SIZE: 1}


def test_only_the_known_messages_pass() -> None:
    said = Said()
    assert said.output("clear_output", {"wait": 1, "more": 2}) == {"wait": False}
    assert said.output("error", {"ename": "E", "evalue": "x", "traceback": [], "more": 1}) == {
        "ename": "E",
        "evalue": "x",
        "traceback": [],
    }
    assert said.output("debug_event", {"event": "stopped", "body": {"threadId": 1}}) == {
        "event": "stopped",
        "body": {"threadId": 1},
    }
    assert said.output("stream", {"name": "stderr", "text": ["a", "b"]}) == {"name": "stderr", "text": "ab"}
    assert not said.reasons
    assert said.output("stream", {"name": "stdout", "text": 5}) is None
    assert said.output("pyout", {"data": {"text/plain": "x"}}) is None
    assert said.reasons == {Reason.MALFORMED: 1, Reason.MESSAGE: 1}


def test_a_result_keeps_its_number_and_a_display_its_name() -> None:
    result = {
        "data": {"text/plain": "x"},
        "metadata": {},
        "execution_count": 7,
        "transient": {"display_id": "a", "b": 1},
    }
    assert Said().output("execute_result", result) == {
        "data": {"text/plain": "x"},
        "metadata": {},
        "execution_count": 7,
        "transient": {"display_id": "a"},
    }
    for count, name in ((True, "a\n"), ("7", ["a"]), (1 << 31, "é"), (-1, "")):
        shown = Said().output("execute_result", result | {"execution_count": count, "transient": {"display_id": name}})
        assert shown is not None
        assert (shown["execution_count"], shown["transient"]) == (0, {})


def test_an_output_widget_holds_what_cells_may_show() -> None:
    said = Said()
    outputs: list[object] = [
        {"output_type": "stream", "name": "stdout", "text": "a\x1b[2J"},
        {"output_type": "stream", "text": 5},
        {"output_type": "error", "ename": "E", "evalue": "x", "traceback": []},
        {
            "output_type": "display_data",
            "data": {"text/html": "<img src=x onerror=go()>"},
            "metadata": {"isolated": True},
        },
        {"output_type": "execute_result", "data": {"text/plain": "1"}, "execution_count": 5},
        {"output_type": "display_data", "data": {"application/pdf": "x"}},
        {"output_type": "pyout"},
    ]
    state = {"_model_module": "@jupyter-widgets/output", "_model_name": "OutputModel", "_model_module_version": "1.0.0"}
    content = {"comm_id": "o", "target_name": "jupyter.widget", "data": {"state": state | {"outputs": outputs}}}
    opened = said.output("comm_open", content)
    assert opened is not None
    assert opened["data"]["state"]["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "a"},
        {"output_type": "error", "ename": "E", "evalue": "x", "traceback": []},
        {"output_type": "display_data", "data": {"text/html": "<img>"}, "metadata": {}},
        {"output_type": "execute_result", "data": {"text/plain": "1"}, "metadata": {}, "execution_count": None},
    ]
    assert said.output("comm_close", {"comm_id": "o", "data": {"x": 1}}) == {"comm_id": "o", "data": {}}
    assert said.output("comm_close", {"comm_id": "o"}) is None


def test_a_reply_that_breaks_a_cleaner_is_blocked_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    said = Said()
    caplog.set_level("ERROR", "agentvm.firewall")
    # A status that cannot be looked up in a set.
    assert said.reply("execute_reply", {"status": {}})["ename"] == "OutputBlocked"
    assert said.reply("execute_reply", {"status": []})["ename"] == "OutputBlocked"
    assert said.reasons == {Reason.MALFORMED: 2}
    assert len(caplog.records) == 1
    said.firewall.opened_by_client({"comm_id": "c", "target_name": "jupyter.widget.control"})
    answer = {"comm_id": "c", "data": {"method": "update_states", "states": {}}}
    assert said.output("comm_msg", answer) is not None


@pytest.mark.parametrize(
    ("data", "metadata", "shown", "told"),
    [
        (
            {"image/png": PNG},
            {"image/png": {"width": 5, "height": 6.5, "unconfined": True}},
            True,
            {"width": 5, "height": 6.5},
        ),
        ({"image/png": PNG}, {"image/png": {"width": "9px", "height": True}, "needs_background": "x"}, True, None),
        ({"image/png": PNG}, {"image/png": {"width": 0, "height": 10**6}}, True, None),
        ({"image/png": PNG}, {"isolated": True, "image/png": 5}, True, None),
        (
            {"application/json": {"a": 1}},
            {"application/json": {"expanded": True, "root": "x"}},
            True,
            {"expanded": True},
        ),
        ({"application/json": {"a": 1}}, {"application/json": {"expanded": 1}}, True, None),
    ],
)
def test_of_metadata_only_sizes_and_open_trees_stay(
    data: dict[str, object], metadata: dict[str, object], shown: bool, told: object
) -> None:
    content = Said().output("display_data", {"data": data, "metadata": metadata})
    assert content is not None
    assert content["metadata"] == ({next(iter(data)): told} if told else {})


def test_a_bundle_that_is_none_or_of_too_many_types_is_blocked() -> None:
    said = Said()
    assert said.output("display_data", {"data": [1], "metadata": {}}) is None
    assert said.output("display_data", {"data": {f"a/{number}": "x" for number in range(33)}}) is None
    assert said.reasons == {Reason.MALFORMED: 1, Reason.SIZE: 1}


def test_markup_is_joined_from_lines_and_blocked_if_it_is_no_text() -> None:
    said = Said()
    assert said.shown({"text/html": ["<scr", "ipt>go()</script>x"]})["text/html"].startswith("<iframe")
    assert said.shown({"text/html": {"a": 1}, "text/markdown": "*x*"}) == {"text/html": "<p><em>x</em></p>\n"}
    assert said.shown({"text/plain": {"a": 1}}) == {}
    assert said.reasons == {Reason.MALFORMED: 2}


def test_a_type_that_the_user_allows_passes_with_its_metadata() -> None:
    policy = {"mime_types": ("text/html", "application/x-own")}
    data = {"text/html": "<script>go()</script>", "application/x-own": {"a": 1}}
    content = Said(**policy).output("display_data", {"data": data, "metadata": {"application/x-own": {"b": 2}}})
    assert content == {"data": data, "metadata": {"application/x-own": {"b": 2}}, "transient": {}}


def test_a_script_with_a_document_that_is_too_large_leaves_the_rest() -> None:
    said = Said()
    assert said.shown({"application/javascript": "x" * ((32 << 20) + 100), "text/plain": "x"}) == {}
    assert said.reasons == {Reason.SIZE: 1}


def test_many_kinds_of_blocked_output_are_named_up_to_a_bound() -> None:
    text = note({(Reason.MIME, f"kind {number}"): 1 for number in range(20)})
    assert text.count("\n") == 9
    assert text.endswith("blocked: 12 kinds more; %vm security counts all\n")


def test_halves_of_surrogate_pairs_are_replaced_wherever_they_stand() -> None:
    content = b'{"data": {"application/json": {"a\\udc00": ["\\ud83d", "\\ud83d\\ude00", "\xc3\xa9", 1]}}}'
    shown = Said().firewall.output("display_data", content, b"{}", [], lambda *_: None)
    assert shown is not None
    assert shown.content["data"] == {"application/json": {"a?": ["?", "\U0001f600", "\u00e9", 1]}}


def test_progress_bars_keep_what_they_draw_with() -> None:
    text = "\x1b[1A\x1b[2K\r 50%|\u2588\u2588  |\b\t\x1b[38;2;1;2;3mx\x1b[K"
    said = Said()
    assert said.output("stream", {"name": "stdout", "text": text}) == {"name": "stdout", "text": text}
    assert not said.reasons


@pytest.mark.parametrize(
    "steering",
    [
        "\x1b[2J",
        "\x1b[H",
        "\x1b[?1049h",
        "\x1b]52;c;eA==\x07",
        "\x1bP1;2q\x1b\\",
        "\x1b_x\x9c",
        "\x1bc",
        "\x1b",
        "\x9b5n",
        "\x90x",
        "\x00",
        "\x07",
        "\x0c",
        "\x7f",
        "\x1b[" + "1;" * 60 + "m",
        "\x1b[999A",
    ],
)
def test_what_steers_a_terminal_goes(steering: str) -> None:
    stream = Said().output("stream", {"name": "stdout", "text": f"a{steering}"})
    assert stream is not None
    assert list(text_problems(stream["text"])) == []
    assert stream["text"].startswith("a")


def test_a_mermaid_diagram_is_shown_as_its_text() -> None:
    said = Said()
    assert said.shown({"text/vnd.mermaid": "graph TD\n A --> B\x1b]0;title\x07"}) == {
        "text/plain": "graph TD\n A --> B"
    }
    assert said.shown({"text/vnd.mermaid": "graph TD", "text/plain": "its words"}) == {"text/plain": "its words"}
    assert said.reasons == {Reason.RENDERER: 2, Reason.TERMINAL: 1}
    allowed = Said(mime_types=("text/vnd.mermaid",))
    assert allowed.shown({"text/vnd.mermaid": "graph TD"}) == {"text/vnd.mermaid": "graph TD"}


def test_html_with_more_style_than_is_looked_through_is_framed() -> None:
    style = "".join(f"@media print {{ .a{number} {{ color: red }} }}\n" for number in range(3000))
    html = f"<style>{style}</style><p>text</p>"
    said = Said()
    assert said.shown({"text/html": html})["text/html"].startswith('<iframe class="agentvm-frame"')
    assert said.reasons == {}
    strict = Said(mode=Mode.STRICT)
    assert strict.shown({"text/html": html}) == {"text/html": "<p>text</p>"}
    assert strict.reasons == {Reason.SIZE: 1}


@pytest.mark.parametrize("mode", list(Mode))
def test_types_of_the_hosts_own_cannot_be_said_by_a_guest(mode: Mode) -> None:
    mime = "application/vnd.agentvm.forks+json"
    said = Said(mode=mode, mime_types=(mime,))
    for name in (mime, mime.upper(), f" {mime}"):
        assert said.shown({name: {"run": 1, "forks": []}, "text/plain": "x"}) == {"text/plain": "x"}
    assert said.reasons == {Reason.MIME: 3}
