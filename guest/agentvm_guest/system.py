"""The privileged operations of the agent, in one place, so that it can be run without privileges for tests."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pwd
import re
import resource
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentvm_guest.card import Card, set_up
from agentvm_guest.limits import START, UserLimits

KERNEL_USER = "agent"
USER_CGROUP = Path("/sys/fs/cgroup/user")
ETC = Path("/run/agentvm/etc")

# What the user's processes leave to the kernel and the agent: eating all memory ends one of them and nothing else.
_RESERVED_BYTES = 64 << 20

# <linux/random.h>
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
# <sys/mman.h>
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


@dataclass(frozen=True)
class Account:
    """The user that ipykernel runs as.

    Attributes:
        name: Login name.
        uid: User id.
        gid: Group id.
        groups: Supplementary groups.
        home: Home directory.
    """

    name: str
    uid: int
    gid: int
    groups: list[int]
    home: str


class System:
    """The VM's own kernel and files."""

    def __init__(self) -> None:
        self._kmsg: int | None = None
        self._limits = START

    @property
    def recorded(self) -> list[str] | None:
        """What would have been done; None where it really is done."""
        return None

    def protect(self) -> None:
        """Keep the agent alive and in memory while the user's code eats all of it."""
        Path("/proc/self/oom_score_adj").write_text("-1000")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
            raise OSError(ctypes.get_errno(), "mlockall")
        self._kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._kmsg, 0, os.SEEK_END)

    def account(self) -> Account | None:
        """Return the user that ipykernel runs as; None for the agent's own."""
        entry = pwd.getpwnam(KERNEL_USER)
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)

    def confine(self, pid: int) -> None:
        """Undo for a child what protects the agent, and put it under the limits of the user's processes."""
        _write(f"/proc/{pid}/oom_score_adj", "0")
        _write(f"{USER_CGROUP}/cgroup.procs", str(pid))
        _limit_files(pid, self._limits.open_files)

    def set_limits(self, limits: UserLimits) -> None:
        """Set what the user's processes may use, those that run and those to come. Nothing to do if it is so already.

        Lowering the memory below what is used makes the kernel free some, by killing one of them if it has to.
        """
        if limits == self._limits:
            return
        set_cgroup_limits(USER_CGROUP, limits)
        if limits.open_files != self._limits.open_files:
            with open(f"{USER_CGROUP}/cgroup.procs") as pids:  # noqa: PTH123 - see `_write`
                for pid in pids:
                    _limit_files(int(pid), limits.open_files)
        self._limits = limits

    def killed_for_memory(self, pid: int) -> bool:
        """Return whether the kernel's log says that it killed this process to get memory."""
        if self._kmsg is None:
            return False
        pattern = re.compile(rb"Killed process %d\b" % pid)
        while True:
            try:
                record = os.read(self._kmsg, 8192)
            except BlockingIOError:
                return False
            except BrokenPipeError:
                # The log was overwritten meanwhile; reading goes on with what is left.
                continue
            if pattern.search(record):
                return True

    def set_clock(self, time_ns: int) -> None:
        """Set the wall clock.

        Args:
            time_ns: Nanoseconds since 1970, UTC.
        """
        time.clock_settime_ns(time.CLOCK_REALTIME, time_ns)

    def add_entropy(self, entropy: bytes) -> None:
        """Feed the kernel's random generator and make it use that at once."""
        device = os.open("/dev/urandom", os.O_RDONLY | os.O_CLOEXEC)
        try:
            credited = struct.pack("ii", 8 * len(entropy), len(entropy)) + entropy
            fcntl.ioctl(device, _RNDADDENTROPY, credited)
            fcntl.ioctl(device, _RNDRESEEDCRNG)
        finally:
            os.close(device)

    def set_names(self, hostname: str, machine_id: str) -> None:
        """Set host name and machine id; the files lie in memory (see `init`), so a full disk does not matter."""
        socket.sethostname(hostname)
        _write(f"{ETC}/hostname", f"{hostname}\n")
        _write(f"{ETC}/hosts", f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost\n")
        _write(f"{ETC}/machine-id", f"{machine_id}\n")

    def set_up_card(self, card: Card, interface: str) -> None:
        """Give the network card's interface its address."""
        set_up(card, interface)

    def sync(self) -> None:
        """Write the disk's dirty pages out."""
        os.sync()


def login_options(account: Account | None, python: str) -> dict[str, Any]:
    """Return what makes ``Popen`` start a process as a login of the user would, with their Python first in the path."""
    if account is None:
        return {"env": dict(os.environ), "start_new_session": True}
    folder = Path(python).parent
    return {
        "env": {
            "HOME": account.home,
            "USER": account.name,
            "LOGNAME": account.name,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "PATH": f"{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "VIRTUAL_ENV": str(folder.parent),
        },
        "cwd": account.home,
        "user": account.uid,
        "group": account.gid,
        "extra_groups": account.groups,
        "start_new_session": True,
    }


def set_cgroup_limits(group: Path, limits: UserLimits) -> None:
    """Write a control group's limits; some memory is always left to the kernel and the agent."""
    spare = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - _RESERVED_BYTES
    memory = spare if limits.memory_mib is None else min(limits.memory_mib << 20, spare)
    _write(f"{group}/memory.max", str(memory))
    _write(f"{group}/pids.max", str(limits.processes))


def _limit_files(pid: int, count: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, count))


def _write(path: str, text: str) -> None:
    """Write a short file; ``pathlib`` and ``io`` would run far more code for it, in everybody's waiting time."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


class RecordingSystem(System):
    """Only notes what it was asked to do: the agent as an ordinary process, for tests."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[str] = []

    @property
    def recorded(self) -> list[str] | None:
        """What would have been done."""
        return self._calls

    def protect(self) -> None:
        """Note the call."""
        self._calls.append("protect")

    def account(self) -> Account | None:
        """Return nobody: ipykernel runs as the present user."""
        return None

    def confine(self, pid: int) -> None:
        """Note the call."""
        self._calls.append("confine")

    def set_limits(self, limits: UserLimits) -> None:
        """Note the call."""
        self._calls.append(f"set_limits {limits.processes} {limits.open_files} {limits.memory_mib}")

    def set_clock(self, time_ns: int) -> None:
        """Note the call."""
        self._calls.append(f"set_clock {time_ns}")

    def add_entropy(self, entropy: bytes) -> None:
        """Note the call."""
        self._calls.append(f"add_entropy {len(entropy)}")

    def set_names(self, hostname: str, machine_id: str) -> None:
        """Note the call."""
        self._calls.append(f"set_names {hostname} {machine_id}")

    def set_up_card(self, card: Card, interface: str) -> None:
        """Note the call."""
        self._calls.append(f"set_up_card {card.address} {interface}")

    def sync(self) -> None:
        """Note the call."""
        self._calls.append("sync")
