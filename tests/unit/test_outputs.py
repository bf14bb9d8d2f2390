"""What is kept of a fork's outputs: as a notebook stores it, through the firewall, and within bounds."""

from __future__ import annotations

import json
from typing import Any

from nbformat.v4 import new_code_cell, new_notebook
from nbformat.validator import validate

from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.kernel.outputs import Outputs
from agentvm_kernel.kernel.wire import GuestMessage


class Cell:
    """A cell that shows things."""

    def __init__(self, limit: int = 10_000, mode: Mode = Mode.STANDARD) -> None:
        self.outputs = Outputs(Policy(mode), limit)

    def say(self, msg_type: str, **content: object) -> None:
        self.outputs.take(GuestMessage(msg_type, "", b"{}", b"{}", json.dumps(content).encode(), []))

    def print(self, text: str, name: str = "stdout") -> None:
        self.say("stream", name=name, text=text)

    def display(self, text: str, *, update: bool = False, **more: object) -> None:
        self.say("update_display_data" if update else "display_data", data={"text/plain": text} | more, metadata={},
                 transient={"display_id": "d"})  # fmt: skip

    @property
    def shown(self) -> tuple[dict[str, Any], ...]:
        return self.outputs.shown()

    @property
    def texts(self) -> list[str]:
        return [one["text"] if "text" in one else one["data"]["text/plain"] for one in self.shown]


def test_outputs_are_what_a_notebook_stores() -> None:
    cell = Cell()
    cell.print("a\n")
    cell.print("b\n")
    cell.print("c\n", "stderr")
    cell.display("d")
    cell.say("execute_result", data={"text/plain": "1"}, metadata={}, execution_count=3)
    cell.say("error", ename="E", evalue="v", traceback=["line"])
    validate(new_notebook(cells=[new_code_cell("x", outputs=list(cell.shown))]))
    assert [one["output_type"] for one in cell.shown] == ["stream", "stream", "display_data", "execute_result", "error"]
    assert cell.shown[0]["text"] == "a\nb\n"


def test_what_the_firewall_takes_out_is_not_kept_and_is_counted() -> None:
    cell = Cell()
    cell.display("x", **{"text/html": "<b onclick='steal()'>bold</b>", "application/vnd.evil": 1})
    (output,) = cell.shown
    assert output["data"] == {"text/plain": "x", "text/html": "<b>bold</b>"}
    assert cell.outputs.firewall.blocked[Reason.MIME] == 1
    assert sum(cell.outputs.firewall.blocked.values()) == 2


def test_widgets_leave_their_text() -> None:
    cell = Cell()
    view = {"model_id": "a" * 32, "version_major": 2, "version_minor": 0}
    cell.display("IntSlider", **{"application/vnd.jupyter.widget-view+json": view})
    cell.say("display_data", data={"application/vnd.jupyter.widget-view+json": view}, metadata={})
    (output,) = cell.shown
    assert output["data"] == {"text/plain": "IntSlider"}


def test_updates_change_what_was_displayed() -> None:
    cell = Cell()
    cell.display("1 %", update=True)
    cell.display("10 %")
    cell.print("x")
    cell.display("99 %", update=True)
    assert cell.texts == ["99 %", "x"]


def test_clearing_waits_for_what_comes_next_and_makes_room() -> None:
    cell = Cell(limit=1000)
    for number in range(5):
        cell.print(f"{number}" * 600)
        cell.say("clear_output", wait=True)
    assert cell.texts == ["4" * 600]


def test_no_more_is_kept_than_there_is_room_for_and_that_is_said() -> None:
    cell = Cell(limit=2048)
    for _ in range(100):
        cell.print("x" * 100)
    cell.print("y" * 5000)
    *kept, note = cell.shown
    assert len(json.dumps(kept)) <= 2048
    assert kept
    assert "more outputs of this fork are left out: there is room for 2 KiB" in note["text"]


def test_what_is_cleared_and_shown_again_for_ever_ends() -> None:
    cell = Cell(limit=1000)
    for _ in range(100):
        cell.print("x" * 800)
        cell.say("clear_output", wait=True)
    assert cell.outputs.left_out > 50


def test_in_an_update_there_is_no_more_room_either() -> None:
    cell = Cell(limit=1000)
    cell.display("small")
    cell.display("x" * 400, update=True)
    cell.display("y" * 400, update=True)
    assert cell.texts[0] == "x" * 400
    assert cell.outputs.left_out == 1
