"""What a Jupyter user expects of a kernel, for any backend: a guest on this host, or in a real VM.

The fixtures `nb` (a notebook that a test may leave in any state but must not kill) and `kernel_environment` come from
the module that imports these tests.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import nbformat
from kernel_client import TIMEOUT, Message, Notebook, notebook
from nbclient import NotebookClient


def test_input_asks_and_gets_an_answer(nb: Notebook) -> None:
    msg_id = nb.client.execute("name = input('Name? ')\nprint(name.upper())", allow_stdin=True)
    request = nb.client.get_stdin_msg(timeout=TIMEOUT)
    assert request["content"] == {"prompt": "[VM] Name? ", "password": False}
    nb.client.input("ada")
    assert nb.finish(msg_id).text() == "ADA\n"


def test_getpass_asks_for_a_password(nb: Notebook) -> None:
    msg_id = nb.client.execute("import getpass\nprint(len(getpass.getpass('Key: ')))", allow_stdin=True)
    request = nb.client.get_stdin_msg(timeout=TIMEOUT)
    assert request["content"] == {"prompt": "[VM] Key: ", "password": True}
    nb.client.input("secret")
    assert nb.finish(msg_id).text() == "6\n"


def test_input_without_stdin_is_an_error(nb: Notebook) -> None:
    cell = nb.run("input()", allow_stdin=False)
    assert cell.reply["ename"] == "StdinNotImplementedError"


def interrupt(nb: Notebook, code: str) -> None:
    msg_id = nb.client.execute(f"print('begun', flush=True)\n{code}")
    nb.wait_for("stream")
    nb.manager.interrupt_kernel()
    cell = nb.finish(msg_id)
    assert cell.reply["ename"] == "KeyboardInterrupt"
    assert nb.run("1 + 1").result == "2"


def test_an_interrupt_ends_a_sleep(nb: Notebook) -> None:
    interrupt(nb, "import time\ntime.sleep(60)")


def test_an_interrupt_ends_a_loop_in_c(nb: Notebook) -> None:
    # The pause lets ipykernel's output thread run once more: a loop in C never gives it its turn.
    interrupt(nb, "import re, time\ntime.sleep(0.5)\nre.match(r'(a+)+$', 'a' * 64 + 'b')")


def test_an_interrupt_ends_a_wait_for_input(nb: Notebook) -> None:
    msg_id = nb.client.execute("input('Name? ')", allow_stdin=True)
    nb.client.get_stdin_msg(timeout=TIMEOUT)
    nb.manager.interrupt_kernel()
    assert nb.finish(msg_id).reply["ename"] == "KeyboardInterrupt"


ECHO = """
def echo(comm, opened):
    comm.on_msg(lambda m: comm.send({"echo": m["content"]["data"]}, buffers=[bytes(m["buffers"][0])[::-1]]))
get_ipython().kernel.comm_manager.register_target("echo", echo)
"""


def test_a_comm_carries_buffers_there_and_back(nb: Notebook) -> None:
    nb.run(ECHO)
    payload = os.urandom(100_000)
    nb.send("comm_open", {"comm_id": "c-1", "target_name": "echo", "data": {}})
    nb.send("comm_msg", {"comm_id": "c-1", "data": {"n": 1}}, buffers=[payload])
    answer = nb.wait_for("comm_msg", lambda content: content["comm_id"] == "c-1")
    assert answer["content"]["data"] == {"echo": {"n": 1}}
    assert bytes(answer["buffers"][0]) == payload[::-1]
    nb.send("comm_close", {"comm_id": "c-1", "data": {}})


def test_comm_info_lists_what_is_open(nb: Notebook) -> None:
    nb.run(ECHO)
    nb.send("comm_open", {"comm_id": "c-2", "target_name": "echo", "data": {}})
    reply = nb.reply(nb.send("comm_info_request", {"target_name": "echo"}))
    assert reply["content"]["comms"]["c-2"] == {"target_name": "echo"}
    nb.send("comm_close", {"comm_id": "c-2", "data": {}})


SLIDER = """
import ipywidgets
slider = ipywidgets.IntSlider()
moved = []
slider.observe(lambda change: moved.append(change["new"]), "value")
slider.comm.comm_id
"""


def test_moving_a_slider_calls_its_callback(nb: Notebook) -> None:
    comm_id = nb.run(SLIDER).result.strip("'")
    msg_id = nb.send("comm_msg", {"comm_id": comm_id, "data": {"method": "update", "state": {"value": 42}}})
    for _ in nb.said(msg_id):
        pass
    assert nb.run("moved, slider.value").result == "([42], 42)"


def test_an_output_widget_names_the_request_that_the_client_knows(nb: Notebook) -> None:
    """The front end captures outputs by that msg_id, so it has to be the client's own."""
    msg_id = nb.client.execute("out = ipywidgets.Output()\nwith out:\n    captured = out.msg_id\ncaptured")
    nb.run("import ipywidgets") if "NameError" in str(nb.finish(msg_id).reply) else None
    msg_id = nb.client.execute("out = ipywidgets.Output()\nwith out:\n    captured = out.msg_id\ncaptured")
    assert nb.finish(msg_id).result == repr(msg_id)


def debug(nb: Notebook, number: int, command: str, arguments: Message | None = None) -> Message:
    content = {"type": "request", "seq": number, "command": command, "arguments": arguments or {}}
    reply = nb.control("debug_request", content)
    assert reply["success"], reply
    return dict(reply.get("body") or {})


def stop_at_breakpoint(nb: Notebook) -> tuple[str, dict[str, Any]]:
    """Attach the debugger and run a cell into a breakpoint; return the cell's msg_id and the event that tells of it."""
    code = "def f(x):\n    y = x * 2\n    return y\nprint(f(21))"
    arguments = {"clientID": "test", "adapterID": "", "pathFormat": "path", "linesStartAt1": True}
    debug(nb, 1, "initialize", arguments)
    debug(nb, 2, "attach")
    path = debug(nb, 3, "dumpCell", {"code": code})["sourcePath"]
    source = {"source": {"path": path}, "breakpoints": [{"line": 2}], "sourceModified": False}
    assert debug(nb, 4, "setBreakpoints", source)["breakpoints"][0]["verified"]
    debug(nb, 5, "configurationDone")
    msg_id = nb.client.execute(code)
    return msg_id, nb.wait_for("debug_event", lambda content: content["event"] == "stopped")["content"]


def test_the_debugger_stops_at_a_breakpoint_and_goes_on(nb: Notebook) -> None:
    msg_id, stopped = stop_at_breakpoint(nb)
    thread = {"threadId": stopped["body"]["threadId"]}
    frames = debug(nb, 6, "stackTrace", thread)["stackFrames"]
    assert (frames[0]["name"], frames[0]["line"]) == ("f", 2)
    debug(nb, 7, "continue", thread)
    assert nb.finish(msg_id).text() == "42\n"
    debug(nb, 8, "disconnect", {"restart": False, "terminateDebuggee": False})


def test_a_subshell_answers_while_the_main_shell_is_busy(nb: Notebook) -> None:
    subshell = nb.control("create_subshell_request", {})["subshell_id"]
    assert nb.control("list_subshell_request", {})["subshell_id"] == [subshell]
    busy = nb.client.execute("import threading\ngate = threading.Event()\nprint('in', flush=True)\ngate.wait(100)")
    nb.wait_for("stream")
    content = {"code": "gate.set()\nprint('opened from the subshell')", "silent": False, "store_history": False}
    opener = nb.send("execute_request", content, subshell_id=subshell)
    replies = [nb.client.get_shell_msg(timeout=TIMEOUT)["parent_header"]["msg_id"] for _ in range(2)]
    assert set(replies) == {opener, busy}
    assert nb.control("delete_subshell_request", {"subshell_id": subshell})["status"] == "ok"


def test_usage_is_that_of_the_vm(nb: Notebook) -> None:
    content = nb.control("usage_request", {})
    assert content["kernel_memory"] > 1 << 20
    assert content["pid"] != nb.pid
    assert {"hostname", "kernel_cpu", "cpu_count", "host_virtual_memory"} <= content.keys()


def test_cells_queued_behind_an_error_are_aborted(nb: Notebook) -> None:
    first = nb.client.execute("import time\ntime.sleep(1)\n1/0")
    rest = [nb.client.execute("print('never')") for _ in range(3)]
    assert nb.finish(first).reply["ename"] == "ZeroDivisionError"
    assert [nb.reply(msg_id)["content"]["status"] for msg_id in rest] == ["aborted"] * 3
    assert nb.run("'fine'").status == "ok"


def test_eight_megabytes_of_output_arrive_whole(nb: Notebook) -> None:
    cell = nb.run("for i in range(8):\n    print(chr(97 + i) * 999_999)")
    assert cell.text() == "".join(chr(97 + i) * 999_999 + "\n" for i in range(8))


def test_ten_thousand_small_prints_arrive_in_order(nb: Notebook) -> None:
    cell = nb.run("for i in range(10_000):\n    print(i)")
    assert cell.text() == "".join(f"{i}\n" for i in range(10_000))


def test_what_processes_print_arrives(nb: Notebook) -> None:
    cell = nb.run(
        "import subprocess, time\nsubprocess.run('echo out; echo err >&2', shell=True)\n"
        "time.sleep(0.5)"  # ipykernel reads it from a pipe, on another thread
    )
    assert (cell.text(), cell.text("stderr")) == ("out\n", "err\n")
    assert nb.run("1 + 1").result == "2"


def test_a_large_display_does_not_lose_its_bytes(nb: Notebook) -> None:
    cell = nb.run(
        "from IPython.display import display\ndisplay({'text/plain': '\\u00e4\\U0001f600' * 500_000}, raw=True)"
    )
    assert cell.of("display_data")[0]["data"]["text/plain"] == "ä\U0001f600" * 500_000


def test_unicode_and_binary_display_data_arrive(nb: Notebook) -> None:
    code = "from IPython.display import Image, display\nimport base64\n"
    code += "print('żółć \\U0001f40d \\u202e')\n"
    code += "display(Image(data=b'\\x89PNG\\r\\n\\x1a\\n' + bytes(16) + bytes(range(256)), format='png'))"
    cell = nb.run(code)
    assert cell.text() == "żółć \U0001f40d \u202e\n"
    assert (
        cell.of("display_data")[0]["data"]["image/png"].strip().startswith("iVBORw0KGgoAAAAAAAAAAAAAAAAAAAAAAAECAwQF")
    )


def test_a_display_can_be_updated(nb: Notebook) -> None:
    cell = nb.run("handle = display('one', display_id=True)\nhandle.update('two')")
    shown, updated = cell.of("display_data", "update_display_data")
    assert shown["transient"]["display_id"] == updated["transient"]["display_id"]


def test_user_expressions_and_the_execution_count_are_the_guests(nb: Notebook) -> None:
    before = nb.run("x = 6").reply["execution_count"]
    nb.run("%vm status")
    cell = nb.run("x", user_expressions={"y": "x * 7"})
    assert cell.reply["user_expressions"]["y"]["data"]["text/plain"] == "42"
    assert cell.reply["execution_count"] == before + 2
    assert cell.metadata["agentvm"]["run"] > 0


def test_history_has_the_cells_and_a_comment_for_a_host_magic(nb: Notebook) -> None:
    nb.run("'a cell'")
    nb.run("%vm")
    nb.run("'another'")
    request = {"hist_access_type": "tail", "n": 3, "raw": True, "output": False}
    history = nb.reply(nb.send("history_request", request))["content"]["history"]
    assert [line for _, _, line in history] == ["'a cell'", "# %vm", "'another'"]


def test_vm_status_says_what_the_vm_is(nb: Notebook) -> None:
    cell = nb.run("%vm status")
    data = cell.of("display_data")[0]["data"]
    assert "TCG" in data["text/plain"] or "KVM" in data["text/plain"]
    assert "<table>" in data["text/html"]
    assert cell.of("execute_input")[0]["code"] == "%vm status"


def test_two_clients_share_the_kernel_and_get_their_own_replies(nb: Notebook) -> None:
    with nb.second_client() as other:
        msg_id = other.client.execute("shared = 'from the other'")
        for _ in nb.said(msg_id):
            pass
        assert other.finish(msg_id).status == "ok"
        assert nb.run("shared").result == "'from the other'"


def test_an_encrypted_connection_works(kernel_environment: Mapping[str, str]) -> None:
    with notebook(kernel_environment, transport_encryption="required") as encrypted:
        assert encrypted.manager.curve_publickey
        assert encrypted.run("print('sealed')").text() == "sealed\n"


def test_nbclient_executes_a_notebook(kernel_environment: Mapping[str, str]) -> None:
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell("x = 40"), nbformat.v4.new_code_cell("print(x + 2)")]
    runner = NotebookClient(book, kernel_name="agentvm", timeout=int(TIMEOUT))
    runner.execute(env={**os.environ, **kernel_environment})
    assert book.cells[1].outputs == [{"output_type": "stream", "name": "stdout", "text": "42\n"}]


def test_a_python_that_exits_is_named_and_restart_gives_a_working_vm(nb: Notebook) -> None:
    # ipykernel sends on another thread, which the sleep lets have its turn.
    dead = nb.client.execute("print('last words', flush=True)\nimport os, time\ntime.sleep(0.5)\nos._exit(7)")
    queued = nb.client.execute("print('never')")
    cell = nb.finish(dead)
    assert cell.text() == "last words\n"
    assert len(cell.errors) == 1
    assert "exit code 7" in cell.errors[0]["evalue"]
    assert nb.reply(queued)["content"]["status"] == "aborted"
    later = nb.run("1")
    assert "exit code 7" in later.reply["evalue"]
    assert "%vm restart" in later.reply["evalue"]
    assert nb.run("%vm restart").status == "ok"
    assert nb.run("'alive'").result == "'alive'"


def test_restart_throws_away_what_the_vm_had(nb: Notebook) -> None:
    nb.run("keep = 1")
    assert nb.run("%vm restart").status == "ok"
    assert nb.run("keep").reply["ename"] == "NameError"


def test_jupyters_restart_gives_a_fresh_vm(nb: Notebook) -> None:
    nb.run("keep = 1")
    nb.manager.restart_kernel()
    nb.client.wait_for_ready(timeout=TIMEOUT)
    assert nb.run("'keep' in globals()").result == "False"
