"""Lets QEMU register its guest memory for write protection that the kernel lifts by itself (userfaultfd(2), WP_ASYNC).

Only a process itself can open a userfaultfd for its memory, and QEMU has no command for it. So its main thread, which
waits for events, is stopped for a moment and made to carry out three system calls (ptrace(2); CRIU and debuggers do the
same), before the guest has run. It needs the same right as reading QEMU's memory does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import SnapshotError

_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_GETREGS: Final = 12
_SETREGS: Final = 13
_SINGLESTEP: Final = 9
_DETACH: Final = 17
_WALL: Final = 0x40000000

_SYS_IOCTL: Final = 16
_SYS_USERFAULTFD: Final = 323
_SYS_CLOSE: Final = 3
_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK | 1  # UFFD_USER_MODE_ONLY, which needs no privilege
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_API: Final = 0xAA
_WP_ASYNC: Final = 1 << 15
_MODE_WP: Final = 2
_SYSCALL: Final = b"\x0f\x05"
_RED_ZONE: Final = 4096  # below the stack pointer, farther than the 128 bytes that a function may use there

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


_REGISTERS: Final = """
    r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs
"""


class _Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64 (sys/user.h)."""

    _fields_ = [(name, ctypes.c_uint64) for name in _REGISTERS.split()]


def register_write_protection(pid: int, areas: Sequence[tuple[int, int]]) -> None:
    """Register parts of a process's memory; they are not protected yet.

    Args:
        pid: The process; its main thread must be waiting in a system call.
        areas: Address and length in bytes of each part.

    Raises:
        SnapshotError: the host does not allow it, or its kernel cannot do it.
    """
    try:
        with _stopped(pid) as thread:
            descriptor = thread.call(_SYS_USERFAULTFD, _FLAGS)
            try:
                thread.control(descriptor, _UFFDIO_API, struct.pack("<3Q", _API, _WP_ASYNC, 0))
                for address, length in areas:
                    thread.control(descriptor, _UFFDIO_REGISTER, struct.pack("<4Q", address, length, _MODE_WP, 0))
            except OSError:
                thread.call(_SYS_CLOSE, descriptor)
                raise
    except OSError as error:
        raise SnapshotError(f"QEMU {pid} could not be made to track its writes: {error.strerror}.") from error


class _Thread:
    """A stopped thread that carries out system calls for us.

    Args:
        tid: Its id.
        registers: As it was stopped.
    """

    def __init__(self, tid: int, registers: _Registers) -> None:
        self._tid = tid
        self._registers = registers
        self._memory = Path(f"/proc/{tid}/mem").open("r+b", buffering=0)  # noqa: SIM115 - closed by close()
        self._memory.seek(registers.rip - len(_SYSCALL))
        if self._memory.read(len(_SYSCALL)) != _SYSCALL:
            self.close()
            raise OSError(errno.EBUSY, "it does not wait in a system call")

    def close(self) -> None:
        """Let go of its memory."""
        self._memory.close()

    def control(self, descriptor: int, request: int, argument: bytes) -> None:
        """Carry out ioctl(2)."""
        place = (self._registers.rsp - _RED_ZONE) & ~0xF
        self._memory.seek(place)
        self._memory.write(argument)
        self.call(_SYS_IOCTL, descriptor, request, place)

    def call(self, number: int, *arguments: int) -> int:
        """Carry out a system call and return its result.

        Raises:
            OSError: it failed.
        """
        registers = _Registers.from_buffer_copy(self._registers)
        registers.rip -= len(_SYSCALL)
        registers.rax, registers.orig_rax = number, (1 << 64) - 1
        for name, value in zip(("rdi", "rsi", "rdx"), arguments, strict=False):
            setattr(registers, name, value)
        _ptrace(_SETREGS, self._tid, ctypes.byref(registers))
        _ptrace(_SINGLESTEP, self._tid)
        _wait_stopped(self._tid)
        _ptrace(_GETREGS, self._tid, ctypes.byref(registers))
        result = ctypes.c_int64(registers.rax).value
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result


@contextmanager
def _stopped(tid: int) -> Iterator[_Thread]:
    _ptrace(_SEIZE, tid)
    try:
        _ptrace(_INTERRUPT, tid)
        _wait_stopped(tid)
        registers = _Registers()
        _ptrace(_GETREGS, tid, ctypes.byref(registers))
        thread = _Thread(tid, registers)
        try:
            yield thread
        finally:
            thread.close()
            # With these the kernel starts the interrupted system call again.
            _ptrace(_SETREGS, tid, ctypes.byref(registers))
    finally:
        _ptrace(_DETACH, tid)


def _ptrace(request: int, tid: int, data: object = None) -> None:
    if _libc.ptrace(request, tid, None, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _wait_stopped(tid: int) -> None:
    _, status = os.waitpid(tid, _WALL)
    if not os.WIFSTOPPED(status):
        raise OSError(errno.ESRCH, "it ended")
    if os.WSTOPSIG(status) not in {signal.SIGTRAP, signal.SIGSTOP}:
        raise OSError(errno.EBUSY, f"it was about to get signal {os.WSTOPSIG(status)}")
