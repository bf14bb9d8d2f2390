"""Runs mmdebstrap: command line, progress out of its messages, errors out of its log."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from agentvm_kernel.errors import ImageError

Progress = Callable[[str, float | None], None]

_STAGES = {
    "I: running apt-get update": "reading the package lists",
    "I: downloading packages with apt": "downloading the base system",
    "I: extracting archives": "unpacking the base system",
    "I: installing essential packages": "installing the base system",
    "I: installing remaining packages": "installing packages",
}
_OWN_STAGE = "stage: "
_TOTAL = re.compile(r"\d+ upgraded, (\d+) newly installed")
# What apt and dpkg say of each package while it is fetched, unpacked and set up.
_STEPS = ("Get:", "Unpacking ", "Setting up ")


_ERRORS = ("E: ", "ERROR", "error: ", "mke2fs: ", "mount: ", "sh: ", "unshare: ")


class Meter:
    """Turns the messages of mmdebstrap, apt, dpkg and our hooks into stages and shares.

    Args:
        progress: Called whenever the stage or the share changes visibly.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage = "starting mmdebstrap"
        self._total = self._steps = self._percent = 0

    def feed(self, line: str) -> None:
        """Take one line."""
        for start, stage in _STAGES.items():
            if line.startswith(start):
                self._begin(stage)
        if line.startswith(_OWN_STAGE):
            self._begin(line.removeprefix(_OWN_STAGE).strip())
        elif match := _TOTAL.match(line):
            self._total = int(match[1]) * len(_STEPS)
        elif self._total and line.startswith(_STEPS):
            self._steps += 1
            percent = min(99, self._steps * 100 // self._total)
            if percent > self._percent:
                self._percent = percent
                self._progress(self._stage, percent / 100)

    def _begin(self, stage: str) -> None:
        self._stage = stage
        self._total = self._steps = self._percent = 0
        self._progress(stage, None)


def check_host() -> None:
    """Check that this user can run mmdebstrap.

    Raises:
        ImageError: a program or the user's range of subordinate ids is missing.
    """
    setup = "Run `agentvm setup`, which installs what is missing."
    for program in ("mmdebstrap", "mke2fs", "setpriv"):
        if shutil.which(program, path=_path()) is None:
            raise ImageError(f"{program} is not installed, and an image is built with it.", setup)
    if os.geteuid() == 0:
        return
    if shutil.which("newuidmap") is None:
        raise ImageError("newuidmap is not installed, and an ordinary user builds an image with it.", setup)
    user = pwd.getpwuid(os.geteuid()).pw_name
    for ids in (Path("/etc/subuid"), Path("/etc/subgid")):
        text = ids.read_text(encoding="utf-8") if ids.exists() else ""
        if not any(line.split(":")[0] in (user, str(os.geteuid())) for line in text.splitlines()):
            raise ImageError(
                f"The user {user} has no range of ids in {ids}, which building an image without root needs.",
                f"Once, as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )


def run(arguments: Sequence[str], *, log: Path, scratch: Path, inherit: Sequence[int], progress: Progress) -> None:
    """Run mmdebstrap to its end.

    It is asked to end when this process does, however that ends, and then removes its own temporary files.

    Args:
        arguments: All but the mode.
        log: File that its messages are appended to.
        scratch: Folder for its temporary files; used as root only, since the ids of an ordinary user's namespace
            cannot enter the user's folders.
        inherit: Descriptors that hooks may use.
        progress: Called with stage and share done.

    Raises:
        ImageError: it failed; the last messages are in the error.
    """
    root = os.geteuid() == 0
    command = ["setpriv", "--pdeathsig", "TERM"]
    if root and _root_is_mount():
        # What it mounts then disappears with it, however it ends; an ordinary user's mode does the same by itself.
        command += ["unshare", "--mount"]
    command += ["mmdebstrap", f"--mode={'root' if root else 'unshare'}", *arguments]
    environment = os.environ | {"PATH": _path(), "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    environment["TMPDIR"] = str(scratch) if root else os.environ.get("TMPDIR", "/var/tmp")  # nosec B108
    errors: deque[str] = deque(maxlen=3)
    meter = Meter(progress)
    with (
        log.open("a", encoding="utf-8") as out,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            pass_fds=inherit,
            cwd="/",
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                out.write(line)
                out.flush()
                meter.feed(line)
                if line.startswith(_ERRORS):
                    errors.append(line.strip())
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise ImageError(
            f"Building the image failed: {' / '.join(errors) or f'mmdebstrap ended with {process.returncode}'}.",
            f"The log is {log}. A build can be tried again at any time.",
        )


def _path() -> str:
    # mke2fs lies in sbin, which an ordinary user's PATH may lack.
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _root_is_mount() -> bool:
    """Say whether ``/`` is a mount point; in a chroot it need not be, and then no namespace can be made private."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return any(line.split()[4] == "/" for line in lines)
