"""The outer VM: a small emulated host with ``vhost-vsock``, in which the tests beside this file run."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

from agentvm_kernel.config import Paths
from agentvm_kernel.image import Image, ImageStore
from agentvm_kernel.image.recipe import Sources

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
# What the tests need of the project.
CARRIED = ("pyproject.toml", "agentvm_kernel", "guest", "tests/nested")
SECONDS = 1500
_LINES_KEPT = 200
# Without what QEMU's emulation lacks anyway and would complain about.
_CPU = "EPYC,xsavec=off,misalignsse=off,osvw=off,topoext=off,fxsr-opt=off,nrip-save=off"


class OuterError(Exception):
    """The outer VM did not come to results; the text has the end of what it said."""


class OuterSources(Sources):
    """What the outer VM's image is made from: this folder's recipe and no guest code."""

    def guest_code(self) -> Iterator[tuple[str, Path]]:
        """Yield nothing: the tests come on a disk of their own."""
        return iter(())


def say(text: str) -> None:
    """Show progress, for whoever watches (``pytest -s``)."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def show(stage: str, done: float | None) -> None:
    """Show the stages of an image's build."""
    if done is None:
        say(f"image: {stage}")


def build_outer_image(shelf: Path) -> Image:
    """Build the outer VM's image if it is not there, and remove older ones."""
    store = ImageStore(shelf, sources=OuterSources(HERE / "outer_image", PROJECT / "agentvm_kernel"))
    image = store.build("outer", show)
    for other in store.images():
        if other != image:
            store.remove(other.digest)
    return image


def run_in_outer_vm() -> dict[str, ET.Element]:
    """Run the tests in the outer VM.

    Returns:
        The ``testcase`` elements of pytest's report, by the tests' names.

    Raises:
        OuterError: there were no results.
    """
    cache = Paths.of_user().cache
    shelf = cache / "nested"
    guest = ImageStore(cache).build("minimal", show)
    outer = build_outer_image(shelf)
    with private_folder(shelf) as folder:
        say("writing the outer VM's disks")
        pack_project(folder / "project.tar")
        write_image_disk(guest, folder / "image.ext4")
        results = folder / "results.xml"
        said = run_qemu(command(outer, guest, folder), folder)
        try:
            suite = ET.parse(results)
        except (OSError, ET.ParseError) as error:
            raise OuterError(f"No results came out of the outer VM ({error}). It said:\n{said}") from error
    return {case.attrib["name"]: case for case in suite.iter("testcase")}


@contextmanager
def private_folder(shelf: Path) -> Iterator[Path]:
    """Provide a folder for one run; one runs at a time, and what a killed one left behind goes first."""
    with (shelf / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in shelf.glob("run-*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix="run-", dir=shelf) as folder:
            yield Path(folder)


def pack_project(target: Path) -> None:
    """Write what the tests need as a tar file; the outer VM unpacks it straight from its disk."""

    def keep(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "__pycache__" in entry.name else entry

    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in CARRIED:
            tar.add(PROJECT / name, name, filter=keep)


def write_image_disk(image: Image, target: Path) -> None:
    """Write a file system that holds an image's files."""
    size = sum(path.stat().st_size for path in image.folder.iterdir())
    arguments = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(image.folder), str(target)]
    arguments.append(f"{size // 1024 * 21 // 20 + 65536}k")
    # An ordinary user's PATH may lack sbin.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    done = subprocess.run(
        ["mke2fs", *arguments], capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}
    )
    if done.returncode:
        raise OuterError(f"The guest image's disk could not be written: {done.stderr}")


def command(outer: Image, guest: Image, folder: Path) -> list[str]:
    """Return the command that runs the outer VM, which ends when this process does.

    The CPU is an AMD because QEMU emulates AMD's virtualisation extension: on KVM the inner VM boots to an idle
    ipykernel in 40 s, by emulation inside emulation it does not in 300 s. `max` would bring what costs time here:
    `erms`, with which kernels copy in a loop over bytes, and five levels of page tables.
    """
    return [
        "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64",
        "-accel", "tcg,thread=multi,tb-size=1024", "-machine", "pc", "-cpu", _CPU, "-smp", "2", "-m", "3072",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", "on",
        "-kernel", str(outer.kernel), "-initrd", str(outer.initramfs),
        "-append", f"console=ttyS0 quiet panic=-1 mitigations=off no_timer_check agentvm.image={guest.digest}",
        "-drive", f"file={outer.rootfs},format=raw,if=virtio,snapshot=on",
        "-drive", f"file={folder / 'project.tar'},format=raw,if=virtio,readonly=on",
        "-drive", f"file={folder / 'image.ext4'},format=raw,if=virtio,cache=unsafe",
        "-device", "virtio-rng-pci", "-serial", "stdio", "-device", "virtio-serial",
        "-chardev", f"file,id=results,path={folder / 'results.xml'}",
        "-device", "virtserialport,chardev=results,name=results",
    ]  # fmt: skip


def run_qemu(command: list[str], folder: Path) -> str:
    """Run the outer VM to its end, showing what it says, and return the end of that.

    Raises:
        OuterError: it took too long.
    """
    said: deque[str] = deque(maxlen=_LINES_KEPT)
    late = threading.Event()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=os.environ | {"TMPDIR": str(folder)},
    ) as process:  # fmt: skip

        def give_up() -> None:
            late.set()
            process.kill()

        alarm = threading.Timer(SECONDS, give_up)
        alarm.start()
        try:
            for line in process.stdout or ():
                said.append(line.rstrip())
                say(f"| {said[-1]}")
        finally:
            alarm.cancel()
            alarm.join()
            process.kill()
    text = "\n".join(said)
    if late.is_set():
        raise OuterError(f"The outer VM did not end within {SECONDS} s. It said:\n{text}")
    return text
