"""A session without an event loop, against the real API on a real socket; its VMs are guest agents on this host."""

from __future__ import annotations

import inspect
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from fake_supervisor import FakeSupervisor

import agentvm_kernel
from agentvm_kernel import AsyncSession, Session
from agentvm_kernel.blocking import LoopThread
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError


@pytest.fixture
def paths(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(short_tmp))
    return Paths.of_user()


@pytest.fixture(autouse=True)
def supervisor(paths: Paths) -> Iterator[None]:
    made = FakeSupervisor(paths)
    with LoopThread() as thread:
        thread.call(made.__aenter__())
        yield
        thread.call(made.__aexit__())


def test_the_example_of_the_documentation() -> None:
    with Session(profile="light") as s:
        assert s.run("x = 20; x + 1").result == "21"
        snap = s.snapshot()
        assert s.plan_rollback(snap).target.id == snap.id
        assert s.rollback(snap).id == snap.id
        assert [one.id for one in s.snapshots().snapshots] == [snap.id]
        tried = s.fork(2, "import uuid; str(uuid.uuid4())")
        assert len({one.cell.result for one in tried}) == 2
        s.adopt(2)
        assert s.run("str(uuid.uuid4())").status == "ok"
        assert s.limits(processes=64).processes == 64
        with pytest.raises(AgentVMError, match="no snapshot nowhere"):
            s.rollback("nowhere")


def test_ctrl_c_interrupts_the_cell_and_the_session_goes_on(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    code = (
        f"import time\nstopped = False\ntry:\n    open({str(begun)!r}, 'w').close()\n"
        "    time.sleep(600)\nexcept KeyboardInterrupt:\n    stopped = True"
    )

    def press() -> None:
        begun.read_bytes()
        os.kill(os.getpid(), signal.SIGINT)

    with Session() as s:
        threading.Thread(target=press).start()
        with pytest.raises(KeyboardInterrupt):
            s.run(code)
        assert s.run("stopped").result == "True"


def test_another_thread_can_interrupt(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    with Session() as s, ThreadPoolExecutor() as threads:
        cell = threads.submit(s.run, f"import time; open({str(begun)!r}, 'w').close(); time.sleep(600)")
        begun.read_bytes()
        s.interrupt()
        error = cell.result().error
        assert error
        assert error.name == "KeyboardInterrupt"


def test_sessions_of_many_threads_do_not_mix() -> None:
    def own(number: int) -> list[str]:
        with Session(notebook=f"thread {number}") as s:
            s.run(f"x = {number}")
            return [s.run("x += 10; x").result for _ in range(3)]

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(own, range(4)))
    assert results == [[str(number + 10 * step) for step in (1, 2, 3)] for number in range(4)]


def loop_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "agentvm"}


def test_what_goes_wrong_in_a_session_leaves_no_thread_and_no_vm() -> None:
    before = loop_threads()
    with suppress(ZeroDivisionError), Session() as s:
        parent = os.pidfd_open(int(s.run("import os; os.getppid()").result))
        _ = 1 / 0
    with pytest.raises(AgentVMError, match="not open"):
        s.run("1")
    ended, _, _ = select.select([parent], [], [], 20)
    os.close(parent)
    assert ended
    assert loop_threads() == before


def test_a_forked_process_can_neither_use_the_session_nor_keep_its_vm() -> None:
    here, there = os.pipe()
    with Session() as s:
        vm = os.pidfd_open(int(s.run("import os; os.getppid()").result))
        child = os.fork()
        if child == 0:
            os.close(there)
            signal.alarm(60)  # should it wait for ever
            try:
                s.run("1")
            except AgentVMError:
                os.read(here, 1)  # live on with all that was inherited
                os._exit(7)
            os._exit(1)
    ended, _, _ = select.select([vm], [], [], 20)
    os.close(vm)
    os.close(there)
    _, status = os.waitpid(child, 0)
    os.close(here)
    assert ended
    assert os.waitstatus_to_exitcode(status) == 7


@pytest.mark.parametrize(
    "ask",
    [
        lambda s: s.snapshot("x" * 65),
        lambda s: s.rollback("x" * 301),
        lambda s: s.fork(0, "1"),
        lambda s: s.limits(cpu="much"),
        lambda _: Session(image="No Such").__enter__(),
    ],
)
def test_what_cannot_be_asked_for_is_one_clear_line(ask: Callable[[Session], object]) -> None:
    with Session() as s:
        with pytest.raises(AgentVMError, match="must be") as caught:
            ask(s)
        assert (caught.value.code, "\n" in caught.value.message) == ("request", False)
        assert s.run("1").result == "1"


def test_the_package_loads_sessions_only_where_they_are_used() -> None:
    code = "import sys, agentvm_kernel; assert not {'aiohttp', 'pydantic'} & set(sys.modules); agentvm_kernel.Session"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = agentvm_kernel.Nothing  # type: ignore[attr-defined]


def test_both_kinds_of_sessions_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(one).parameters) for name, one in found if not name.startswith("_")}

    assert methods(Session) == methods(AsyncSession)
    assert list(inspect.signature(Session).parameters) == list(inspect.signature(AsyncSession).parameters)
