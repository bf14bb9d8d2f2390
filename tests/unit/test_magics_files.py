"""`%push` and `%pull`, over a real guest agent on this host."""

from __future__ import annotations

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest() -> AsyncIterator[LocalGuest]:
    async with local_guest() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def host(guest: LocalGuest) -> AsyncIterator[Any]:
    link = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch)
    yield SimpleNamespace(machine=link)
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
    assert await call(host, "%push 'a file'") == "a file is in the VM as a file."
    assert (guest.folder / "a file").read_text() == "content"
    assert await call(host, f"%push '{tmp_path}/a file' sub/other") == f"{tmp_path}/a file is in the VM as sub/other."
    assert await call(host, "%pull sub/other") == "sub/other is here as other: 1 files, 0 KiB."
    assert (tmp_path / "other").read_text() == "content"
    assert await call(host, "%pull sub there/it") == "sub is here as there/it: 2 files, 0 KiB."
    assert (tmp_path / "there" / "it" / "other").read_text() == "content"
    with pytest.raises(TransferError, match="there is no nothing"):
        await call(host, "%pull nothing")


async def test_what_is_left_out_is_said(host: Any, guest: LocalGuest, tmp_path: Path) -> None:
    folder = guest.folder / "odd"
    folder.mkdir()
    for number in range(25):
        os.mkfifo(folder / f"pipe{number}")
    lines = (await call(host, f"%pull odd {tmp_path}/odd")).splitlines()
    assert lines[1].startswith("Left out: 'pipe")
    assert len(lines) == 22
    assert lines[-1] == "Left out: 5 more"


@pytest.mark.parametrize("code", ["%push", "%pull", "%pull /", "%pull ..", "%push a b c", "%pull a b c", "%push -x a"])
async def test_a_wrong_call_says_what_is_valid(host: Any, code: str) -> None:
    with pytest.raises(UsageError, match=r"valid is %pu(sh LOCAL \[REMOTE\]|ll REMOTE \[LOCAL\])"):
        await call(host, code)


@pytest.mark.parametrize("name", ["push", "pull"])
async def test_help_has_an_example(host: Any, name: str) -> None:
    assert f"Example:\n\n  %{name} " in await call(host, f"%{name}?")
