"""Boots the minimal image with QEMU alone and looks from inside at what the image promises."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agentvm_kernel.config import Paths
from agentvm_kernel.image import Image, ImageStore
from agentvm_kernel.image.initramfs import Archive

# Takes the place of the guest's init.py; what it finds out leaves through a virtio-serial port.
PROBE = r"""
import glob, json, os, socket, subprocess

os.environ.update(PATH="/opt/agentvm/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", HOME="/home/agent")

def run(*command, user="agent"):
    done = subprocess.run(command, user=user, group=user, extra_groups=[], cwd="/", text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return [done.returncode, done.stdout.strip()]

socket.sethostname("clone-7")
facts = {
    "pid": os.getpid(),
    "uptime": float(open("/proc/uptime").read().split()[0]),
    "mounts": [line.split()[1:4] for line in open("/proc/mounts")],
    "modules": [line.split()[0] for line in open("/proc/modules")],
    "kernel": os.uname().release,
    "resize": run("resize2fs", "/dev/vda", user="root"),
    "python": run("python", "-c", "import sys; print(sys.prefix, *sys.version_info[:2])"),
    "ipykernel": run("python", "-c", "import ipykernel, ipywidgets, debugpy; print(ipykernel.__version__)"),
    "pip": run("pip", "--version"),
    "venv writable": run("touch", "/opt/agentvm/venv/lib/python3.13/site-packages/new"),
    "byte code": len(glob.glob("/opt/agentvm/venv/lib/python3.13/site-packages/ipykernel/__pycache__/*.pyc")),
    "user": run("id", "-un"),
    "sudo": run("sudo", "-n", "id", "-u"),
    "workspace": [os.path.realpath("/workspace"), *run("touch", "/workspace/file"), *os.listdir("/home/agent")],
    "git": run("git", "--version"),
    "curl": run("curl", "--version"),
    "certificates": run("python", "-c", "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"),
    "own name": run("getent", "hosts", "clone-7"),
    "nft": run("nft", "list", "ruleset", user="root"),
    "modprobe": run("modprobe", "--all", "nft_chain_nat", "nft_redir", user="root"),
    "poweroff": os.readlink("/usr/sbin/poweroff"),
    "identity": open("/etc/machine-id").read() + open("/etc/hostname").read(),
    "left over": [path for path in ("/opt/agentvm/build", "/usr/lib/systemd/systemd", "/boot/vmlinuz")
                  if os.path.exists(path)] + os.listdir("/tmp"),
}
disk = os.statvfs("/")
facts["disk"] = disk.f_blocks * disk.f_frsize
for name in glob.glob("/sys/class/virtio-ports/*/name"):
    with open("/dev/" + name.split("/")[-2], "w") as port:
        port.write(json.dumps(facts))
subprocess.run(["poweroff", "-f"])
"""


@pytest.fixture(scope="module")
def image() -> Image:
    return ImageStore(Paths.of_user().cache).build("minimal", lambda _stage, _done: None)


@pytest.fixture(scope="module")
def facts(image: Image, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("boot")
    overlay, initramfs, answer = folder / "disk.qcow2", folder / "initramfs", folder / "answer"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image.rootfs), "-F", "raw", str(overlay), "8G"]
    subprocess.run(create, check=True)
    with initramfs.open("wb") as out:
        out.write(image.initramfs.read_bytes())
        # The kernel unpacks one archive after the other; the later file wins.
        archive = Archive(out)
        archive.file("guest/agentvm_guest/init.py", PROBE.encode())
        archive.close()
    qemu = [
        *("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-no-reboot"),
        *("-display", "none", "-serial", f"file:{folder / 'console'}"),
        *("-kernel", str(image.kernel), "-initrd", str(initramfs), "-append", "console=ttyS0 quiet panic=-1"),
        *("-drive", f"file={overlay},if=none,id=disk,format=qcow2", "-device", "virtio-blk-pci,drive=disk"),
        *("-device", "virtio-serial-pci", "-chardev", f"file,id=answer,path={answer}"),
        *("-device", "virtserialport,chardev=answer,name=agentvm.control", "-device", "virtio-rng-pci"),
    ]
    subprocess.run(qemu, check=True, timeout=240)
    assert answer.read_text(), (folder / "console").read_text()[-2000:]
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def test_init_hands_over_to_the_guest_code_as_the_first_process(facts: dict[str, Any]) -> None:
    assert facts["pid"] == 1
    mounts = {point: (kind, options.split(",")) for point, kind, options in facts["mounts"]}
    assert mounts["/"][0] == "ext4"
    assert {"rw", "noatime"} <= set(mounts["/"][1])
    assert {mounts[point][0] for point in ("/proc", "/sys", "/dev", "/run")} == {"proc", "sysfs", "devtmpfs", "tmpfs"}


def test_modules_for_disk_and_channels_are_loaded(facts: dict[str, Any], image: Image) -> None:
    loaded = {"virtio_blk", "virtio_rng", "vsock", "vmw_vsock_virtio_transport", "pvpanic_pci"}
    assert loaded <= set(facts["modules"])
    assert facts["kernel"] == image.manifest()["kernel"]
    assert facts["modprobe"] == [0, ""]


def test_python_is_3_13_with_ipykernel_7_in_an_environment_of_the_user(facts: dict[str, Any], image: Image) -> None:
    assert facts["python"] == [0, "/opt/agentvm/venv 3 13"]
    assert facts["ipykernel"][0] == 0, facts["ipykernel"]
    assert facts["ipykernel"][1].startswith("7.")
    assert facts["ipykernel"][1] == image.manifest()["python_packages"]["ipykernel"]
    assert facts["pip"][0] == 0
    assert facts["venv writable"] == [0, ""]
    assert facts["byte code"] > 10


def test_the_user_is_ordinary_and_has_sudo_without_a_password(facts: dict[str, Any]) -> None:
    assert facts["user"] == [0, "agent"]
    assert facts["sudo"] == [0, "0"]


def test_the_workspace_is_the_users_home(facts: dict[str, Any]) -> None:
    assert facts["workspace"][:3] == ["/home/agent", 0, ""]
    assert "file" in facts["workspace"][3:]


def test_tools_and_certificates_are_there(facts: dict[str, Any]) -> None:
    assert facts["git"][0] == facts["curl"][0] == facts["nft"][0] == 0
    assert int(facts["certificates"][1]) > 50
    assert facts["poweroff"].endswith("busybox")


def test_the_file_system_grows_to_the_disk(facts: dict[str, Any]) -> None:
    assert facts["resize"][0] == 0, facts["resize"]
    assert facts["disk"] > 7.5 * 2**30


def test_no_identity_and_no_traces_of_the_build(facts: dict[str, Any], image: Image) -> None:
    assert facts["identity"].strip() == ""
    assert facts["left over"] == []
    assert facts["own name"][0] == 0
    packages = {name.split(":")[0] for name in image.manifest()["debian_packages"]}
    assert not packages & {"systemd", "udev", "initramfs-tools"}
    assert {"libc6", "sudo", "git"} <= packages
    assert any(name.startswith("linux-image-") for name in packages)


def test_files_are_what_the_manifest_says(image: Image) -> None:
    for name, said in image.manifest()["files"].items():
        assert (image.folder / name).stat().st_size == said["size"]
    assert Path(image.rootfs).stat().st_blocks * 512 < image.rootfs.stat().st_size
