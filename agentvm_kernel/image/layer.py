"""Builds the root layer of an image: Debian, Python packages and the user, as a file system beside its kernel."""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from collections.abc import Iterable
from pathlib import Path

from agentvm_kernel.image import apt, mmdebstrap, wheels
from agentvm_kernel.image.mmdebstrap import Progress
from agentvm_kernel.image.recipe import Flavour, Sources

_BUILD = "opt/agentvm/build"
# No documentation, but what a licence asks to be kept; the settings also hold for what is installed in a VM later.
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)

ROOTFS, KERNEL, BUSYBOX, MODULES, PACKAGES = "rootfs.ext4", "vmlinuz", "busybox", "modules.tar", "packages.json"


def build_layer(sources: Sources, flavour: Flavour, folder: Path, log: Path, progress: Progress) -> None:
    """Fill a folder with a root layer.

    Args:
        sources: What images are made from.
        flavour: What to build.
        folder: An empty folder; afterwards it holds the root file system, the kernel, its modules, busybox and a list
            of packages.
        log: Where messages go.
        progress: Called with stage and share done.

    Raises:
        ImageError: the host lacks something, or a step failed.
    """
    mmdebstrap.check_host()
    scratch = folder / "scratch"
    fetched = scratch / "wheels"
    fetched.mkdir(parents=True)
    progress("fetching Python packages", None)
    wheels.fetch(flavour.pip, python=flavour.python, target=fetched, log=log)
    _write_inputs(sources, flavour, fetched, scratch / "inputs.tar")
    (scratch / "aptopt").write_text('Apt::Install-Recommends "false";\n' + apt.host_options(), encoding="utf-8")
    rootfs = folder / ROOTFS
    with rootfs.open("w+b") as image:
        # The namespace of an ordinary user's build is another user; the folder is private all the same.
        rootfs.chmod(0o666)
        arguments = _arguments(sources, flavour, folder, image.fileno())
        mmdebstrap.run(arguments, log=log, scratch=scratch, inherit=[image.fileno()], progress=progress)
    _write_packages(folder, folder / "out")


def _arguments(sources: Sources, flavour: Flavour, folder: Path, descriptor: int) -> list[str]:
    scratch = folder / "scratch"
    hooks = [
        f"tar-in {scratch / 'inputs.tar'} /",
        _script(sources, "kernel.sh", kernel=flavour.kernel),
        f'chroot "$1" sh /{_BUILD}/setup.sh',
        f"copy-out /{_BUILD}/out {folder}",
        _script(sources, "mkfs.sh", image=f"/proc/self/fd/{descriptor}"),
    ]
    return [
        "--verbose",
        "--variant=apt",
        "--format=null",
        "--architectures=amd64",
        f"--include={','.join(flavour.packages)}",
        f"--aptopt={scratch / 'aptopt'}",
        *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
        *(f"--customize-hook={hook}" for hook in hooks),
        flavour.suite,
        "/dev/null",
        *apt.guest_sources(flavour.suite, apt.host_codename(), apt.read_sources()),
    ]


def _script(sources: Sources, name: str, **settings: str) -> str:
    """Return a script's text, for mmdebstrap, whose namespace may be unable to open the file."""
    text = (sources.guest / "image" / name).read_text(encoding="utf-8")
    return "".join(f"{key}={shlex.quote(value)}\n" for key, value in settings.items()) + text


def _write_inputs(sources: Sources, flavour: Flavour, fetched: Path, target: Path) -> None:
    """Pack what the tree gets from the host, owned by root whoever builds."""
    files = [(name, path.read_bytes()) for name, path in sources.root_files()]
    files.append((f"{_BUILD}/setup.sh", (sources.guest / "image" / "setup.sh").read_bytes()))
    files.append((f"{_BUILD}/requirements.txt", "".join(f"{line}\n" for line in flavour.pip).encode()))
    files += [(f"{_BUILD}/wheels/{path.name}", path.read_bytes()) for path in sorted(fetched.iterdir())]
    with tarfile.open(target, "w") as tar:
        _add_files(tar, files)


def _add_files(tar: tarfile.TarFile, files: Iterable[tuple[str, bytes]]) -> None:
    folders: set[str] = set()
    for name, content in files:
        for parent in reversed(Path(name).parents[:-1]):
            if str(parent) not in folders:
                folders.add(str(parent))
                entry = tarfile.TarInfo(f"./{parent}")
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
        entry = tarfile.TarInfo(f"./{name}")
        entry.size, entry.mode = len(content), 0o644
        tar.addfile(entry, io.BytesIO(content))


def _write_packages(folder: Path, out: Path) -> None:
    """Turn the lists that setup.sh left into one file, and keep the kernel's parts."""
    debian = [line.split("\t") for line in (out / "debian.tsv").read_text(encoding="utf-8").splitlines()]
    python = json.loads((out / "python.json").read_text(encoding="utf-8"))
    packages = {
        "kernel": (out / "release").read_text(encoding="utf-8").strip(),
        "python": (out / "python-version").read_text(encoding="utf-8").strip(),
        "debian_packages": {f"{name}:{architecture}": version for name, version, architecture in sorted(debian)},
        "python_packages": {entry["name"]: entry["version"] for entry in python},
    }
    for name in (KERNEL, BUSYBOX, MODULES):
        (out / name).rename(folder / name)
    (folder / PACKAGES).write_text(json.dumps(packages, indent=1, sort_keys=True), encoding="utf-8")
