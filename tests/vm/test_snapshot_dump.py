"""On a host that does not let the supervisor reach QEMU's memory, QEMU itself writes complete dumps."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from vms import qemus, shut_down

from agentvm_kernel.config import Paths
from agentvm_kernel.experiment import AsyncSession
from agentvm_kernel.vm.blank import DUMP_VARIABLE
from agentvm_kernel.vm.chain import LONG

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
    async with AsyncSession(paths=paths) as session:
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


async def test_a_page_that_is_zero_in_a_dump_is_not_what_it_was_when_the_machine_was_booted(paths: Paths) -> None:
    """QEMU takes for granted that what a dump leaves out is zero already, and our blanks are views of a booted VM."""
    drop = "subprocess.run('sync; echo 3 | sudo tee /proc/sys/vm/drop_caches', shell=True, check=True)"
    async with AsyncSession(paths=paths) as session:
        await session.run(f"import subprocess\n{drop}\nzeros = bytearray(b'\\0') * (300 << 20)")
        await session.snapshot("zeros")
        await session.rollback("zeros")
        assert (await session.run("any(zeros)")).result == "False"


async def test_disks_of_dumps_stay_short_chains(paths: Paths) -> None:
    everything = "print(*(open(name).read() for name in sorted(os.listdir('.')) if name.startswith('file')))"
    drop = "subprocess.run('sync; echo 3 | sudo tee /proc/sys/vm/drop_caches', shell=True, check=True)"
    count = LONG + 3
    async with AsyncSession(paths=paths) as session:
        await session.run("import os, subprocess")
        for number in range(count):
            await session.run(f"open('file-{number:02}', 'w').write('{number}'); os.sync()")
            await session.snapshot(f"step-{number}")
        for number in (count - 1, 3, LONG):
            await session.rollback(f"step-{number}")
            await session.run(drop)
            expected = " ".join(map(str, range(number + 1)))
            assert (await session.run(everything)).stdout == f"{expected}\n"
    manifests = [json.loads(path.read_text()) for path in paths.state.glob("snapshots/*/*/manifest.json")]
    assert all(manifest["is_dump"] for manifest in manifests)
    assert [manifest["over"] for manifest in manifests if manifest["over"] is not None] == [0]
