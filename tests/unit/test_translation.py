"""QEMU's buffer for translated code is touched ahead, in a real process that has such a buffer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.vm import translation
from agentvm_kernel.vm.delta import PAGE
from agentvm_kernel.vm.pagemap import absent_pages
from agentvm_kernel.vm.translation import prepare_translation

PAGES = translation._ROOM // PAGE
_CHILD = """
import ctypes, mmap, sys
size, protection = int(sys.argv[1]), mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection)
buffer[3 * 4096 : 3 * 4096 + 5] = b"thunk"
print(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), flush=True)
sys.stdin.readline()
print(buffer[: 4 * 4096].strip(bytes(1)).decode(), any(buffer[4 * 4096 :]), flush=True)
"""


class Buffer:
    """A child process with memory that it may write and execute."""

    def __init__(self, size: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CHILD, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = int(self.process.stdout.readline())

    @property
    def absent(self) -> int:
        """How many of the first pages, and some after them, nobody has touched."""
        return len(absent_pages(self.process.pid, self.address, PAGES + 100))

    def content(self) -> str:
        """Return what is not zero, and whether there is something where there should be nothing."""
        said, _ = self.process.communicate("\n", timeout=60)
        return said.strip()


@pytest.fixture
def buffer(request: pytest.FixtureRequest) -> Iterator[Buffer]:
    made = Buffer(getattr(request, "param", translation._LEAST))
    yield made
    made.process.kill()
    made.process.communicate()


def test_the_beginning_of_the_buffer_is_touched_and_keeps_its_content(buffer: Buffer) -> None:
    assert buffer.absent == PAGES + 99
    prepare_translation(buffer.process.pid)
    assert buffer.absent == 100
    prepare_translation(buffer.process.pid)
    assert buffer.content() == "thunk False"


@pytest.mark.parametrize("buffer", [translation._LEAST - PAGE], indirect=True)
def test_what_is_no_buffer_for_code_is_left_alone(buffer: Buffer) -> None:
    prepare_translation(buffer.process.pid)
    assert buffer.absent == PAGES + 99


def test_a_process_that_is_gone_is_an_error(buffer: Buffer) -> None:
    buffer.process.kill()
    buffer.process.wait()
    with pytest.raises(SnapshotError, match="not accessible"):
        prepare_translation(buffer.process.pid)
