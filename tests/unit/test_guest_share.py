"""The guest's half of a shared folder: what the host says of it, waiting for the device, mounting it, letting go."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from agentvm_guest import share
from agentvm_guest.identity import RequestError
from agentvm_guest.share import Share, Wanted, parse_wanted

WANTED = Wanted("agentvmshared", writable=False)


class Kernel:
    """Takes note of what is mounted; refuses with `error`."""

    def __init__(self) -> None:
        self.mounted: list[tuple[str, int]] = []
        self.error = 0

    def mount(self, _source: str, target: str, kind: str, flags: int, _options: str) -> None:
        self._refuse()
        assert kind == "9p"
        self.mounted.append((target, flags))

    def unmount(self, _target: str) -> None:
        self._refuse()
        self.mounted.pop()

    def _refuse(self) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(share, "_mount", made.mount)
    monkeypatch.setattr(share, "_unmount", made.unmount)
    return made


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "devices"
    for name, number in (("virtio0", "0x0003"), ("virtio1", "0x0009")):
        (folder / name).mkdir(parents=True)
        (folder / name / "device").write_text(f"{number}\n")
    monkeypatch.setattr(share, "_DEVICES", folder)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Share:
    return Share(tmp_path / "shared", (os.getuid(), os.getgid()))


def test_what_the_host_says_is_read() -> None:
    assert parse_wanted({"op": "mount", "tag": "agentvmshared", "writable": True}) == Wanted("agentvmshared", True)


@pytest.mark.parametrize(
    "wrong", [{"tag": None}, {"tag": "a,b"}, {"tag": "a" * 32}, {"tag": "ä"}, {"tag": ""}, {"writable": 1}]
)
def test_what_is_not_valid_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        parse_wanted({"tag": "agentvmshared", "writable": False, **wrong})


def test_it_is_mounted_as_the_host_says(place: Share, kernel: Kernel, devices: Path, tmp_path: Path) -> None:
    assert place.mount(WANTED, 60) == {"outcome": "mounted"}
    assert kernel.mounted == [(str(tmp_path / "shared"), 1 | 2 | 4)], "read-only, no setuid, no devices"
    assert place.unmount() == {"outcome": "unmounted"}
    assert not (tmp_path / "shared").exists()
    place.mount(Wanted("agentvmshared", writable=True), 60)
    assert kernel.mounted == [(str(tmp_path / "shared"), 2 | 4)]


def test_a_device_that_does_not_come_is_an_error(place: Share, kernel: Kernel, devices: Path) -> None:
    (devices / "virtio1" / "device").write_text("0x0001\n")
    with pytest.raises(OSError, match="device did not come"):
        place.mount(WANTED, 0.01)
    assert kernel.mounted == []


def test_a_driver_that_does_not_take_the_device_is_an_error(place: Share, kernel: Kernel, devices: Path) -> None:
    kernel.error = errno.ENOENT
    with pytest.raises(OSError, match="device did not come"):
        place.mount(WANTED, 0.01)


def test_a_kernel_without_9p_is_told(place: Share, kernel: Kernel, devices: Path, tmp_path: Path) -> None:
    kernel.error = errno.ENODEV
    assert place.mount(WANTED, 60) == {"outcome": "no_9p"}
    assert not (tmp_path / "shared").exists()
    kernel.error = errno.EPERM
    with pytest.raises(OSError, match="not permitted"):
        place.mount(WANTED, 60)


def test_what_is_in_its_place_is_not_hidden(place: Share, kernel: Kernel, devices: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "mine").touch()
    assert place.mount(WANTED, 60) == {"outcome": "occupied"}
    (tmp_path / "elsewhere").mkdir()
    link = Share(tmp_path / "link", (0, 0))
    (tmp_path / "link").symlink_to("elsewhere")
    assert link.mount(WANTED, 60) == {"outcome": "occupied"}
    assert kernel.mounted == []


def test_who_uses_it_is_told(place: Share, kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    kernel.error = errno.EBUSY
    with (tmp_path / "shared" / "open").open("w"):
        answer = place.unmount()
        named = share._users_of(tmp_path / "shared", _only_own(tmp_path))
    assert answer["outcome"] == "busy"
    assert named == [f"{Path('/proc/self/comm').read_text().strip()} ({os.getpid()})"]


def _only_own(tmp_path: Path) -> Path:
    """A procfs with this process alone."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    return tmp_path / "proc"


def test_what_root_has_unmounted_already_is_unmounted(place: Share, kernel: Kernel) -> None:
    for kernel.error in (errno.EINVAL, errno.ENOENT):
        assert place.unmount() == {"outcome": "unmounted"}
    kernel.error = errno.EPERM
    with pytest.raises(OSError, match="not permitted"):
        place.unmount()
