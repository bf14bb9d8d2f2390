"""`%push` and `%pull`, over a real guest agent on this host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from local_guest import LocalGuest, local_guest

from agentvm_kernel.errors import TransferError
from agentvm_kernel.link.connection import connect
from agentvm_kernel.magics.call import UsageError
from agentvm_kernel.magics.registry import Registry

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, guest: LocalGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text(f"[files]\nfolders = [{str(tmp_path)!r}, {str(guest.folder)!r}]\n")
    monkeypatch.setenv("AGENTVM_CONFIG", str(tmp_path / "config.toml"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest() -> AsyncIterator[LocalGuest]:
    async with local_guest() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def host(guest: LocalGuest) -> AsyncIterator[Any]:
    link = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch)
    yield SimpleNamespace(machine=link, note_copy=lambda *_: None)
    await link.close()


async def call(host: Any, code: str) -> str:
    magic = Registry().find(code)
    assert magic is not None
    return (await magic.run(host))["text/plain"]


async def test_files_go_in_and_out(
    host: Any, guest: LocalGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("content")
    said = "0 KiB, SHA-256 ed7002b439e9."
    assert await call(host, "%push 'a file'") == f"a file is in the VM as a file: {said}"
    assert (guest.folder / "a file").read_text() == "content"
    assert await call(host, f"%push '{tmp_path}/a file' sub/other") == (
        f"{tmp_path}/a file is in the VM as sub/other: {said}"
    )
    assert await call(host, "%push 'a file' sub --into") == f"a file is in the VM as sub/a file: {said}"
    assert await call(host, "%pull sub/other") == f"sub/other is here as other: {said}"
    assert (tmp_path / "other").read_text() == "content"
    told = await call(host, "%pull sub there/it")
    assert told.startswith("sub is here as there/it: 3 files and folders, 0 KiB, digest ")
    assert (tmp_path / "there" / "it" / "other").read_text() == "content"
    assert (await call(host, "%push there/it again")).endswith(told.partition(": ")[2])
    with pytest.raises(TransferError, match="there is no nothing"):
        await call(host, "%pull nothing")


async def test_what_is_left_out_is_said(host: Any, guest: LocalGuest, tmp_path: Path) -> None:
    folder = guest.folder / "odd"
    folder.mkdir()
    for number in range(25):
        os.mkfifo(folder / f"pipe{number}")
    for code in (f"%pull odd {tmp_path}/odd", f"%push {folder} even"):
        lines = (await call(host, code)).splitlines()
        assert lines[1].startswith("Left out: 'pipe")
        assert len(lines) == 22
        assert lines[-1] == "Left out: 5 more"


async def test_there_is_a_limit_that_can_be_moved(host: Any, guest: LocalGuest, tmp_path: Path) -> None:
    (guest.folder / "large").write_bytes(bytes(3 << 20))
    for code in (f"%pull large {tmp_path}/large", f"%push {guest.folder}/large copy"):
        with pytest.raises(TransferError, match=r"more than 2 MiB|3 MiB; the most that is copied is 2 MiB"):
            await call(host, f"{code} --limit 2MiB")
        assert "3.0 MiB" in await call(host, f"{code} --limit 0.01GB")


async def test_an_interrupted_copy_is_gone_on_with_and_progress_is_shown(
    host: Any, guest: LocalGuest, tmp_path: Path
) -> None:
    size = 12 << 20
    (guest.folder / "large2").write_bytes(os.urandom(size))
    task = asyncio.create_task(call(host, f"%pull large2 {tmp_path}/here"))
    machine = host.machine
    while not getattr(machine, "done", None) or machine.done < 0.3:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0)
    assert machine.task == "Copying large2 out of the VM"
    assert machine.stage.endswith(" of 12.0 MiB")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert machine.task == ""
    assert "MiB were there from before" in await call(host, f"%pull large2 {tmp_path}/here")
    assert (tmp_path / "here").read_bytes() == (guest.folder / "large2").read_bytes()


@pytest.mark.parametrize(
    "code", ["%push", "%pull", "%pull /", "%pull ..", "%push a b c", "%pull a b c", "%push -x a", "%push --limit 1GiB"]
)
async def test_a_wrong_call_says_what_is_valid(host: Any, code: str) -> None:
    with pytest.raises(
        UsageError, match=r"valid is %pu(sh LOCAL \[REMOTE\] \[--into\]|ll REMOTE \[LOCAL\]) \[--limit SIZE\]"
    ):
        await call(host, code)


@pytest.mark.parametrize("size", ["much", "5", "-1GiB", "1e9MB", "1GiB b"])
async def test_a_limit_that_is_no_size_is_refused(host: Any, size: str) -> None:
    with pytest.raises(UsageError, match="takes a size such as 500MB or 10GiB"):
        await call(host, f"%push a --limit {size}")


@pytest.mark.parametrize("name", ["push", "pull"])
async def test_help_has_an_example(host: Any, name: str) -> None:
    assert f"Example:\n\n  %{name} " in await call(host, f"%{name}?")
