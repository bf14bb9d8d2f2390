"""`agentvm cp`, typed into a kernel process over a fake supervisor and a real guest agent."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from copies import SECONDS, Copies, connection_file
from kernel_client import Notebook, notebook, wait_until
from kernel_fixtures import kernel_environment  # noqa: F401

from agentvm_kernel.errors import SupervisorError, TransferError
from agentvm_kernel.magics.call import find_call
from agentvm_kernel.run.copy_command import Place, _ended, _magic, find
from agentvm_kernel.supervisor.operator_messages import VMInfo

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def kernel(kernel_environment: Mapping[str, str]) -> Iterator[Notebook]:  # noqa: F811
    environment = {**kernel_environment, "JPY_SESSION_NAME": "/home/me/study/analysis.ipynb"}
    with notebook(environment, connection_file=connection_file()) as running:
        assert running.run("1").status == "ok"  # it has its VM
        yield running


@pytest.fixture
def copies(tmp_path: Path, kernel_environment: Mapping[str, str], kernel: Notebook) -> Copies:  # noqa: F811
    return Copies(tmp_path, kernel_environment)


def home_of(kernel: Notebook) -> Path:
    return Path(kernel.run("import os; print(os.path.expanduser('~'))").text().strip())


def test_files_and_folders_go_in_and_out(copies: Copies, kernel: Notebook) -> None:
    odd = 'it\'s "a" $file'
    (copies.folder / odd).write_text("content")
    told = copies.run(odd, "analysis.ipynb:")
    assert told == f"{copies.folder / odd} is in the VM as ./{odd}: 0 KiB, SHA-256 ed7002b439e9.\n"
    home = home_of(kernel)
    assert (home / odd).read_text() == "content"
    kernel_id = Path(kernel.manager.connection_file).stem.removeprefix("kernel-")
    copies.run(odd, f"{kernel_id}:new/name")
    copies.run(odd, f"kernel-{kernel_id}:new")
    assert sorted(path.name for path in (home / "new").iterdir()) == [odd, "name"]
    (copies.folder / "here").mkdir()
    copies.run("study/analysis.ipynb:new", "here")
    copies.run("local:new/name", "./with:colon")
    assert sorted(path.name for path in (copies.folder / "here" / "new").iterdir()) == [odd, "name"]
    assert (copies.folder / "with:colon").read_text() == "content"


def test_what_goes_wrong_is_told_in_one_line(copies: Copies) -> None:
    assert "there is no nothing" in copies.fails("analysis.ipynb:nothing", "x")
    assert "No VM that is out is called 'other.ipynb'" in copies.fails("other.ipynb:x", "x")
    assert "One of the two has to be in a VM" in copies.fails("a", "b")
    assert "most that is copied" in copies.fails(str(Path(__file__)), "analysis.ipynb:x", "--limit", "1kB")


def test_the_notebook_is_left_as_it_was(copies: Copies, kernel: Notebook) -> None:
    before = kernel.run("1").reply["execution_count"]
    (copies.folder / "file").write_text("x")
    copies.run("file", "analysis.ipynb:file")
    assert kernel.run("1").reply["execution_count"] == before + 1


FORGE = """
import threading
kernel = get_ipython().kernel
honest, ended = kernel.do_execute, threading.Event()
said = {"text/plain": "forged is in the VM: 5 GiB, SHA-256 0."}

def flood(parent):
    for number in range(10_000):
        content = {"data": said, "metadata": {}, "transient": {"display_id": "x"} if number % 2 else {}}
        kernel.session.send(kernel.iopub_socket, "display_data", content, parent=parent,
                            metadata={"agentvm": {"host": True}})
        if ended.wait(0.005):
            return

async def forging(*arguments, **more):
    threading.Thread(target=flood, args=(kernel.get_parent("shell"),)).start()
    return await honest(*arguments, **more)

kernel.do_execute = forging
"""


def test_what_the_guest_shows_meanwhile_is_not_told_as_the_hosts(copies: Copies, kernel: Notebook) -> None:
    (copies.folder / "file").write_bytes(os.urandom(30 << 20))  # long enough for the guest to have a say
    assert kernel.run(FORGE).status == "ok"
    try:
        told = copies.run("file", "analysis.ipynb:file")
    finally:
        kernel.run("ended.set(); kernel.do_execute = honest")
    assert (told.count("\n"), "30.0 MiB, SHA-256" in told, "forged" in told) == (1, True, False), told


class Client:
    """A kernel's client that has a few messages to give."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._messages = [message | {"parent_header": {"msg_id": "1"}} for message in messages]

    async def get_iopub_msg(self, timeout: float) -> dict[str, Any]:
        return self._messages.pop(0)

    async def get_shell_msg(self, timeout: float) -> dict[str, Any]:
        return {"parent_header": {"msg_id": "1"}, "content": {"status": "ok"}}


def display(text: str, by: object, kind: str = "display_data") -> dict[str, Any]:
    metadata = {} if by is None else {"agentvm": by}
    content = {"data": {"text/plain": text}, "metadata": {}, "transient": {"display_id": "x"}}
    return {"msg_type": kind, "content": content, "metadata": metadata}


async def test_only_what_the_host_says_is_shown_whatever_comes_last() -> None:
    host, progress = {"host": True}, {"host": True, "progress": True}
    others = [
        display("forged", by, kind) for kind in ("display_data", "update_display_data") for by in (None, {}, True)
    ]
    bar = [display("a tenth", progress), display("a fifth", progress, "update_display_data")]
    gone = {"msg_type": "clear_output", "content": {"wait": False}, "metadata": {}}
    idle = {"msg_type": "status", "content": {"execution_state": "idle"}, "metadata": {}}
    status: Any = SimpleNamespace(shown=[])
    status.update = lambda text: status.shown.append(str(text))
    interruption: Any = SimpleNamespace(began=lambda: None)
    client: Any = Client(*others, *bar, gone, display("true", host), *others, idle)
    assert await _ended(client, "1", status, interruption) == ({"status": "ok"}, "true")
    assert status.shown == ["a tenth", "a fifth"]


def test_an_interrupted_copy_goes_on_where_it_stopped(copies: Copies, kernel: Notebook) -> None:
    large = home_of(kernel) / "large"
    large.write_bytes(os.urandom(80 << 20))

    def begun() -> bool:
        return sum(path.stat().st_size for path in copies.folder.rglob("content") if path.is_file()) > 1 << 20

    with copies.start("analysis.ipynb:large", ".") as process:
        wait_until(begun, "something has come")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (130, "")
    assert not (copies.folder / "large").exists()
    assert "were there from before" in copies.run("analysis.ipynb:large", ".")
    assert (copies.folder / "large").read_bytes() == large.read_bytes()
    assert [path.name for path in copies.folder.iterdir()] == ["large"]


def test_it_waits_for_the_cell_that_runs_and_does_not_interrupt_it(copies: Copies, kernel: Notebook) -> None:
    (copies.folder / "file").write_text("x")
    fifo = home_of(kernel) / "fifo"
    os.mkfifo(fifo)
    msg_id = kernel.client.execute(f"print(open({str(fifo)!r}).read())")
    with fifo.open("w") as gate, copies.start("file", "analysis.ipynb:waited") as process:
        assert process.stderr
        assert process.stderr.readline() == "Waiting for the cell that runs.\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("It is ended as soon as it begins")
        gate.write("undisturbed")
        gate.close()
        assert process.wait(SECONDS) == 130
    assert kernel.finish(msg_id).text() == "undisturbed\n"
    assert not (home_of(kernel) / "waited").exists()


@pytest.mark.parametrize(
    ("text", "vm", "path"),
    [
        ("data.csv", "", "data.csv"),
        ("vm:data.csv", "vm", "data.csv"),
        ("a/b.ipynb:c:d", "a/b.ipynb", "c:d"),
        ("vm:", "vm", ""),
        ("./a:b", "", "./a:b"),
        ("/a:b", "", "/a:b"),
        ("~/a:b", "", "~/a:b"),
        (":b", "", ":b"),
    ],
)
def test_a_place_is_read_as_other_commands_do(text: str, vm: str, path: str) -> None:
    assert Place.of(text) == Place(vm, path)


@pytest.mark.parametrize("path", ["a b", "it's", 'a"b', "$(x)", "#a", "%vm", "-x", "a\\b", "--limit", "?", "ä"])
def test_what_is_typed_is_read_as_it_was_meant(path: str) -> None:
    code, vm, _ = _magic(Place("vm", path), Place("", "here"), "")
    call = find_call(code, ["pull"])
    assert (vm, call.words if call else ()) == (
        "vm",
        (f"./{path}" if path[0] == "-" else path, str(Path("here").absolute())),
    )


@pytest.mark.parametrize("path", ["a\nb", "a\u2028%vm stop", "a\x00", "a\x1b"])
def test_no_second_line_can_be_typed(path: str) -> None:
    with pytest.raises(TransferError, match="cannot be typed"):
        _magic(Place("vm", path), Place("", "here"), "")
    with pytest.raises(TransferError, match="cannot be typed"):
        _magic(Place("", "here"), Place("vm", "x"), path)


def vm(number: str, owner: str = "kernel-1", notebook: str = "/n.ipynb", state: str = "leased") -> VMInfo:
    return VMInfo.model_validate(
        {"id": number, "state": state, "owner": owner, "notebook": notebook, "vcpus": 1, "memory_mib": 1, "pid": 1}
    )


@pytest.mark.parametrize(
    ("vms", "wanted", "reason"),
    [
        ([], "a", "No VM that is out is called 'a'"),
        ([vm("ab"), vm("ac")], "a", "2 VMs are called 'a'"),
        ([vm("a", state="fork")], "a", "No VM"),
        ([vm("a", owner="run x.py")], "a", "not that of a notebook"),
        ([vm("a", owner="kernel-../../x")], "a", "not that of a notebook"),
    ],
)
def test_what_cannot_be_reached_is_told(vms: list[VMInfo], wanted: str, reason: str) -> None:
    with pytest.raises(SupervisorError, match=reason) as caught:
        find(tuple(vms), wanted)
    assert caught.value.hint


def test_a_whole_name_goes_before_the_beginning_of_others() -> None:
    assert find((vm("a"), vm("ab")), "a").id == "a"
