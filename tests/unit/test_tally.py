"""Two processes share what a VM has moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentvm_kernel.egress.access import Access
from agentvm_kernel.egress.policy import Policy
from agentvm_kernel.tally import Tally, TallyReader, Traffic

READ = "import sys; from pathlib import Path; from agentvm_kernel.tally import TallyReader\n"
READ += "print(*TallyReader(Path(sys.argv[1])).read())"


def test_another_process_reads_what_is_counted(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "vm")
    tally.network(1, 2, 3)
    tally.disk(1 << 40, (1 << 63) + 5)
    done = subprocess.run([sys.executable, "-c", READ, str(tally.path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2", "3", str(1 << 40), str((1 << 63) + 5)]
    assert tally.path.stat().st_mode & 0o777 == 0o600
    tally.close()


def test_a_reader_keeps_what_was_counted_last_when_the_vm_is_gone(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "vm")
    with TallyReader(tally.path) as reader:
        assert reader.read() == Traffic()
        tally.network(7, 8, 9)
        tally.close()
        tally.close()
        tally.network(70, 80, 90)
        tally.disk(70, 80)
        assert not tally.path.exists()
        assert reader.read() == Traffic(7, 8, 9)


def test_what_is_no_tally_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "vm"
    for content in (b"", b"x", bytes(4096)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no tally"):
            TallyReader(path)
    with pytest.raises(FileExistsError):
        Tally(path)


def test_a_vms_access_counts_into_its_tally_and_remembers_whom_it_spoke_with(tmp_path: Path) -> None:
    first, other = Access("s", "n", "vm-1", Policy()), Access("s", "n", "vm-2", Policy())
    other.counters = first.counters
    first.tally = Tally(tmp_path / "vm")
    with TallyReader(first.tally.path) as reader:
        first.count("allowed")
        first.count("refused")
        other.account(None, 1000, 1000)
        first.account(None, 10, 200)
        assert reader.read() == Traffic(10, 200, 1)
    for number in range(300):
        first.touch(f"host-{number}")
    first.touch("host-100")
    assert len(first.hosts) == 256
    assert next(iter(first.hosts)) == "host-44"
    assert list(first.hosts)[-1] == "host-100"
    first.tally.close()
