"""Two snapshots of a real machine: exactly what was done between them is told, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
from wares import WHEEL, shelf

from agentvm_kernel.compare.comparer import Comparer
from agentvm_kernel.compare.comparison import Comparison
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import CompareError
from agentvm_kernel.experiment import AsyncSession
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.snapshot_messages import SnapshotRequest

pytestmark = pytest.mark.timeout(900)

NOTEBOOK = "/tests/compare.ipynb"
SITE = "/opt/agentvm/venv/lib/python3.13/site-packages"
BEFORE = f"""
import pathlib as _path, subprocess as _sub, zipfile as _zip
_wheel = _zip.ZipFile('/home/agent/{WHEEL}')
_home = _path.Path('/home/agent')
for _name in ('same', 'changed', 'gone'):
    (_home / _name).write_text('1')
_old = _sub.Popen(['sleep', '1000'])
same, number, data, secret, gone = [1, {{'a': 2}}], 1, [1, 2], 'hunter2', 1.5
def function(): return 1
"""
AFTER = f"""
(_home / 'changed').write_text('22')
(_home / 'gone').unlink()
(_home / 'new\\n\\x1b[31m').write_text('333')
_old.kill(); _old.wait()
_new = _sub.Popen(['sleep', '2000'])
_wheel.extractall('{SITE}')
number, data, added = 2, [1, 3], {{'x': 1}}
del gone
def function(): return 2
"""


async def taken(paths: Paths, session: AsyncSession) -> tuple[str, str]:
    """Take two snapshots with something done between them."""
    wheel = paths.state / WHEEL
    wheel.write_bytes(shelf()["files.pythonhosted.org", f"/packages/{WHEEL}"][1])
    await session.put(wheel, "/home/agent/")
    ended = await session.run(BEFORE)
    assert ended.status == "ok", ended
    before = await session.snapshot("before")
    ended = await session.run(AFTER)
    assert ended.status == "ok", ended
    return before.id, (await session.snapshot("after")).id


def check(found: Comparison) -> None:
    pids = [int(text.rpartition("pid ")[2].rstrip(")")) for text in found.processes.added + found.processes.removed]
    assert found.processes.added == (f"sleep 2000 (pid {pids[0]})",)
    assert found.processes.removed == (f"sleep 1000 (pid {pids[1]})",)
    assert [(one.source, one.name, one.version) for one in found.packages.added] == [("python", "tinywheel", "1.0")]
    assert found.packages.count == 1
    variables = found.variables
    assert [(one.name, one.type, one.summary) for one in variables.added] == [("added", "dict", "1 items")]
    assert [(one.name, one.type, one.summary) for one in variables.removed] == [("gone", "float", "1.5")]
    assert [(one.name, one.before, one.after) for one in variables.changed] == [
        ("data", "list, 2 items", "list, 2 items"), ("function", "function", "function"),
        ("number", "int, 1", "int, 2"),
    ]  # fmt: skip
    files = found.files
    own = [one for one in files.added if not one.path.startswith(SITE)]
    assert [(one.path, one.size) for one in own] == [("/home/agent/new��[31m", 3)]
    installed = {one.path.removeprefix(SITE) for one in files.added if one not in own}
    dist = "/tinywheel-1.0.dist-info/"
    assert installed == {"/tinywheel.py", f"{dist}METADATA", f"{dist}RECORD", f"{dist}WHEEL"}
    assert [(one.path, one.size) for one in files.removed] == [("/home/agent/gone", 1)]
    changed = [(one.path, one.size_before, one.size_after) for one in files.changed]
    assert changed == [("/home/agent/changed", 1, 2)]
    assert not any(part.truncated for part in (files, found.packages, found.processes, variables))
    assert "hunter2" not in found.model_dump_json()


def diff(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = "from agentvm_kernel.cli import main; main()"
    command = [sys.executable, "-c", script, "snapshot", "diff", "--notebook", NOTEBOOK, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


async def test_exactly_what_was_done_is_told_and_the_machine_is_as_it_was(
    vm_paths: Paths, vm_environment: Mapping[str, str]
) -> None:
    async with (
        AsyncSession(image="minimal", profile="test", notebook=NOTEBOOK, paths=vm_paths) as session,
        SupervisorClient(vm_paths, start=False) as client,
    ):
        a, b = await taken(vm_paths, session)
        (lease,) = [one.lease for one in (await client.status()).leases if one.notebook == NOTEBOOK]
        tree, vms = await client.snapshots(lease), {one.pid for one in (await client.vms()).vms if one.lease}
        comparer = Comparer(client)
        check(await comparer.compare(lease, a, b))
        back = await comparer.compare(lease, b, a)
        assert ([one.path for one in back.files.added], back.files.changed[0].size_after) == (["/home/agent/gone"], 1)
        same = await Comparer(client).compare(lease, b, b)
        assert [part.count for part in (same.files, same.packages, same.processes, same.variables)] == [0, 0, 0, 0]
        # A clone reaches nothing, and nobody is even asked whether it may.
        said = await comparer._ask(lease, a, "import urllib.request as r; r.urlopen('https://example.org', timeout=20)")
        assert said.error
        assert (said.error.name, await session.connections()) == ("URLError", [])
        # The notebook's machine and its tree are as they were, and the clones are gone.
        assert (await session.run("number, data")).result == "(2, [1, 3])"
        assert (await client.snapshots(lease)).snapshots == tree.snapshots
        assert {one.pid for one in (await client.vms()).vms if one.lease} == vms

        await session.run("import zlib; zlib.compress = lambda *_: b'lies'")
        liar = await session.snapshot()
        with pytest.raises(CompareError, match="cannot be read"):
            await comparer.compare(lease, a, liar.id)
        busy = await client.snapshot(lease, SnapshotRequest(busy=True))
        with pytest.raises(CompareError, match="running cell"):
            await comparer.compare(lease, a, busy.id)
    # In a shell, while no machine of the notebook is there.
    told = diff(vm_environment, "before", "after", "--json")
    assert (told.returncode, told.stderr) == (0, "")
    check(Comparison.model_validate(json.loads(told.stdout)))
    assert diff(vm_environment, "before", "nowhere").returncode == 1
