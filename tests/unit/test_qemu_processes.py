"""QEMUs are found by their domain's name, and ended if the owner of their libvirt's folder has left them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from kernel_client import wait_until

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm.processes import clear_root, pid_of


def start(root: Path, *arguments: str, program: str = "qemu-system-x86_64") -> int:
    """Start what looks like a QEMU and is nobody's child, as libvirt's are."""
    folder = root.with_name("bin")
    folder.mkdir(exist_ok=True)
    (folder / program).exists() or (folder / program).symlink_to(shutil.which("tail") or "")
    files = [*arguments, "-qmp", f"unix:{root}/lib/qemu/monitor.sock"]
    # What follows -- are files that tail waits for.
    command = [str(folder / program), "-q", "-F", "/dev/null", "--", *files]
    orphaned = ["sh", "-c", '"$@" >/dev/null 2>&1 & echo $!', "sh", *command]
    pid = int(subprocess.run(orphaned, capture_output=True, check=True).stdout)
    wait_until(lambda: str(root) in Path(f"/proc/{pid}/cmdline").read_text(), "it runs")
    return pid


def name(vm: str) -> tuple[str, str]:
    return "-name", f"guest=agentvm-test-{vm},debug-threads=on"


def test_a_domains_process_is_found_by_its_whole_name(tmp_path: Path) -> None:
    pids = [start(tmp_path / "root", *name(vm)) for vm in ("vm-1", "vm-12")]
    assert [pid_of("agentvm-test-vm-1"), pid_of("agentvm-test-vm-12")] == pids
    assert clear_root(tmp_path / "root") == ["agentvm-test-vm-1", "agentvm-test-vm-12"]
    with pytest.raises(HypervisorError, match="is gone"):
        pid_of("agentvm-test-vm-1")


def test_what_the_last_owner_of_the_folder_left_is_ended_and_nothing_else(tmp_path: Path) -> None:
    root, another = tmp_path / "root", tmp_path / "root-of-another"
    ours = [start(root, *name("vm-1")), start(root, "-machine", "none", program="qemu-system-i386")]
    others = [start(another, *name("vm-2")), start(root, program="editor")]
    assert clear_root(root) == ["agentvm-test-vm-1"]
    assert [Path(f"/proc/{pid}").exists() for pid in ours + others] == [False, False, True, True]
    for pid in others:
        os.kill(pid, signal.SIGTERM)


def test_libvirts_notes_of_domains_that_were_only_starting_are_removed(tmp_path: Path) -> None:
    notes, capabilities = tmp_path / "run" / "qemu", tmp_path / "cache" / "qemu"
    domain, probe = tmp_path / "lib" / "qemu" / "domain-54-agentvm-test-vm-", tmp_path / "lib" / "qemu" / "qmp-3YYLZ3"
    for folder in (notes, capabilities, domain, probe):
        folder.mkdir(parents=True)
    (notes / "agentvm-test-vm-7.xml").write_text("<domstatus state='paused' reason='starting up' pid='0'>")
    assert clear_root(tmp_path) == ["agentvm-test-vm-7"]
    assert [folder.exists() for folder in (notes, capabilities, domain, probe)] == [False, True, False, False]
