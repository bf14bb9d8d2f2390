"""Tiny sources and a tiny root layer, so that everything around mmdebstrap is tested in milliseconds."""

from __future__ import annotations

import io
import json
import lzma
import shutil
import tarfile
from pathlib import Path

from agentvm_kernel.image.mmdebstrap import Progress
from agentvm_kernel.image.recipe import Flavour, Sources

REPOSITORY = Path(__file__).parents[2]
ROOTFS_SIZE = 1 << 20


def make_sources(folder: Path) -> Sources:
    """Copy the real recipe beside a few lines of guest code."""
    guest, package = folder / "guest", folder / "agentvm_kernel"
    shutil.copytree(REPOSITORY / "guest" / "image", guest / "image")
    for path in (guest / "agentvm_guest" / "init.py", package / "errors.py", package / "__init__.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {path.name}\n")
    (package / "link").mkdir()
    (package / "link" / "frame.py").write_text("# frame\n")
    (package / "cli.py").write_text("# host only\n")
    return Sources(guest, package)


def make_modules(target: Path) -> None:
    """Write a tar file of kernel modules: each of the recipe's is built in, but virtio_blk needs ring needs core."""
    built_in = (
        "virtio_pci crc32c_generic ext4 virtio_console virtio-rng pvpanic-mmio pvpanic-pci vsock dummy virtio_net"
    )
    built_in += " vmw_vsock_virtio_transport"
    files = {
        "modules.dep": b"kernel/virtio_blk.ko.xz: kernel/ring.ko kernel/core.ko\nkernel/ring.ko: kernel/core.ko\n"
        b"kernel/core.ko:\nkernel/unused.ko:\n",
        "modules.builtin": "".join(f"kernel/{name}.ko\n" for name in built_in.split()).encode(),
        "kernel/virtio_blk.ko.xz": lzma.compress(b"block"),
        "kernel/ring.ko": b"ring",
        "kernel/core.ko": b"core",
        "kernel/unused.ko": b"unused",
    }
    with tarfile.open(target, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def fake_layer(_sources: Sources, flavour: Flavour, folder: Path, log: Path, progress: Progress) -> None:
    """Build a root layer without Debian in it."""
    progress("installing packages", 0.5)
    log.write_text("installed\n")
    (folder / "scratch").mkdir()
    (folder / "scratch" / "leftover").write_text("x")
    (folder / "vmlinuz").write_bytes(b"kernel")
    (folder / "busybox").write_bytes(b"busybox")
    make_modules(folder / "modules.tar")
    with (folder / "rootfs.ext4").open("wb") as rootfs:
        rootfs.write(flavour.name.encode())
        rootfs.truncate(ROOTFS_SIZE)
    packages = {"kernel": "6.12", "debian_packages": {"bash:amd64": "5"}, "python_packages": {"ipykernel": "7.4.0"}}
    (folder / "packages.json").write_text(json.dumps(packages))
