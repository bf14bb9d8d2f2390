"""A session for code, against the real API on a real socket; its VMs are guest agents on this host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from fake_supervisor import FakeSupervisor

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, VMEndedError
from agentvm_kernel.experiment import AsyncSession
from agentvm_kernel.supervisor.messages import Ended


@pytest.fixture
def paths(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(short_tmp))
    return Paths.of_user()


@pytest_asyncio.fixture
async def supervisor(paths: Paths) -> AsyncIterator[FakeSupervisor]:
    async with FakeSupervisor(paths) as made:
        yield made


@pytest.mark.usefixtures("supervisor")
async def test_cells_follow_one_another_in_one_vm(paths: Paths) -> None:
    async with AsyncSession(paths=paths) as session:
        await session.run("x = 0")
        cells = await asyncio.gather(*(session.run("x += 1; print('x is', flush=True); x") for _ in range(21)))
        assert [(cell.stdout, cell.result) for cell in cells] == [("x is\n", str(number)) for number in range(1, 22)]
        assert (await session.run("1 / 0")).status == "error"
        assert (await session.run("import time; time.sleep(60)", timeout=0.5)).status == "timeout"
        assert (await session.run("x")).result == "21"


@pytest.mark.usefixtures("supervisor")
async def test_a_session_goes_back_and_goes_on_in_another_vm(paths: Paths) -> None:
    async with AsyncSession(paths=paths) as session:
        await session.run("import os\nhome = os.environ['HOME']")
        info = await session.snapshot("start", "before it all")
        assert (info.label, info.text, info.cell.run, info.cell.code[:9]) == ("start", "before it all", 1, "import os")
        assert (await session.rollback("start")).id == info.id
        # The fake's VM is a fresh one.
        assert (await session.run("'home' in globals()")).result == "False"
        with pytest.raises(AgentVMError):
            await session.rollback("nowhere")
        assert (await session.run("1")).result == "1"


@pytest.mark.usefixtures("supervisor")
async def test_a_fork_can_be_adopted(paths: Paths) -> None:
    async with AsyncSession(paths=paths) as session:
        first, second = await session.fork(2, "import uuid; mark = str(uuid.uuid4()); mark")
        assert first.kept
        assert second.kept
        assert first.cell.result != second.cell.result
        assert (await session.run("mark")).status == "error"
        await session.adopt(2)
        assert (await session.run("mark")).result == second.cell.result


@pytest.mark.usefixtures("supervisor")
async def test_the_vms_end_is_a_result_first_and_an_error_from_then_on(paths: Paths) -> None:
    async with AsyncSession(paths=paths) as session:
        code = "import os, time\nprint('begun', flush=True)\ntime.sleep(0.3)\nos.kill(os.getppid(), 9)\ntime.sleep(60)"
        died = await session.run(code)
        assert (died.status, died.stdout, died.reason) == ("died", "begun\n", "The virtual machine powered off.")
        with pytest.raises(VMEndedError, match="powered off"):
            await session.run("1")
        with pytest.raises(VMEndedError, match=r"powered off.*\nOpen another session"):
            await session.snapshot()


async def test_a_vm_that_cannot_be_had_is_an_error(paths: Paths) -> None:
    refusal = Ended(code="host", reason="No QEMU.", hint="Run agentvm setup.")
    async with FakeSupervisor(paths, refuse=refusal):
        with pytest.raises(AgentVMError, match=r"No QEMU") as caught:
            async with AsyncSession(paths=paths):
                pass
    assert caught.value.hint == "Run agentvm setup."


async def test_leaving_the_session_gives_the_vm_back(paths: Paths, supervisor: FakeSupervisor) -> None:
    async with AsyncSession(paths=paths) as session:
        parent = int((await session.run("import os; os.getppid()")).result)
        process = os.pidfd_open(parent)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(process, gone.set)
    async with asyncio.timeout(20):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(process)
    os.close(process)
    assert supervisor.leases == 1


@pytest.mark.usefixtures("supervisor")
async def test_a_cancelled_cell_is_interrupted_and_the_session_goes_on(paths: Paths, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    code = (
        f"import time\nstopped = False\ntry:\n    open({str(begun)!r}, 'w').close()\n"
        "    time.sleep(600)\nexcept KeyboardInterrupt:\n    stopped = True"
    )
    async with AsyncSession(paths=paths) as session:
        cell = asyncio.create_task(session.run(code))
        await asyncio.to_thread(begun.read_bytes)
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell
        assert (await session.run("stopped")).result == "True"


@pytest.mark.usefixtures("supervisor")
async def test_a_cell_may_run_as_long_as_the_limit_says(paths: Paths) -> None:
    async with AsyncSession(paths=paths) as session:
        assert (await session.limits()).cell_deadline == 300
        assert (await session.limits(cell_deadline=1, cpu=0.5)).cpu == 0.5
        cell = await session.run("import time; time.sleep(60)")
        assert (cell.status, cell.reason) == ("timeout", "It was not done within 1 s.")
