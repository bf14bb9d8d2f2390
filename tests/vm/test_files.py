"""Files into real VMs and out of them: by hash, interrupted and gone on with, full disks, a guest that lies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from copies import SECONDS, Copies, connection_file
from kernel_client import Cell, Message, Notebook, notebook, wait_until
from soak import size

from agentvm_kernel import AsyncSession
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import TransferError
from agentvm_kernel.experiment import Bounds

pytestmark = pytest.mark.timeout(900)

_MB = 10**6
LARGE = size(200 * _MB, 1000 * _MB)
INTERRUPTED = size(40 * _MB, 1000 * _MB)

DESCRIBE = """
import hashlib, json, os, stat, sys
root, found = sys.argv[1], {}
for at, folders, files in os.walk(root):
    for name in folders + files:
        place = os.path.join(at, name)
        status = os.lstat(place)
        what = [stat.S_IMODE(status.st_mode), int(status.st_mtime)]
        if stat.S_ISLNK(status.st_mode):
            what = [os.readlink(place), int(status.st_mtime)]
        elif stat.S_ISREG(status.st_mode):
            what.append(hashlib.sha256(open(place, "rb").read()).hexdigest())
        found[os.path.relpath(place, root)] = what
print(json.dumps(found, sort_keys=True))
"""
# It says now and then that it goes on: an emulated machine takes minutes for a gigabyte.
SUM = """
import hashlib
found = hashlib.sha256()
with open("copy", "rb") as file:
    while piece := file.read(20 << 20):
        found.update(piece)
        print(end=".", flush=True)
found.hexdigest()
"""


@pytest.fixture
async def session(vm_paths: Paths) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(paths=vm_paths, profile="test", image="minimal", notebook="files") as leased:
        yield leased


def filled(path: Path, length: int) -> Path:
    """A file with what cannot be guessed."""
    with path.open("wb") as file:
        for _ in range(length // _MB):
            file.write(os.urandom(_MB))
    return path


def sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def output(session: AsyncSession, *argv: str) -> str:
    done = await session.exec(argv)
    assert done.code == 0, done.stderr
    return done.stdout.decode()


async def test_a_folder_goes_in_and_out_as_it_is(session: AsyncSession, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub" / "d\u00e9ep \u65e5\u672c").mkdir(parents=True)
    (tree / "empty").mkdir(mode=0o750)
    for number, (name, mode) in enumerate(
        {"a": 0o444, "-n": 0o755, "sub/d\u00e9ep \u65e5\u672c/\u2603": 0o600}.items()
    ):
        (tree / name).write_bytes(os.urandom(100_000 * number))
        (tree / name).chmod(mode)
        os.utime(tree / name, (1, 10**9 + number))
    (tree / "link").symlink_to("sub")
    for folder in ("sub", "empty"):
        os.utime(tree / folder, (1, 1_100_000_000))
    expected = json.loads(_described(tree))
    sent = await session.put(tree, "in/there")
    assert json.loads(await output(session, "python3", "-c", DESCRIBE, "in/there")) == expected
    digest = "cd in/there && find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum"
    assert (await output(session, "sh", "-c", digest)).split()[0] == sent.digest
    await output(session, "sudo", "chmod", "4755", "in/there/-n")
    await output(session, "sudo", "mknod", "in/there/null", "c", "1", "3")
    await output(session, "ln", "-s", "/etc/passwd", "in/there/out")
    received = await session.get("in/there", tmp_path / "back")
    assert json.loads(_described(tmp_path / "back")) == expected
    assert (received.digest, received.left_out_count) == (sent.digest, 2)


def _described(root: Path) -> str:
    return subprocess.run([sys.executable, "-c", DESCRIBE, root], capture_output=True, check=True, text=True).stdout


async def test_a_large_file_goes_in_and_out_by_hash(session: AsyncSession, tmp_path: Path) -> None:
    large = filled(tmp_path / "large", LARGE)
    sent = await session.put(large)
    assert sent.digest == sum_of(large)
    assert (await output(session, "sha256sum", "large")).split()[0] == sent.digest
    received = await session.get("large", tmp_path / "back")
    assert (received.digest, received.size) == (sent.digest, LARGE)
    assert sum_of(tmp_path / "back") == sent.digest


async def test_a_full_disk_in_the_vm_is_told_and_nothing_stays(session: AsyncSession, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(40 * _MB))
    leave = "free=$(df --output=avail -B1 . | tail -1); fallocate -l $((free - 20000000)) ballast"
    await output(session, "sh", "-c", leave)
    with pytest.raises(TransferError, match="No space left on device") as caught:
        await session.put(tmp_path / "file", "there/file")
    assert "Make room in the VM" in caught.value.hint
    assert await output(session, "ls", "-A", "there") == ""
    await output(session, "rm", "ballast")
    assert (await session.put(tmp_path / "file", "there/file")).saved == 0


async def test_too_much_is_refused_in_both_directions(session: AsyncSession, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(5 * _MB))
    with pytest.raises(TransferError, match="the most that is copied is"):
        await session.put(tmp_path / "file", bounds=Bounds(size=_MB))
    await session.put(tmp_path / "file")
    with pytest.raises(TransferError, match=r"more than 0\.953674 MiB"):
        await session.get("file", tmp_path / "back", Bounds(size=_MB))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


async def test_after_a_rollback_a_push_begins_anew(session: AsyncSession, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(20 * _MB))
    await session.snapshot("before")
    await _interrupted_put(session, tmp_path / "file")
    assert ".agentvm-part-" in await output(session, "ls", "-A")
    await session.rollback("before")
    sent = await session.put(tmp_path / "file")
    assert sent.saved == 0
    assert (await output(session, "sha256sum", "file")).split()[0] == sent.digest


async def _interrupted_put(session: AsyncSession, path: Path) -> None:
    """Cancel a copy when a quarter of it is there."""

    async def work() -> None:
        task = asyncio.current_task()
        assert task
        await session.put(path, on_progress=lambda done, total: task.cancel() if done > total // 4 else None)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())


LIAR = r"""#!/bin/sh
echo '{"size":1,"count":2}'
echo '{"path":"","kind":"folder","mode":493,"mtime":0}'
echo '{"path":"../escaped","kind":"file","mode":420,"mtime":0,"size":1,"offset":0}'
printf x
echo '{"check":0}'
"""


async def test_a_guest_that_lies_writes_nothing_here(session: AsyncSession, tmp_path: Path) -> None:
    await session.put(_written(tmp_path / "liar", LIAR), "liar")
    await output(session, "sh", "-c", 'sudo ln -sf /home/agent/liar "$(command -v python3)"')
    (tmp_path / "liar").unlink()
    with pytest.raises(TransferError, match="another place"):
        await session.get("anything", tmp_path / "deep" / "out")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["deep"]


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


# In notebooks.


def _copied(book: Notebook, code: str) -> Cell:
    cell = book.run(code)
    assert cell.status == "ok", cell.reply
    return cell


def _interrupt_midway(book: Notebook, code: str) -> None:
    """Run a copy, and interrupt it as JupyterLab does when its progress says that a fifth is done."""
    sent: list[bool] = []

    def each(message: Message) -> None:
        text = message["content"].get("data", {}).get("text/plain", "")
        share = text.rpartition("] ")[2].partition("%")[0]
        if share.isdigit() and int(share) >= 20 and not sent:
            assert " MiB of " in text or " GiB" in text
            sent.append(True)
            book.manager.interrupt_kernel()

    cell = book.finish(book.client.execute(code), each=each)
    assert sent, "it ended before it could be interrupted"
    assert (cell.status, cell.reply["ename"]) == ("error", "KeyboardInterrupt")


def said(cell: Cell) -> str:
    return str(cell.of("display_data")[-1]["data"]["text/plain"])


def test_interrupted_cells_go_on_where_they_stopped(vm_environment: Mapping[str, str], tmp_path: Path) -> None:
    large = filled(tmp_path / "large", INTERRUPTED)
    with notebook(vm_environment) as book:
        assert book.run("1").status == "ok"
        _interrupt_midway(book, f"%push {large} copy")
        assert book.run("import os; os.path.exists('copy')").result == "False"
        assert "were there from before, SHA-256 " in said(_copied(book, f"%push {large} copy"))
        assert book.run(SUM).result == repr(sum_of(large))
        _interrupt_midway(book, f"%pull copy {tmp_path}/back")
        assert not (tmp_path / "back").exists()
        assert "were there from before, SHA-256 " in said(_copied(book, f"%pull copy {tmp_path}/back"))
        assert sum_of(tmp_path / "back") == sum_of(large)
        assert {path.name for path in tmp_path.iterdir()} == {"large", "back"}
        assert book.run("os.listdir()").result.count(".agentvm-part-") == 0


def test_cells_copy_only_what_lies_below_the_notebooks_folder(
    vm_environment: Mapping[str, str], tmp_path: Path
) -> None:
    planted = Path("/etc/agentvm-planted"), tmp_path / ".bashrc"
    with notebook(vm_environment) as book:
        for code in ("%push /etc/hostname stolen", *(f"%pull /etc/hostname {path}" for path in planted)):
            cell = book.run(code)
            assert (cell.status, cell.reply["ename"]) == ("error", "PlaceError"), cell.reply
        assert book.run("import os; os.path.exists('stolen')").result == "False"
    assert not any(path.exists() for path in planted)


def test_what_a_killed_kernel_has_received_is_gone_on_with_from_another_vm(
    vm_environment: Mapping[str, str], tmp_path: Path
) -> None:
    large = filled(tmp_path / "large", INTERRUPTED)
    place = tmp_path / "place"
    with notebook(vm_environment) as book:
        _copied(book, f"%push {large} copy")
        book.client.execute(f"%pull copy {place}/back")

        def begun() -> bool:
            return sum(path.stat().st_size for path in place.rglob("content")) > INTERRUPTED // 10

        wait_until(begun, "something has come", SECONDS)
        os.kill(book.pid, signal.SIGKILL)
    assert [path.name[:14] for path in place.iterdir()] == [".agentvm-part-"]
    with notebook(vm_environment) as book:
        _copied(book, f"%push {large} copy")
        assert "were there from before" in said(_copied(book, f"%pull copy {place}/back"))
    assert sum_of(place / "back") == sum_of(large)
    assert [path.name for path in place.iterdir()] == ["back"]


def test_agentvm_cp_reaches_a_notebooks_vm(vm_environment: Mapping[str, str], tmp_path: Path) -> None:
    environment = {**vm_environment, "JPY_SESSION_NAME": str(tmp_path / "study.ipynb")}
    copies = Copies(tmp_path, vm_environment)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a file").write_text("content")
    (tmp_path / "in" / "a file").chmod(0o640)
    with notebook(environment, connection_file=connection_file()) as book:
        assert book.run("import os; os.mkdir('there')").status == "ok"
        assert "in is in the VM as there/in: " in copies.run("in", "study.ipynb:there")
        assert book.run("oct(os.stat('there/in/a file').st_mode)").result == "'0o100640'"
        copies.run("study.ipynb:there/in", "out")
    assert (tmp_path / "out" / "a file").read_text() == "content"
    assert stat.S_IMODE((tmp_path / "out" / "a file").stat().st_mode) == 0o640
    assert "agentvm vm list" in copies.fails("study.ipynb:there", "x")
