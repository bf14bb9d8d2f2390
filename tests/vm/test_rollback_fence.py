"""Whatever goes on while a notebook goes back: it ends, the notebook works, and nothing of the past comes after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from queue import Empty

import pytest
from kernel_behaviour import ECHO, debug, stop_at_breakpoint
from kernel_client import TIMEOUT, Message, Notebook, notebook
from travel import back, last_words, named, ok, saved, told, value

pytestmark = pytest.mark.timeout(300)

FLOOD = """
import sys, threading
def flood():
    number = 0
    while True:
        number += 1
        print(f"{word} {number} " + "x" * 200)
        if number % 50 == 0:
            sys.stdout.flush()
"""
PULSE = """
import threading, time
def pulse():
    while True:
        time.sleep(0.01)
        for comm in list(comm_manager.comms.values()):
            comm.send({"word": word})
comm_manager = get_ipython().kernel.comm_manager
threading.Thread(target=pulse, daemon=True).start()
"""


@pytest.fixture(scope="module")
def nb(vm_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(named(vm_environment, "/tests/fence.ipynb")) as running:
        ok(running, "word = 'here'")
        saved(running, "start")
        yield running


@pytest.fixture(autouse=True)
def beginning(nb: Notebook) -> None:
    """Each test begins in the same quiet machine."""
    back(nb, "start")


def all_said_until_idle(nb: Notebook, msg_id: str) -> list[Message]:
    """Everything on iopub, whatever its parent, until a request's `idle`."""
    messages = []
    while True:
        message = nb.client.get_iopub_msg(timeout=TIMEOUT)
        messages.append(message)
        if message["parent_header"].get("msg_id") == msg_id and message["content"].get("execution_state") == "idle":
            return messages


def go_back(nb: Notebook, to: str) -> list[Message]:
    """Go back; return all that was said after that, while two cells ran and until nothing came for a while."""
    msg_id = nb.client.execute(f"%rollback {to}")
    during = all_said_until_idle(nb, msg_id)
    reply = nb.reply(msg_id)
    assert reply["content"]["status"] == "ok", reply
    assert any("Back at" in m["content"]["data"]["text/plain"] for m in during if m["msg_type"] == "display_data")
    after = []
    for _ in range(2):
        msg_id = nb.client.execute("print(word)")
        after += all_said_until_idle(nb, msg_id)
        assert nb.reply(msg_id)["content"]["status"] == "ok"
    while True:
        try:
            after.append(nb.client.get_iopub_msg(timeout=0.5))
        except Empty:
            return after


def assert_quiet(messages: list[Message]) -> None:
    """Only the two cells were heard; what one of them prints may come in parts."""
    kinds = [kind for kind, _ in groupby(m["msg_type"] for m in messages if m["msg_type"] != "status")]
    assert kinds == ["execute_input", "stream"] * 2, kinds
    assert "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream") == "here\n" * 2


def test_a_flood_ends_with_its_machine(nb: Notebook) -> None:
    ok(nb, f"word = 'past'\n{FLOOD}\nfor _ in range(3):\n    threading.Thread(target=flood, daemon=True).start()")
    nb.wait_for("stream", lambda content: "past" in content["text"])
    assert_quiet(go_back(nb, "start"))


def test_a_flood_that_was_saved_goes_on_and_can_be_ended(nb: Notebook) -> None:
    ok(nb, f"word = 'flood'\n{FLOOD}\nthreading.Thread(target=flood, daemon=True).start()")
    nb.wait_for("stream", lambda content: "flood" in content["text"])
    saved(nb, "flooding")
    ok(nb, "word = 'past'")
    nb.wait_for("stream", lambda content: "past" in content["text"])
    msg_id = nb.client.execute("%rollback flooding")
    all_said_until_idle(nb, msg_id)
    after = all_said_until_idle(nb, nb.client.execute("print('a cell')"))
    texts = [m["content"]["text"] for m in after if m["msg_type"] == "stream"]
    assert not [text for text in texts if "past" in text]
    assert [text for text in texts if "flood" in text]
    assert [text for text in texts if "a cell" in text]
    back(nb, "start")
    assert_quiet(go_back(nb, "start"))


def test_busy_comms_are_closed_and_silent(nb: Notebook) -> None:
    ok(nb, f"{ECHO}\n{PULSE}\nword = 'past'")
    for name in ("c-1", "c-2"):
        nb.send("comm_open", {"comm_id": name, "target_name": "echo", "data": {}})
        nb.wait_for("comm_msg", lambda content, name=name: content["comm_id"] == name)
    msg_id = nb.client.execute("%rollback start")
    for number in range(100):
        nb.send("comm_msg", {"comm_id": "c-1", "data": {"n": number}})
    during = all_said_until_idle(nb, msg_id)
    assert nb.reply(msg_id)["content"]["status"] == "ok"
    closed = [place for place, m in enumerate(during) if m["msg_type"] == "comm_close"]
    assert {during[place]["content"]["comm_id"] for place in closed} == {"c-1", "c-2"}
    assert "comm_msg" not in [m["msg_type"] for m in during[closed[0] :]]
    after = all_said_until_idle(nb, nb.client.execute("print(word)"))
    assert not {"comm_msg", "comm_open"}.intersection(m["msg_type"] for m in after)
    assert nb.reply(nb.send("comm_info_request", {}))["content"]["comms"] == {}


def test_a_comm_that_was_saved_stays_open(nb: Notebook) -> None:
    ok(nb, ECHO)
    nb.send("comm_open", {"comm_id": "kept", "target_name": "echo", "data": {}})
    saved(nb, "kept")
    go_back(nb, "kept")
    nb.send("comm_msg", {"comm_id": "kept", "data": {"n": 5}}, buffers=[b"abc"])
    answer = nb.wait_for("comm_msg", lambda content: content["comm_id"] == "kept")
    assert answer["content"]["data"] == {"echo": {"n": 5}}


def test_an_attached_debugger_is_left_behind(nb: Notebook) -> None:
    stopped, _ = stop_at_breakpoint(nb)
    returning = nb.client.execute("%rollback start")  # waits for the cell, as every cell does
    debug(nb, 6, "continue", {"threadId": 1})
    assert nb.finish(stopped).text() == "42\n"
    assert last_words(nb.finish(returning)).startswith("Back at start")
    assert_quiet(go_back(nb, "start"))
    # Nothing is attached to the new machine's debugger, which can be used like any.
    info = nb.control("debug_request", {"type": "request", "seq": 1, "command": "debugInfo"})["body"]
    assert (info["isStarted"], info["breakpoints"]) == (False, [])
    stopped, _ = stop_at_breakpoint(nb)
    debug(nb, 6, "disconnect", {"restart": False, "terminateDebuggee": False})
    assert nb.finish(stopped).text() == "42\n"


def test_a_rollback_passes_a_cell_at_a_breakpoint_after_an_interrupt(nb: Notebook) -> None:
    stopped, _ = stop_at_breakpoint(nb)
    returning = nb.client.execute("%rollback start")
    assert nb.control("interrupt_request", {})["status"] == "ok"
    cell = nb.finish(stopped)
    assert cell.status == "error"
    assert "went back to a snapshot" in cell.reply["evalue"]
    assert last_words(nb.finish(returning)).startswith("Back at start")
    assert_quiet(go_back(nb, "start"))


def test_a_snapshot_that_is_being_taken_comes_first(nb: Notebook) -> None:
    with nb.second_client() as other:
        ok(nb, "import os\nlarge = os.urandom(64 << 20)\nword = 'past'")
        taking = other.client.execute("%snapshot --now large-1")
        returning = nb.client.execute("%rollback start")
        assert last_words(other.finish(taking)).startswith("Snapshot large-1")
        assert last_words(nb.finish(returning)).startswith("Back at start")
        assert value(nb, "(word, 'large' in globals())") == ("here", False)
        back(other, "large-1")
        assert value(nb, "(word, len(large))") == ("past", 64 << 20)


def test_a_second_client_goes_back_for_both(nb: Notebook) -> None:
    with nb.second_client() as other:
        ok(nb, "word = 'past'")
        back(other, "start")
        assert value(nb, "word") == "here"
        ok(other, "word = 'other'")
        told(other, "%snapshot of-the-other")
        ok(nb, "word = 'past'")
        back(nb, "of-the-other")
        assert value(other, "word") == "other"


def test_a_frozen_cell_runs_on_after_the_rollback(nb: Notebook) -> None:
    with nb.second_client() as other:
        code = (
            "import time\nfor step in range(60):\n    print('step', step, flush=True)\n    time.sleep(0.1)\ndone = step"
        )
        msg_id = nb.client.execute(code)
        nb.wait_for("stream", lambda content: "step 3" in content["text"])
        assert "it froze a running cell" in told(other, "%snapshot middle --now")
        assert nb.finish(msg_id).status == "ok"
        returned = nb.client.execute("%rollback middle")
        cell = nb.finish(returned)
        assert "froze a running cell" in last_words(cell)
        assert "runs on now" in last_words(cell)
        nb.wait_for("stream", lambda content: "step 59" in content["text"])
        # The cell's machine is busy with it; what comes next waits for its end.
        assert value(nb, "(done, step)") == (59, 59)


def test_all_cells_sent_at_once_keep_their_order(nb: Notebook) -> None:
    cells = [
        "x = 1",
        "%snapshot all-1",
        "x += 1\nprint(x)",
        "%rollback all-1",
        "print(x)",
        "x = 5",
        "%snapshot all-2",
        "%rollback all-1",
        "print(x)",
        "%rollback all-2",
        "print(x)",
    ]
    sent = [nb.client.execute(code) for code in cells]
    ended = [nb.finish(msg_id) for msg_id in sent]
    assert [cell.status for cell in ended] == ["ok"] * len(cells)
    assert [cell.text() for cell in ended if cell.text()] == ["2\n", "1\n", "1\n", "5\n"]
    replies = [cell.metadata["agentvm"]["run"] for cell in ended]
    assert replies == sorted(set(replies))


def test_a_rollback_that_fails_aborts_what_was_sent_with_it(nb: Notebook) -> None:
    cells = ["x = 1", "%rollback nowhere", "x = 2", "%snapshot never", "x = 3"]
    sent = [nb.client.execute(code) for code in cells]
    assert [nb.reply(msg_id)["content"]["status"] for msg_id in sent] == [
        "ok",
        "error",
        "aborted",
        "aborted",
        "aborted",
    ]
    assert value(nb, "x") == 1
    assert "never" not in told(nb, "%snapshots").replace("nowhere", "")
