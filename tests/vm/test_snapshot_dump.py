"""On a host that does not let the supervisor reach QEMU's memory, QEMU itself writes complete dumps."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from vms import qemus, shut_down

from agentvm_kernel.config import Paths
from agentvm_kernel.experiment import Session
from agentvm_kernel.vm.blank import DUMP_VARIABLE

CONFIG = """\
image = "minimal"
profile = "test"

[profiles.test]
vcpus = 1
memory_mib = 512
disk_gb = 4
"""

HASH = "import hashlib; print(hashlib.sha256(data).hexdigest(), open('file').read(), state)"

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
async def paths(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Paths]:
    """Folders of a supervisor that cannot reach its VMs' memory."""
    folder = Path(tempfile.mkdtemp(prefix="avm-"))
    folder.chmod(0o711)
    (folder / "config.toml").write_text(CONFIG)
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(folder / "s"))
    monkeypatch.setenv("AGENTVM_CONFIG", str(folder / "config.toml"))
    monkeypatch.setenv(DUMP_VARIABLE, "1")
    paths = Paths.of_user()
    yield paths
    await shut_down(paths)
    assert qemus(paths.tag) == []
    shutil.rmtree(folder)


async def test_going_back_to_dumps_restores_memory_and_disk(paths: Paths) -> None:
    async with Session(paths=paths) as session:
        await session.run(
            "import os; data = bytearray(os.urandom(1 << 20) * 50); state = 1; open('file','w').write('a')"
        )
        before = (await session.run(HASH)).stdout
        first = await session.snapshot("first")
        assert first.written == 0, "a dump has no delta"
        # Pages that were not zero become so, and the other way round.
        await session.run("data[:] = bytes(len(data)); more = bytearray(b'x' * (20 << 20)); state = 2")
        await session.run("open('file','w').write('b'); os.sync()")
        between = (await session.run(HASH)).stdout
        second = await session.snapshot("second")
        for label, expected in (("first", before), ("second", between), ("first", before)):
            await session.rollback(label)
            assert (await session.run(HASH)).stdout == expected
    assert first.size > 50 << 20
    assert second.parent == first.id
