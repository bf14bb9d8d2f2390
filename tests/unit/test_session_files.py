"""Programs and files in a session, over the fake supervisor and a real guest agent."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from fake_supervisor import FakeSupervisor

from agentvm_kernel import AsyncSession, Session
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import RunError, TransferError, VMEndedError
from agentvm_kernel.experiment import Bounds
from agentvm_kernel.run.exec import Output

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def paths() -> AsyncIterator[Paths]:
    with tempfile.TemporaryDirectory(prefix="avm-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTVM_STATE_DIR", folder)
        paths = Paths.of_user()
        async with FakeSupervisor(paths):
            yield paths


async def test_programs_run_beside_cells(paths: Paths) -> None:
    seen: list[Output] = []
    async with AsyncSession(paths=paths) as session:
        home = (await session.exec(["pwd"])).stdout.decode().strip()
        assert (await session.exec(["mkfifo", "pipe"])).code == 0
        cell = asyncio.create_task(session.run(f"open({home + '/pipe'!r}).read()"))
        program = ["sh", "-c", "cat; echo $A | tee pipe; echo bad >&2; exit 7"]
        result = await session.exec(program, env={"A": "b"}, stdin=b"in ", on_output=seen.append)
        assert (result.code, result.stdout, result.stderr) == (7, b"in b\n", b"bad\n")
        assert (result.timed_out, result.dropped) == (False, 0)
        assert Output("stderr", b"bad\n") in seen
        assert (await cell).result == r"'b\n'"
        with pytest.raises(RunError, match="nowhere"):
            await session.exec(["true"], cwd="nowhere")


async def test_a_program_has_a_time_limit_and_its_output_a_bound(paths: Paths) -> None:
    async with AsyncSession(paths=paths) as session:
        result = await session.exec(["sh", "-c", "echo begun; sleep 60"], timeout=0.5)
        assert (result.code, result.stdout, result.timed_out) == (143, b"begun\n", True)
        stubborn = await session.exec(["sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60"], timeout=0.5)
        assert (stubborn.code, stubborn.timed_out) == (137, True)
        flood = await session.exec(["head", "-c", str(20 << 20), "/dev/zero"])
        assert (len(flood.stdout), flood.dropped) == (16 << 20, 4 << 20)


async def test_files_go_in_and_out(paths: Paths, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "data").write_bytes(data)
    async with AsyncSession(paths=paths) as session:
        await session.put(tmp_path / "data")
        await session.put(str(tmp_path / "data"), "there/it/is")
        assert (await session.get("there", tmp_path / "there")).size == len(data)
        assert (tmp_path / "there" / "it" / "is").read_bytes() == data
        with pytest.raises(TransferError, match="the most that is taken"):
            await session.get("data", tmp_path / "large", Bounds(size=99_999))
        with pytest.raises(TransferError, match="no-file"):
            await session.put(tmp_path / "no-file")
        await session.get("data", tmp_path / "data")


async def test_a_session_without_an_event_loop_has_the_same(paths: Paths, tmp_path: Path) -> None:
    def work() -> tuple[bytes, int]:
        with Session(paths=paths) as session:
            session.put(Path(__file__), "test.py")
            return session.exec(["cat", "test.py"]).stdout, session.get("test.py", tmp_path / "back").count

    assert await asyncio.to_thread(work) == (Path(__file__).read_bytes(), 1)
    assert (tmp_path / "back").read_bytes() == Path(__file__).read_bytes()


async def test_the_vms_end_is_named(paths: Paths, tmp_path: Path) -> None:
    async with AsyncSession(paths=paths) as session:
        with pytest.raises(VMEndedError, match="powered off"):
            await session.exec(["sh", "-c", "kill -9 $PPID; sleep 60"])
        with pytest.raises(VMEndedError, match="powered off"):
            await session.get("x", tmp_path / "x")


async def test_what_runs_when_another_vm_takes_the_place_ends_with_its_own(paths: Paths) -> None:
    async with AsyncSession(paths=paths) as session:
        await session.snapshot("here")
        begun = asyncio.Event()
        running = asyncio.create_task(session.exec(["sh", "-c", "echo; sleep 60"], on_output=lambda _: begun.set()))
        await begun.wait()
        await session.rollback("here")
        with pytest.raises(VMEndedError, match="taken this one's place"):
            await running
        assert (await session.exec(["true"])).code == 0
