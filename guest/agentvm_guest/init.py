"""PID 1: prepares the VM, starts the agent, reaps orphans, and ends the VM when the agent is gone.

Started by the initramfs as ``python3 -I .../agentvm_guest/init.py`` with the root file system mounted and this code in
memory below ``/run``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agentvm_guest.agent import CONTROL_PORT
from agentvm_guest.limits import START
from agentvm_guest.ports import open_virtio_port
from agentvm_guest.system import ETC, USER_CGROUP, set_cgroup_limits

AGENT = Path(__file__).with_name("agent.py")
_DISK = "/dev/vda"

# <sys/mount.h>
_NOSUID, _NODEV, _NOEXEC, _BIND = 2, 4, 8, 4096
# <linux/reboot.h>
_POWER_OFF = 0x4321FEDC
# <linux/sockios.h>, <net/if.h>
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1

_OPEN_FILES = (65_536, 1 << 20)


@dataclass(frozen=True)
class Mount:
    """A file system of the kernel's own.

    Attributes:
        kind: Its type.
        target: Where it goes.
        flags: Mount flags.
        options: Its options.
    """

    kind: str
    target: str
    flags: int
    options: str = ""


MOUNTS = (
    Mount("proc", "/proc", _NOSUID | _NODEV | _NOEXEC),
    Mount("sysfs", "/sys", _NOSUID | _NODEV | _NOEXEC),
    Mount("devtmpfs", "/dev", _NOSUID, "mode=0755"),
    Mount("devpts", "/dev/pts", _NOSUID | _NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
    Mount("tmpfs", "/dev/shm", _NOSUID | _NODEV, "mode=1777"),  # nosec B108 - a mount point, not a file
    Mount("tmpfs", "/run", _NOSUID | _NODEV, "mode=0755"),
    Mount("cgroup2", "/sys/fs/cgroup", _NOSUID | _NODEV | _NOEXEC),
)
_CONSOLE = (24, 80)
_LINKS = {"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"}


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """Mount a file system.

    Raises:
        OSError: it failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def mount_missing() -> None:
    """Mount the kernel's file systems that the initramfs has not mounted."""
    for entry in MOUNTS:
        if not os.path.ismount(entry.target):
            Path(entry.target).mkdir(parents=True, exist_ok=True)
            mount(entry.kind, entry.target, entry.kind, entry.flags, entry.options)
    for link, target in _LINKS.items():
        if not Path(link).is_symlink():
            Path(link).symlink_to(target)


def put_names_into_memory() -> None:
    """Let the files that the identity step writes lie in memory: it has to work when the disk is full."""
    ETC.mkdir(parents=True, exist_ok=True)
    for name, text in (("hostname", "agentvm\n"), ("hosts", "127.0.0.1 localhost\n"), ("machine-id", "")):
        source, target = ETC / name, Path("/etc") / name
        source.write_text(text)
        target.touch()
        mount(str(source), str(target), "", _BIND, "")


def raise_loopback() -> None:
    """Bring the loopback interface up: the debugger and many programs need it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(sock, _GET_FLAGS, request), 16)
        fcntl.ioctl(sock, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))


def size_console(terminal: int = 2) -> None:
    """Give the console the size of a terminal: programs ask for it, and draw no progress bar into no columns.

    Args:
        terminal: Descriptor of the console, which the kernel's standard error stays.
    """
    if os.isatty(terminal):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *_CONSOLE, 0, 0))


def grow_disk() -> None:
    """Let the file system use the whole disk; a disk that is too small already is no reason not to start."""
    if shutil.which("resize2fs") is None:
        return
    result = subprocess.run(["resize2fs", _DISK], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        print(f"agentvm: the disk was not grown: {result.stderr.strip()}", file=sys.stderr)


def make_cgroup(root: Path = USER_CGROUP.parent) -> None:
    """Make the control group of the user's processes: the agent gets its share of the CPU, and memory is left to it."""
    group = root / USER_CGROUP.name
    (root / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    group.mkdir(exist_ok=True)
    set_cgroup_limits(group, START)


def parse_command_line(text: str) -> list[str]:
    """Return the agent's arguments from the kernel's command line (``agentvm.transport=``, ``agentvm.port=``)."""
    words = dict(word.partition("=")[::2] for word in text.split())
    arguments = []
    for option in ("transport", "port"):
        if value := words.get(f"agentvm.{option}"):
            arguments += [f"--{option}", value]
    return arguments


def prepare() -> None:
    """Do everything that precedes the agent."""
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.umask(0o022)
    mount_missing()
    put_names_into_memory()
    socket.sethostname("agentvm")
    raise_loopback()
    size_console()
    resource.setrlimit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    make_cgroup()
    grow_disk()


def reap_until(pid: int, wait: Callable[[], tuple[int, int]] = lambda: os.waitpid(-1, 0)) -> int:
    """Reap whatever ends until a given process does; returns its status."""
    while True:
        ended, status = wait()
        if ended == pid:
            return status


def describe_death(status: int) -> dict[str, object]:
    """Return the event that reports the agent's death."""
    code = os.waitstatus_to_exitcode(status)
    return {
        "event": "agent_died",
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
    }


def report(event: dict[str, object]) -> None:
    """Tell the owner, and wait until it hung up or answered, a second at most: the power goes off next."""
    port = open_virtio_port(CONTROL_PORT)
    # A dead agent may have left half a line.
    port.write(b"\n" + json.dumps(event).encode() + b"\n")
    poll = select.poll()
    poll.register(port.fd, select.POLLIN)
    poll.poll(1000)
    port.close()


def power_off() -> None:
    """End the VM at once."""
    ctypes.CDLL(None).reboot(_POWER_OFF)


def main() -> None:
    """Run as PID 1."""
    prepare()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        # What poweroff, reboot and halt of busybox and sysvinit send.
        signal.signal(number, lambda *_: _sync_and_power_off())
    arguments = parse_command_line(Path("/proc/cmdline").read_text())
    agent = subprocess.Popen([sys.executable, "-I", str(AGENT), *arguments], start_new_session=True)
    status = reap_until(agent.pid)
    # The agent may have died of the port itself being unusable.
    with contextlib.suppress(OSError):
        report(describe_death(status))
    power_off()


def _sync_and_power_off() -> None:
    os.sync()
    power_off()


if __name__ == "__main__":
    main()
