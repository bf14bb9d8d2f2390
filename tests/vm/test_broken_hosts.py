"""What is wrong with a host is said in one clear line with a remedy, on the command line and in a notebook's cell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from kernel_client import notebook, wait_until
from travel import named, ok, refused, saved, value
from vms import environment_of, own_supervisor

from agentvm_kernel.config import Paths

pytestmark = pytest.mark.timeout(300)

RUN = [sys.executable, "-c", "from agentvm_kernel.cli import main; main()", "run"]
CELL = """
import json
from kernel_client import notebook
with notebook({}) as nb:
    print(json.dumps(nb.run("6 * 7").reply))
"""
NO_QEMU = """
set -e
mount -t tmpfs tmpfs "$0"; mkdir "$0/upper" "$0/work"
mount -t overlay -o "lowerdir=/usr/bin,upperdir=$0/upper,workdir=$0/work" overlay /usr/bin
rm /usr/bin/qemu-system-x86_64
exec "$@"
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@dataclass
class Host:
    """A host on which something is wrong.

    Attributes:
        paths: Folders of its supervisor.
        inside: What programs are started through.
        profile: What is asked for.
    """

    paths: Paths
    inside: Sequence[str] = ()
    profile: str = "test"

    def tells(self, *words: str) -> None:
        """See that a command and a cell fail, and say something with these words."""
        for text in (self._command(), self._cell()):
            assert "Traceback" not in text
            for word in words:
                assert word in text, text

    def _command(self) -> str:
        script = self.paths.config.with_name("x.sh")
        script.write_text("echo never")
        done = self._run(*RUN, "--profile", self.profile, str(script))
        assert (done.returncode, done.stdout) == (125, ""), done.stderr
        assert len(done.stderr.splitlines()) <= 3, done.stderr
        return done.stderr

    def _cell(self) -> str:
        done = self._run(sys.executable, "-c", CELL)
        assert done.returncode == 0, done.stderr
        reply = json.loads(done.stdout)
        assert reply["status"] == "error"
        assert "\n" not in reply["evalue"]
        return str(reply["evalue"])

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        support = str(Path(__file__).parents[1] / "unit")
        environment = {**os.environ, **environment_of(self.paths), "AGENTVM_PROFILE": self.profile}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (support, os.environ.get("PYTHONPATH"))))
        return subprocess.run(
            [*self.inside, *command], env=environment, capture_output=True, text=True, timeout=120, check=False
        )


def test_a_broken_configuration_and_an_unknown_profile() -> None:
    with own_supervisor() as paths:
        Host(paths, profile="huge").tells("There is no profile 'huge'", "light")
    with own_supervisor() as paths:
        paths.config.write_text('image = "minimal"\nidle_exit = "soon"\n')
        Host(paths).tells(f"{paths.config}:2: idle_exit is", "agentvm config reference")


def test_libvirt_gone() -> None:
    with own_supervisor() as paths:
        uri = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"
        paths.config.write_text(f'uri = "{uri}"\n{paths.config.read_text()}')
        Host(paths).tells(f"No connection to libvirt ({uri})", "agentvm doctor")


@needs_root
def test_qemu_missing(tmp_path: Path) -> None:
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", NO_QEMU, str(tmp_path)]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no overlay can be mounted over /usr/bin")
    with own_supervisor() as paths:
        Host(paths, inside).tells("qemu-system-x86_64 is not installed", "agentvm setup")


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        # Whoever could not start there may be a moment from its end.
        wait_until(lambda: not subprocess.run(["umount", folder], check=False).returncode, f"{folder} is unmounted")


def read_only(folder: Path) -> AbstractContextManager[None]:
    return mounted(folder, "ro")


@contextmanager
def full(folder: Path) -> Iterator[None]:
    with mounted(folder, "size=64k,mode=711"):
        subprocess.run(["dd", "if=/dev/zero", f"of={folder / 'all'}"], stderr=subprocess.DEVNULL, check=False)
        yield


@needs_root
@pytest.mark.parametrize(
    ("disk", "words"),
    [(read_only, ("Read-only file system", "Make it writable")), (full, ("No space left on device", "Make room"))],
    ids=["read-only", "full"],
)
def test_a_state_folder_that_cannot_be_written(
    disk: Callable[[Path], AbstractContextManager[None]], words: tuple[str, ...]
) -> None:
    with own_supervisor(disk=disk) as paths:
        Host(paths).tells(*words, "AGENTVM_STATE_DIR")


@contextmanager
def own_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of images of a test's own."""
    users = Paths.of_user().cache
    cache = users.with_name(f"avm-{os.getpid()}")
    cache.mkdir(mode=0o711)
    try:
        for part in ("images", "layers"):
            subprocess.run(["cp", "--archive", "--link", users / part, cache / part], check=True)
        monkeypatch.setenv("AGENTVM_CACHE_DIR", str(cache))
        yield cache
    finally:
        shutil.rmtree(cache)


def test_image_and_golden_snapshot_removed_underneath(monkeypatch: pytest.MonkeyPatch) -> None:
    with own_cache(monkeypatch) as cache, own_supervisor() as paths:
        environment = environment_of(paths)
        with notebook(named(environment, "/tests/underneath.ipynb")) as nb:
            ok(nb, "x = 1")
            snapshot = saved(nb, "before")
            shutil.rmtree(cache / "golden")
            shutil.rmtree(cache / "images")
            assert value(nb, "x") == 1
            # Both are made anew: the image from what was downloaded for it, the snapshot by a boot.
            with notebook(environment) as another:
                assert value(another, "6 * 7") == 42
            assert "was made anew" in refused(nb, f"%rollback {snapshot}")
            assert value(nb, "x") == 1


def test_a_guest_whose_clock_was_set_far_off_has_it_right_after_a_rollback_and_in_a_fresh_vm() -> None:
    with own_supervisor() as paths, notebook(named(environment_of(paths), "/tests/clock.ipynb")) as nb:
        ok(nb, "import subprocess, time\nsubprocess.run('sudo date -s 2001-01-01', shell=True, check=True)")
        assert value(nb, "time.gmtime().tm_year") == 2001
        snapshot = saved(nb, "long-ago")
        for way in (f"%rollback {snapshot}", "%vm restart"):
            ok(nb, way)
            assert abs(value(nb, "__import__('time').time()") - time.time()) < 60
