"""The builder's parts, each without Debian: initramfs, apt sources, wheels, mmdebstrap's messages, the root layer."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_image import fake_layer, make_modules, make_sources

from agentvm_kernel.errors import ImageError
from agentvm_kernel.image import ImageStore, apt, layer, mmdebstrap, wheels
from agentvm_kernel.image.__main__ import main
from agentvm_kernel.image.apt import Source
from agentvm_kernel.image.initramfs import Archive, load_order, write_initramfs


def read_cpio(content: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yield name, mode and content of each entry of a newc archive."""
    at = 0
    while True:
        assert content[at : at + 6] == b"070701"
        fields = [int(content[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = content[at + 110 : at + 110 + length - 1].decode()
        start = (at + 110 + length + 3) & ~3
        if name == "TRAILER!!!":
            return
        yield name, mode, content[start : start + size]
        at = (start + size + 3) & ~3


def test_archive_makes_the_folders_of_a_file_once_and_first() -> None:
    out = io.BytesIO()
    archive = Archive(out)
    archive.file("a/b/one", b"1")
    archive.file("a/b/two", b"22222", 0o100755)
    archive.close()
    assert list(read_cpio(out.getvalue())) == [
        ("a", 0o40755, b""),
        ("a/b", 0o40755, b""),
        ("a/b/one", 0o100644, b"1"),
        ("a/b/two", 0o100755, b"22222"),
    ]


def test_modules_load_after_what_they_depend_on() -> None:
    text = "k/a-b.ko.xz: k/c.ko k/d.ko\nk/c.ko: k/d.ko\nk/d.ko:\nk/e.ko:\n"
    assert load_order(text, ["a_b", "d", "builtin"]) == ["k/d.ko", "k/c.ko", "k/a-b.ko.xz"]


@pytest.fixture
def initramfs(tmp_path: Path) -> dict[str, bytes]:
    make_modules(tmp_path / "modules.tar")
    (tmp_path / "init.py").write_text("print()")
    target = tmp_path / "initramfs"
    write_initramfs(
        target,
        init=b"#!/bin/busybox sh\n",
        busybox=b"ELF",
        modules=tmp_path / "modules.tar",
        wanted=["virtio_blk", "ext4"],
        code=[("agentvm_guest/init.py", tmp_path / "init.py")],
    )
    return {name: content for name, _, content in read_cpio(target.read_bytes())}


def test_initramfs_holds_unpacked_modules_in_order_and_the_guest_code(initramfs: dict[str, bytes]) -> None:
    assert initramfs["modules/order"] == b"core.ko\nring.ko\nvirtio_blk.ko\n"
    assert initramfs["modules/virtio_blk.ko"] == b"block"
    assert initramfs["guest/agentvm_guest/init.py"] == b"print()"
    assert initramfs["bin/busybox"] == b"ELF"
    assert {"init", "dev", "proc", "sys", "root"} <= set(initramfs)
    assert "modules/unused.ko" not in initramfs


def test_a_module_that_the_kernel_lacks_is_an_error(tmp_path: Path) -> None:
    make_modules(tmp_path / "modules.tar")
    with pytest.raises(ImageError, match="p9fs, zfs"):
        write_initramfs(
            tmp_path / "x", init=b"", busybox=b"", modules=tmp_path / "modules.tar", wanted=["zfs", "p9fs"], code=[]
        )


ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] http://one.example/debian/ bookworm main contrib # why
deb-src http://one.example/debian bookworm main
deb http://one.example/security bookworm-security main
"""
DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://two.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/x.gpg

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""


def test_apt_sources_are_read_in_both_formats(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    assert apt.read_sources(tmp_path) == [
        Source("http://one.example/debian", "bookworm", ("main", "contrib")),
        Source("http://one.example/security", "bookworm-security", ("main",)),
        Source("http://two.example/debian", "bookworm", ("main",)),
        Source("http://two.example/debian", "bookworm-updates", ("main",)),
    ]


def test_guest_uses_the_host_mirrors_for_its_own_suites() -> None:
    host = [
        Source("http://a.example/other", "nodistro", ("main",)),
        Source("http://a.example/security", "bookworm-security", ("main",)),
        Source("http://a.example/debian", "bookworm", ("main",)),
        Source("http://b.example/debian", "bookworm", ("main",)),
    ]
    assert apt.guest_sources("trixie", "bookworm", host) == [
        "deb http://a.example/debian trixie main",
        "deb http://a.example/security trixie-security main",
    ]


@pytest.mark.parametrize(
    ("codename", "source"),
    [
        ("", Source("http://a.example/ubuntu", "noble", ("main",))),
        ("bookworm", Source("http://user:secret@a.example/debian", "bookworm", ("main",))),
        ("bookworm", Source("cdrom:[Debian]", "bookworm", ("main",))),
        ("bookworm", Source("http://a.example/debian", "bookworm-security", ("main",))),
        ("bookworm", Source("http://a.example/debian", "bookworm", ("contrib",))),
    ],
)
def test_without_a_usable_host_mirror_the_defaults_apply(codename: str, source: Source) -> None:
    assert apt.guest_sources("trixie", codename, [source]) == []


@pytest.mark.parametrize(
    ("text", "codename"),
    [
        ('NAME="Debian GNU/Linux"\nID=debian\nVERSION_CODENAME=bookworm\n', "bookworm"),
        ('ID="debian"\nVERSION_CODENAME="trixie"\n\n', "trixie"),
        ("ID=ubuntu\nVERSION_CODENAME=noble\n", ""),
        ("", ""),
    ],
)
def test_only_debian_has_a_codename(tmp_path: Path, text: str, codename: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert apt.host_codename(tmp_path / "os-release") == codename
    assert apt.host_codename(tmp_path / "missing") == ""


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_only_settings_that_make_mirrors_reachable_are_taken_over(programs: Path) -> None:
    wanted = [
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::https::CAInfo "/etc/ca.pem";',
        'Acquire::Check-Valid-Until "false";',
        'Acquire::Retries "3";',
    ]
    other = ['DPkg::Post-Invoke:: "rm -rf /";', 'Acquire::Languages "none";', 'APT::Install-Recommends "1";']
    lines = "\n".join(wanted + other)
    program(programs, "apt-config", f"cat <<'END'\n{lines}\nEND")
    assert apt.host_options().splitlines() == wanted


MESSAGES = """\
I: running apt-get update...
Get:1 http://a.example trixie InRelease
I: installing remaining packages inside the chroot...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://a.example a
Get:2 http://a.example b
Unpacking a (1) ...
something else
Unpacking b (1) ...
Setting up a (1) ...
Setting up b (1) ...
stage: writing the root file system
"""


def test_messages_become_stages_and_shares() -> None:
    seen: list[tuple[str, float | None]] = []
    meter = mmdebstrap.Meter(lambda stage, done: seen.append((stage, done)))
    for line in MESSAGES.splitlines(keepends=True):
        meter.feed(line)
    shares = [0.16, 0.33, 0.5, 0.66, 0.83, 0.99]
    assert seen == [
        ("reading the package lists", None),
        ("installing packages", None),
        *(("installing packages", share) for share in shares),
        ("writing the root file system", None),
    ]


def run(tmp_path: Path, *arguments: str) -> list[str]:
    stages: list[str] = []
    mmdebstrap.run(
        arguments,
        log=tmp_path / "log",
        scratch=tmp_path,
        inherit=[],
        progress=lambda stage, _done: stages.append(stage),
    )
    return stages


def test_mmdebstrap_runs_in_the_mode_of_its_user(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "mmdebstrap", 'echo "$@" "$TMPDIR"; echo "stage: working" >&2')
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert run(tmp_path, "trixie") == ["working"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    run(tmp_path, "trixie")
    assert (tmp_path / "log").read_text().splitlines()[::2] == [
        f"--mode=root trixie {tmp_path}",
        "--mode=unshare trixie /var/tmp",
    ]


def test_failure_names_the_last_error_and_the_log(programs: Path, tmp_path: Path) -> None:
    program(programs, "mmdebstrap", 'echo "E: no such package"; echo "more"; exit 25')
    with pytest.raises(ImageError, match="E: no such package") as raised:
        run(tmp_path)
    assert str(tmp_path / "log") in raised.value.hint
    program(programs, "mmdebstrap", "exit 25")
    with pytest.raises(ImageError, match="ended with 25"):
        run(tmp_path)


def test_an_interrupted_build_ends_mmdebstrap(programs: Path, tmp_path: Path) -> None:
    program(programs, "mmdebstrap", f'echo $$ > {tmp_path}/pid; echo "stage: working"; exec sleep 600')

    def interrupt(_stage: str, _done: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mmdebstrap.run([], log=tmp_path / "log", scratch=tmp_path, inherit=[], progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_host_without_mmdebstrap_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmdebstrap, "_path", lambda: str(tmp_path))
    with pytest.raises(ImageError, match="mmdebstrap is not installed") as raised:
        mmdebstrap.check_host()
    assert "agentvm setup" in raised.value.hint


def test_an_ordinary_user_needs_newuidmap(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mmdebstrap", "mke2fs", "setpriv"):
        program(programs, name, "")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(mmdebstrap, "_path", lambda: str(programs))
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(ImageError, match="newuidmap is not installed"):
        mmdebstrap.check_host()
    program(programs, "newuidmap", "")
    with pytest.raises(ImageError, match="has no range of ids in /etc/subuid") as raised:
        mmdebstrap.check_host()
    assert "usermod --add-subuids" in raised.value.hint


def make_wheel(folder: Path, name: str) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Python: >=3.13\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def local_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's pip is configured with a local folder and no index."""
    folder = tmp_path / "index"
    folder.mkdir()
    make_wheel(folder, "tiny")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.usefixtures("local_wheels")
def test_wheels_come_from_where_the_host_pip_looks_for_the_guest_python(tmp_path: Path) -> None:
    target = tmp_path / "wheels"
    target.mkdir()
    wheels.fetch(["tiny"], python="3.13", target=target, log=tmp_path / "log")
    assert [path.name for path in target.iterdir()] == ["tiny-1.0-py3-none-any.whl"]
    with pytest.raises(ImageError, match="No matching distribution found for absent") as raised:
        wheels.fetch(["absent"], python="3.13", target=target, log=tmp_path / "log")
    assert str(tmp_path / "log") in raised.value.hint


# Stands for mmdebstrap: does what the copy-out hook would do, and writes the image through the descriptor.
FAKE_MMDEBSTRAP = """
for argument; do
  case $argument in
    --customize-hook=copy-out*)
      out=${argument##* }/out
      mkdir "$out"
      for name in vmlinuz busybox modules.tar; do echo "$name" > "$out/$name"; done
      echo 6.12 > "$out/release"
      echo 3.13.5 > "$out/python-version"
      printf 'bash\\t5\\tamd64\\nadduser\\t3\\tall\\n' > "$out/debian.tsv"
      echo '[{"name": "tiny", "version": "1.0"}]' > "$out/python.json" ;;
    --customize-hook=image=*) printf '%s\\n' "$argument" | sed -n '1s/.*image=//p' > "$HOOK_FD" ;;
    --customize-hook=tar-in*) cp "$(echo "$argument" | cut -d ' ' -f 2)" "$HOOK_FD.tar" ;;
  esac
  printf '%s\\n' "$argument"
done
echo content > "$(cat "$HOOK_FD")"
"""


@pytest.mark.usefixtures("local_wheels")
def test_root_layer_is_made_of_what_the_hooks_hand_out(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = make_sources(tmp_path)
    recipe = sources.guest / "image" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('pip = ["ipykernel>=7,<8", "ipywidgets>=8.1,<9"]', 'pip = ["tiny"]'))
    program(programs, "mmdebstrap", FAKE_MMDEBSTRAP)
    monkeypatch.setenv("HOOK_FD", str(tmp_path / "fd"))
    monkeypatch.setattr(mmdebstrap, "check_host", lambda: None)
    folder = tmp_path / "layer"
    folder.mkdir()
    flavour = sources.flavour("minimal")
    layer.build_layer(sources, flavour, folder, tmp_path / "log", lambda _stage, _done: None)

    assert (folder / "rootfs.ext4").read_text() == "content\n"
    assert (folder / "vmlinuz").read_text() == "vmlinuz\n"
    packages = json.loads((folder / "packages.json").read_text())
    assert packages == {
        "kernel": "6.12",
        "python": "3.13.5",
        "debian_packages": {"bash:amd64": "5", "adduser:all": "3"},
        "python_packages": {"tiny": "1.0"},
    }
    said = (tmp_path / "log").read_text()
    assert f"--include={','.join(flavour.packages)}\n" in said
    assert "kernel=linux-image-cloud-amd64\n" in said
    with tarfile.open(tmp_path / "fd.tar") as tar:
        members = tar.getmembers()
    assert {(member.uid, member.gid) for member in members} == {(0, 0)}
    names = [member.name for member in members]
    assert "./etc/sudoers.d/agent" in names
    assert "./opt/agentvm/build/wheels/tiny-1.0-py3-none-any.whl" in names


def test_scripts_are_valid_shell() -> None:
    for name in ("init", "kernel.sh", "setup.sh", "mkfs.sh"):
        path = Path(__file__).parents[2] / "guest" / "image" / name
        subprocess.run(["/bin/sh", "-n", str(path)], check=True)


def test_developer_command_builds_and_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTVM_CACHE_DIR", str(tmp_path / "cache"))
    sources = make_sources(tmp_path)
    monkeypatch.setattr(
        "agentvm_kernel.image.__main__.ImageStore",
        lambda cache: ImageStore(cache, sources=sources, build_layer=fake_layer),
    )
    assert main(["build", "minimal"]) == 0
    folder = capsys.readouterr().out.strip()
    assert main(["list"]) == 0
    assert folder in capsys.readouterr().out
    assert main(["build", "huge"]) == 1
    assert "no image flavour" in capsys.readouterr().err
    assert main([]) == 2


def test_developer_command_can_be_called_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "agentvm_kernel.image"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Usage" in done.stderr
