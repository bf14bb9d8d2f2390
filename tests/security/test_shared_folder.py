"""Whoever is root in a VM, and speaks 9P to the device himself, changes nothing in a folder shared read-only."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest
from raw_9p import (
    ATTACH,
    CREATE,
    LCREATE,
    LOPEN,
    MKDIR,
    NO_FID,
    OPEN,
    REMOVE,
    SETATTR,
    UNLINKAT,
    VERSION,
    WALK,
    WRITE,
    WSTAT,
    PausedMachine,
    paused_machine,
    text,
)  # fmt: skip

from agentvm_kernel.vm.domain import domain_xml
from agentvm_kernel.vm.folder_device import FolderDevice
from agentvm_kernel.vm.folder_view import open_folder
from agentvm_kernel.vm.spec import DomainSpec, Hardware, Transport

pytestmark = pytest.mark.timeout(120)

ROOT = 0
SLOT = 0x1E


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="avm-"))
    (path / "mine").mkdir()
    (path / "mine" / "data").write_text("from the host")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def hosts_mount(folder: Path) -> None:
    view = open_folder(folder / "mine", writable=False)
    os.close(view.descriptor)
    if view.weakness:
        pytest.skip(f"this host makes no folder read-only for QEMU: {view.weakness}")


@asynccontextmanager
async def shared(folder: Path, *, writable: bool) -> AsyncIterator[PausedMachine]:
    """Share a folder as a VM does, and begin to use it."""
    spec = DomainSpec("n", "u", folder, Hardware(1, 16, 1, "tcg", Transport.SERIAL), folder / "m", (folder / "d",))
    words = [one.attrib["value"] for one in ET.fromstring(domain_xml(spec)).iter() if one.tag.endswith("arg")]
    fsdevs = [word for number, word in enumerate(words) if "-fsdev" in words[max(0, number - 1) : number + 1]]
    async with paused_machine(folder, SimpleNamespace(shared=spec.shared), fsdevs) as (machine, monitor):
        weakness = await FolderDevice(machine, monitor).plug(folder / "mine", writable=writable)
        assert weakness == ""
        assert not spec.shared.is_symlink()
        assert await machine.execute("query-fdsets", {}) == []
        await machine.start_device(SLOT)
        yield machine


async def begin(machine: PausedMachine, version: str) -> None:
    assert (await machine.ask(VERSION, struct.pack("<I", 8192) + text(version)))[0]
    user = struct.pack("<II", ROOT, NO_FID) + text("root") + text("") + struct.pack("<I", 0)
    assert (await machine.ask(ATTACH, user))[0]


async def walk(machine: PausedMachine, number: int) -> bytes:
    """Let a number stand for the file."""
    assert (await machine.ask(WALK, struct.pack("<IIH", ROOT, number, 1) + text("data")))[0]
    return struct.pack("<I", number)


def snapshot(folder: Path) -> list[tuple[str, str, int]]:
    return [(path.name, path.read_text(), path.stat().st_mode) for path in sorted(folder.iterdir())]


@pytest.mark.usefixtures("hosts_mount")
async def test_a_file_is_not_emptied_by_opening_it_to_read(folder: Path) -> None:
    """QEMU looks for the flag by its number of another version of the protocol."""
    async with shared(folder, writable=False) as machine:
        await begin(machine, "9P2000.u")
        done, _ = await machine.ask(OPEN, await walk(machine, 1) + b"\x10")
        assert (folder / "mine" / "data").read_text() == "from the host"
        assert not done


@pytest.mark.usefixtures("hosts_mount")
@pytest.mark.parametrize("version", ["9P2000.u", "9P2000.L"])
async def test_no_message_changes_anything(folder: Path, version: str) -> None:
    before = snapshot(folder / "mine")
    if version == "9P2000.u":
        of_file = [(OPEN, bytes([mode])) for mode in (0x10, 1, 2, 0x11, 0x80, 0x81, 0x90)]
    else:
        of_file = [(LOPEN, struct.pack("<I", flags)) for flags in (1, 2, 0o1000, 0o1001, 0o2000, 0o3000)]
    of_file += [
        (SETATTR, struct.pack("<IIIIQQQQQ", 8, 0, 0, 0, 0, 0, 0, 0, 0)),
        (WRITE, struct.pack("<QI", 0, 1) + b"x"),
        (WSTAT, struct.pack("<H", 0)),
        (REMOVE, b""),
    ]
    of_folder = [
        (CREATE, text("new") + struct.pack("<IB", 0o666, 1) + text("")),
        (CREATE, text("new") + struct.pack("<IB", 0x80000000 | 0o777, 0) + text("")),
        (LCREATE, text("new") + struct.pack("<III", 0o101, 0o666, 0)),
        (MKDIR, text("new") + struct.pack("<II", 0o777, 0)),
        (UNLINKAT, text("data") + struct.pack("<I", 0)),
    ]
    async with shared(folder, writable=False) as machine:
        await begin(machine, version)
        for number, (kind, body) in enumerate(of_file, 1):
            await machine.ask(kind, await walk(machine, number) + body)
            assert snapshot(folder / "mine") == before, (kind, body)
        for kind, body in of_folder:
            await machine.ask(kind, struct.pack("<I", ROOT) + body)
            assert snapshot(folder / "mine") == before, (kind, body)


async def test_the_same_messages_change_what_may_be_changed(folder: Path) -> None:
    async with shared(folder, writable=True) as machine:
        await begin(machine, "9P2000.u")
        assert (await machine.ask(OPEN, await walk(machine, 1) + b"\x10"))[0]
        assert (folder / "mine" / "data").read_text() == ""


async def test_what_is_put_in_the_place_of_the_folder_is_not_shared(folder: Path) -> None:
    (folder / "mine").rename(folder / "away")
    (folder / "secret").mkdir()
    (folder / "mine").symlink_to("secret")
    (folder / "up").symlink_to(folder)
    for path in (folder / "mine", folder / "up" / "away"):
        for writable in (False, True):
            with pytest.raises(Exception, match=r"Not a directory|somewhere else"):
                await asyncio.to_thread(open_folder, path, writable=writable)
