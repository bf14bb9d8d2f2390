"""What a cell has shown has one digest, whether it is taken from messages or from a notebook's file."""

from __future__ import annotations

from typing import Any

import pytest
from nbformat import from_dict
from nbformat.v4 import output_from_msg, reads_json, writes_json

from agentvm_kernel.observe.outputs import Shown, digest_of_outputs

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=\n"
DISPLAY = ("display_data", {"data": {"text/plain": "a\nb", "image/png": PNG}, "metadata": {}, "transient": {}})
RESULT = ("execute_result", {"data": {"text/html": "<b>\n1</b>"}, "metadata": {}, "execution_count": 3})
ERROR = ("error", {"ename": "E", "evalue": "v", "traceback": ["1", "2"]})
Message = tuple[str, dict[str, Any]]


def out(text: str, name: str = "stdout") -> Message:
    return "stream", {"name": name, "text": text}


def shown(*messages: Message) -> Shown:
    made = Shown()
    for kind, content in messages:
        made.take(kind, content)
    return made


def of_file(*messages: Message) -> str:
    """The digest after a notebook with these outputs was written and read as JSON."""
    outputs = [
        output_from_msg({"header": {"msg_type": kind}, "content": content})  # type: ignore[no-untyped-call]
        for kind, content in messages
    ]
    cell = {"cell_type": "code", "metadata": {}, "source": "", "execution_count": 1, "outputs": outputs, "id": "a"}
    node = from_dict({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    text = writes_json(node)
    return digest_of_outputs(reads_json(text).cells[0].outputs)


def test_messages_and_the_notebook_that_keeps_them_have_one_digest() -> None:
    assert shown(DISPLAY, RESULT, ERROR, out("x\ny\n")).digest == of_file(DISPLAY, RESULT, ERROR, out("x\ny\n"))
    assert shown().digest == of_file()


def test_text_that_comes_in_pieces_counts_as_one_and_each_stream_by_itself() -> None:
    assert shown(out("a"), out("b"), out("c", "stderr")).digest == of_file(out("ab"), out("c", "stderr"))
    assert shown(out("a"), DISPLAY, out("b")).digest == of_file(out("a"), DISPLAY, out("b"))
    assert of_file(out("a"), DISPLAY, out("b")) != of_file(out("ab"), DISPLAY)


def test_what_is_cleared_does_not_count_once_something_takes_its_place() -> None:
    wait, at_once = ("clear_output", {"wait": True}), ("clear_output", {"wait": False})
    assert shown(out("a"), at_once).digest == of_file()
    assert shown(out("a"), wait).digest == of_file(out("a"))
    assert shown(out("a"), wait, DISPLAY).digest == of_file(DISPLAY)


def test_an_updated_display_counts_as_what_it_is_at_last() -> None:
    first = {"data": {"text/plain": "1"}, "metadata": {}, "transient": {"display_id": "d"}}
    last = first | {"data": {"text/plain": "2"}}
    assert shown(("display_data", first), ("update_display_data", last)).digest == of_file(("display_data", last))


@pytest.mark.parametrize(
    "other",
    [
        [out("x\nz\n")], [out("x\ny\n", "stderr")], [], [out("x\ny\n"), DISPLAY],
        [("display_data", {"data": {"text/plain": "x\ny\n"}})],
    ],
)  # fmt: skip
def test_other_outputs_have_another_digest(other: list[Message]) -> None:
    assert shown(out("x\ny\n")).digest != shown(*other).digest


def test_an_error_and_a_display_differ_by_each_part() -> None:
    kinds = [ERROR, *(("error", ERROR[1] | {key: "o"}) for key in ERROR[1]), DISPLAY, RESULT]
    assert len({shown(one).digest for one in kinds}) == len(kinds)


def test_text_that_takes_back_what_stood_there_and_very_many_outputs_have_no_digest() -> None:
    assert shown(out("10 %\r20 %")).digest == ""
    assert shown(*([DISPLAY] * 10_001)).digest == ""
    assert shown(*([DISPLAY] * 10_000)).digest != ""
