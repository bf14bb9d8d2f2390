"""A world whose host runs libvirt's system daemon: in the host's network namespace, on folders of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from internet import Internet
from subreaper import reaped

DAEMON_SECONDS = 30
_FOLDERS = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/run/libvirt")
# Asked as a user who may not open /dev/kvm where root may, libvirt asks QEMU again at each start, for 10 s. Each domain
# names its own user.
_QEMU_CONFIG = 'user = "+0"\ngroup = "+0"\n'

# A network namespace's interfaces are only in a /sys that was mounted inside it; the control groups are the machine's.
_MOUNT = """set -e; here=$1; shift
mount --rbind /sys/fs/cgroup "$here/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$here/cgroup" /sys/fs/cgroup
for folder in FOLDERS; do mount --bind "$here$folder" "$folder"; done
exec "$@"
""".replace("FOLDERS", " ".join(_FOLDERS))


class SystemHost(Internet):
    """The world; `daemon` lets the daemon run.

    Attributes:
        root: The daemon's folders.
        config: How the daemon is configured.
    """

    config = 'unix_sock_rw_perms = "0770"\nauth_unix_rw = "none"\n'

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.chmod(0o711)
        self.root = folder / "libvirt"
        (self.root / "cgroup").mkdir(parents=True)
        self.root.chmod(0o711)
        for name in map(Path, _FOLDERS):
            name.mkdir(parents=True, exist_ok=True)
            target = self.root / name.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if name.is_relative_to("/run"):
                target.mkdir(mode=0o755)
            else:
                # With owners and modes, which QEMU's own user needs.
                subprocess.run(["cp", "--archive", str(name), str(target)], check=True)

    def command(self, *argv: str) -> list[str]:
        """The command that runs another one on the host, with its name server and its libvirt."""
        inner = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _MOUNT, "sh", str(self.root), *argv]
        return super().command(*inner)

    def run(self, *argv: str) -> str:
        """Run a program on the host; returns what it puts out."""
        done = subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=DAEMON_SECONDS, check=True
        )  # fmt: skip
        return done.stdout

    def virsh(self, *argv: str) -> str:
        """Ask the daemon."""
        return self.run("virsh", "--connect", "qemu:///system", "--quiet", *argv)

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Run libvirt's system daemon on the host."""
        config = self.root / "libvirtd.conf"
        config.write_text(self.config)
        (self.root / "etc/libvirt/qemu.conf").write_text(_QEMU_CONFIG)
        # As upstream has it: QEMU finds its secret below, whatever user it runs as.
        (self.root / "var/lib/libvirt/qemu").chmod(0o751)
        processes = [self._start_daemon("virtlogd"), self._start_daemon("libvirtd", "--config", str(config))]
        try:
            self._wait()
            yield
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
                process.wait(DAEMON_SECONDS)

    def _start_daemon(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        path = shutil.which(name, path="/usr/sbin:/usr/bin")
        assert path is not None
        with (self.root / f"{name}.log").open("ab") as log:
            # Another daemon may run outside.
            command = self.command(path, "--pid-file", str(self.root / f"{name}.pid"), *arguments)
            return subprocess.Popen(reaped(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _wait(self) -> None:
        for _ in range(100):
            command = self.command("virsh", "--connect", "qemu:///system", "version")
            try:
                if subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0:
                    return
            except subprocess.TimeoutExpired:  # on a busy host it may connect to one that does not listen yet
                continue
        raise AssertionError((self.root / "libvirtd.log").read_text())
