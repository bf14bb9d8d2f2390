"""Replies: what front ends ask for and show is passed on, field by field, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from firewall_bed import Said
from output_checker import Checker

from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.replies import clean_error, clean_reply

HOSTILE = "<img src=x onerror=alert(1)>"
STEERING = "\x1b]0;title\x07"


def reply(msg_type: str, content: dict[str, Any], said: Said | None = None) -> dict[str, Any]:
    cleaned = clean_reply(msg_type, content, lambda code: code.startswith("%"), (said or Said()).context)
    assert Checker().reply(msg_type, cleaned) == []
    return cleaned


@pytest.mark.parametrize(
    ("msg_type", "content"),
    [
        ("execute_reply", {"status": "ok", "execution_count": 3, "user_expressions": {}, "payload": []}),
        (
            "inspect_reply",
            {"status": "ok", "found": True, "data": {"text/plain": "\x1b[31mSignature:\x1b[39m f()"}, "metadata": {}},
        ),
        ("inspect_reply", {"status": "ok", "found": False, "data": {}, "metadata": {}}),
        ("is_complete_reply", {"status": "complete"}),
        ("is_complete_reply", {"status": "incomplete", "indent": "    "}),
        ("is_complete_reply", {"status": "invalid"}),
        ("history_reply", {"status": "ok", "history": [[1, 2, "x = 1"], [1, 3, ["x", "1"]], [1, 4, ["y", None]]]}),
        ("comm_info_reply", {"status": "ok", "comms": {"a-1": {"target_name": "jupyter.widget"}}}),
        ("create_subshell_reply", {"status": "ok", "subshell_id": "a-1"}),
        ("list_subshell_reply", {"status": "ok", "subshell_id": ["a-1", "b-2"]}),
        ("delete_subshell_reply", {"status": "ok"}),
        ("delete_subshell_reply", {"status": "aborted"}),
        (
            "complete_reply",
            {
                "status": "ok",
                "matches": ["abs", "%%time", "a.b"],
                "cursor_start": 1,
                "cursor_end": 2,
                "metadata": {
                    "_jupyter_types_experimental": [
                        {"text": "abs", "start": 1, "end": 2, "type": "function", "signature": "(x, /)"}
                    ]
                },
            },
        ),
    ],
)
def test_what_a_kernel_answers_is_passed_on(msg_type: str, content: dict[str, Any]) -> None:
    said = Said()
    assert reply(msg_type, content, said) == content
    assert said.reasons == []


def test_an_error_is_text_with_colours() -> None:
    said = Said()
    given = {"ename": "E", "evalue": f"x{STEERING}", "traceback": ["\x1b[31mx\x1b[0m", 5, ["a", "b"]], "more": HOSTILE}
    assert clean_error(given, said.context) == {
        "ename": "E",
        "evalue": "x",
        "traceback": ["\x1b[31mx\x1b[0m", "", "ab"],
    }
    assert said.reasons == [Reason.TERMINAL]
    assert clean_error({"traceback": "x"}, said.context) == {"ename": "", "evalue": "", "traceback": []}
    whole = reply("execute_reply", {"status": "error", "execution_count": 1} | given)
    assert whole["ename"] == "E"
    assert "more" not in whole


def test_a_status_that_does_not_exist_is_an_error() -> None:
    assert reply("execute_reply", {"status": HOSTILE})["status"] == "error"
    assert reply("execute_reply", {})["status"] == "error"
    assert reply("is_complete_reply", {"status": HOSTILE}) == {"status": "unknown"}


@pytest.mark.parametrize("count", ["3", True, -1, 1 << 31, None, 1.5, [3]])
def test_a_count_that_is_none_is_nought(count: object) -> None:
    assert reply("execute_reply", {"status": "ok", "execution_count": count})["execution_count"] == 0


def test_expressions_are_shown_as_outputs_are() -> None:
    given = {
        "a": {"status": "ok", "data": {"text/plain": "1", "text/html": HOSTILE, "x/y": "z"}, "metadata": {}},
        "b": {"status": "error", "ename": "E", "evalue": "x", "traceback": []},
        "c": {"status": "ok", "data": {"x/y": "z"}},
        "d": 5,
    }
    said = Said()
    expressions = reply("execute_reply", {"status": "ok", "user_expressions": given}, said)["user_expressions"]
    assert expressions["a"] == {"status": "ok", "data": {"text/plain": "1", "text/html": "<img>"}, "metadata": {}}
    assert expressions["b"]["ename"] == "E"
    assert expressions["c"] == {"status": "ok", "data": {}, "metadata": {}}
    assert expressions["d"]["status"] == "error"
    assert Reason.MIME in said.reasons
    assert reply("execute_reply", {"status": "ok", "user_expressions": [1]})["user_expressions"] == {}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (
            {"source": "page", "data": {"text/plain": f"help{STEERING}", "text/html": HOSTILE}, "start": 7, "x": 1},
            {"source": "page", "data": {"text/plain": "help"}, "start": 7},
        ),
        (
            {"source": "page", "data": {"text/plain": ["a", "b"]}},
            {"source": "page", "data": {"text/plain": "ab"}, "start": 0},
        ),
        (
            {"source": "set_next_input", "text": "x = 1", "replace": "yes", "x": 1},
            {"source": "set_next_input", "text": "x = 1", "replace": False},
        ),
        ({"source": "ask_exit", "keepkernel": 1}, {"source": "ask_exit", "keepkernel": False}),
        ({"source": "page", "data": {"text/html": HOSTILE}}, None),
        ({"source": "page", "data": "x"}, None),
        ({"source": "set_next_input", "text": "%net allow all"}, None),
        ({"source": "set_next_input", "text": 5}, None),
        ({"source": "edit_magic", "filename": "/etc/passwd"}, None),
        ({"source": "edit", "filename": "/etc/passwd"}, None),
        ({"source": {"a": 1}}, None),
        ("x", None),
    ],
)
def test_payloads_show_text_or_propose_a_cell(given: object, kept: object) -> None:
    said = Said()
    payload = reply("execute_reply", {"status": "ok", "payload": [given]}, said)["payload"]
    assert payload == ([kept] if kept else [])
    assert (Reason.PAYLOAD in said.reasons) is (kept is None)


def test_payloads_are_few_and_in_strict_mode_none_proposes_a_cell() -> None:
    exits = [{"source": "ask_exit"}] * 100
    assert len(reply("execute_reply", {"status": "ok", "payload": exits})["payload"]) == 16
    assert reply("execute_reply", {"status": "ok", "payload": {"source": "ask_exit"}})["payload"] == []
    proposed = {"status": "ok", "payload": [{"source": "set_next_input", "text": "x"}]}
    assert reply("execute_reply", proposed, Said(Mode.STRICT))["payload"] == []


def test_an_inspection_is_shown_as_an_output_is() -> None:
    shown = reply("inspect_reply", {"status": "ok", "found": True, "data": {"text/html": HOSTILE, "x/y": "z"}})
    assert shown["data"] == {"text/html": "<img>"}
    lost = reply("inspect_reply", {"status": "ok", "found": True, "data": {"x/y": "z"}})
    assert lost == {"status": "ok", "found": False, "data": {}, "metadata": {}}


@pytest.mark.parametrize("match", [HOSTILE, "a&lt;b", "a\nb", "a\x1b[0m", "", 5, None, "x" * 5000, "\u202ex"])
def test_a_completion_that_is_more_than_a_word_is_not_offered(match: object) -> None:
    about = {"_jupyter_types_experimental": [{"text": match, "type": "function"}, "x"]}
    shown = reply("complete_reply", {"status": "ok", "matches": [match, "fine"], "metadata": about})
    assert shown["matches"] == (["", "fine"] if match == "" else ["fine"])
    assert [one["text"] for one in shown["metadata"].get("_jupyter_types_experimental", [])] == [""] * (match == "")


def test_what_goes_along_with_a_completion_is_plain() -> None:
    typed = {"text": "a", "start": "x", "end": 3, "type": HOSTILE, "signature": HOSTILE, "documentation": HOSTILE}
    about = {"_jupyter_types_experimental": [typed], "more": HOSTILE}
    shown = reply("complete_reply", {"matches": "x", "metadata": about, "cursor_start": 5, "cursor_end": 2})
    assert shown["metadata"] == {
        "_jupyter_types_experimental": [{"text": "a", "start": 0, "end": 3, "type": "", "signature": ""}]
    }
    assert (shown["matches"], shown["cursor_start"], shown["cursor_end"]) == ([], 5, 5)
    assert reply("complete_reply", {"metadata": [1]})["metadata"] == {}


def test_an_indentation_is_white_space() -> None:
    for indent in (HOSTILE, 5, " " * 500, "\n"):
        assert reply("is_complete_reply", {"status": "incomplete", "indent": indent})["indent"] == ""


def test_histories_that_are_none_are_empty() -> None:
    assert reply("history_reply", {"status": "ok", "history": {"a": 1}})["history"] == []
    assert reply("history_reply", {"status": "ok", "history": [[1, 2], "x", [1, 2, {"a": 1}]]})["history"] == [
        [1, 2, ""]
    ]


def test_comms_are_listed_by_plain_names() -> None:
    given = {"a": {"target_name": "x", "more": 1}, HOSTILE: {"target_name": "x"}, "b": {"target_name": HOSTILE}, "c": 5}
    assert reply("comm_info_reply", {"status": "ok", "comms": given})["comms"] == {"a": {"target_name": "x"}}
    assert reply("comm_info_reply", {"status": "ok", "comms": [1]})["comms"] == {}


def test_a_kernel_is_a_python_whatever_it_says() -> None:
    info = reply(
        "kernel_info_reply",
        {
            "status": "ok",
            "protocol_version": "5.4",
            "implementation": HOSTILE,
            "implementation_version": "9.1.0",
            "language_info": {"name": "x", "version": "3.13.1", "codemirror_mode": HOSTILE, "nbconvert_exporter": "os"},
            "banner": f"Python{STEERING}",
            "help_links": [{"text": "x", "url": "javascript:alert(1)"}],
            "supported_features": ["debugger", "kernel subshells", HOSTILE],
        },
    )
    assert info["language_info"]["version"] == "3.13.1"
    assert (info["protocol_version"], info["implementation_version"], info["banner"]) == ("5.4", "9.1.0", "Python")
    assert info["supported_features"] == ["kernel subshells", "debugger"]
    assert info["debugger"] is True
    assert HOSTILE not in str(info)
    bare = reply("kernel_info_reply", {"status": "ok", "protocol_version": HOSTILE, "implementation_version": 5})
    assert bare["protocol_version"] == "5.3"
    assert bare["language_info"]["version"] == "3"
    assert bare["supported_features"] == []


def test_the_debugger_answers_with_what_it_found_but_shows_it_as_output() -> None:
    variables = {"type": "response", "success": True, "body": {"variables": [{"name": "x", "value": HOSTILE}]}}
    assert reply("debug_reply", variables)["body"] == variables["body"]
    rich = {"type": "response", "body": {"data": {"text/html": HOSTILE}, "metadata": {"isolated": True}}}
    assert reply("debug_reply", rich)["body"] == {"data": {"text/html": "<img>"}, "metadata": {}}
    assert reply("debug_reply", {"body": {"data": 5}})["body"] == {"data": {}, "metadata": {}}


def test_subshells_have_plain_names() -> None:
    assert "subshell_id" not in reply("create_subshell_reply", {"status": "ok", "subshell_id": HOSTILE})
    assert reply("list_subshell_reply", {"status": "ok", "subshell_id": [HOSTILE, "a", 5]})["subshell_id"] == ["a"]


def test_a_traceback_of_python_stays_as_it_is() -> None:
    lines = [
        "\x1b[31m---------\x1b[39m",
        "\x1b[31mTypeError\x1b[39m  Traceback (most recent call last)",
        "\x1b[36mCell\x1b[39m\x1b[36m \x1b[39m\x1b[32mIn[1]\x1b[39m\x1b[32m, line 1\x1b[39m\n----> 1 f('a')",
        "File ~/x.py:3, in <module>\n      1 x = 'a' < b\n----> 3 g('a')",
        "TypeError: <class 'int'> is no File and has no 'a'",
    ]
    assert clean_error({"ename": "E", "evalue": "x", "traceback": lines}, Said().context)["traceback"] == lines


@pytest.mark.parametrize(
    "line",
    [
        "<a href='x'><img src=x onerror=alert(1)></a>",
        "<A\nHREF='x' onmouseover=alert(1)>x</A>",
        "<\x1b[41ma href='x' onmouseover=alert(1)>x</a>",
        "<ab><img src=x onerror=alert(1)>Cell In[1], line 1",
        "File x' onmouseover='alert(1):3, in f\n----> 3 x",
        "Fi\x1b[41mle x'><img src=x onerror=alert(1)>:3\n----> 3 x",
        "x' onmouseover='alert(1) Cell In[1], line 1",
        "x' onmouseover='alert(1) Cell\x1b[0m \x1b[32mIn [1]\x1b[0m, line 1",
        "y' onmouseover='alert(1) Input \x1b[0;36mIn [1]\x1b[0m, in f",
    ],
)
def test_a_traceback_makes_no_link_of_its_own(line: str) -> None:
    given = {"ename": "E", "evalue": "x", "traceback": [line]}
    assert Checker().output("error", given) != []
    cleaned = clean_error(given, Said().context)
    assert Checker().output("error", cleaned) == []
    assert len(str(cleaned["traceback"])) >= len(str([line])), "nothing that can be seen is lost"


def test_a_long_line_of_a_traceback_is_answered() -> None:
    lines = ["'File " * 200_000, "'Cell" + " " * 200_000, "'" + "Input " * 200_000, "<\x1b[m" * 200_000]
    assert len(clean_error({"traceback": lines}, Said().context)["traceback"]) == 4
