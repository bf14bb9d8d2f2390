"""What lies beside a notebook does not run on the host when the notebook's kernel is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentvm_kernel.kernel_command import is_kernel, kernel_command
from agentvm_kernel.run.own_kernel import OwnKernel

KERNELSPEC = Path(__file__).parents[2] / "kernelspec" / "kernel.json"
SHADOWS = ("asyncio.py", "json.py", "signal.py", "zmq.py", "jupyter_client.py", "sitecustomize.py")
COMMANDS = {
    "the kernelspec": [sys.executable, *json.loads(KERNELSPEC.read_text())["argv"][1:]],
    "agentvm run": OwnKernel().kernel_spec.argv,
    "agentvm reproduce": OwnKernel(module="agentvm_kernel.reproduce.kernel").kernel_spec.argv,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_in_the_folder_in_which_a_kernel_is_started_is_run(tmp_path: Path, name: str) -> None:
    command = [word for word in COMMANDS[name] if word not in {"-f", "{connection_file}"}]
    for shadow in SHADOWS:
        (tmp_path / shadow).write_text("open('escaped', 'w').close()\n")
    package = tmp_path / "agentvm_kernel"
    package.mkdir()
    for module in ("__init__.py", "__main__.py"):
        (package / module).write_text("open('escaped', 'w').close()\n")
    permits = '{"files": "/nowhere"}'
    environment = os.environ | {"AGENTVM_REPRODUCE": permits}
    done = subprocess.run(
        [*command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert not (tmp_path / "escaped").exists()
    assert (done.returncode, "A Jupyter kernel" in done.stdout) == (0, True), done.stderr


def test_kernels_of_older_versions_are_known_and_others_are_not() -> None:
    assert is_kernel(kernel_command())
    assert is_kernel(["python", "-m", "agentvm_kernel", "-f", "{connection_file}"])
    for other in (["python", "-m", "ipykernel_launcher"], ["agentvm_kernel"], ["x", "-c", "agentvm_kernel"], None, "x"):
        assert not is_kernel(other)
