"""Golden snapshots, over a hypervisor without VMs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fake_hypervisor import FakeHypervisor

from agentvm_kernel.errors import HostError
from agentvm_kernel.image.store import Image
from agentvm_kernel.profiles import Profile
from agentvm_kernel.supervisor import catalogue
from agentvm_kernel.supervisor.catalogue import Catalogue
from agentvm_kernel.vm.spec import Transport

PROFILE = Profile(vcpus=1, memory_mib=256, disk_gb=4)


class OneImage:
    """A store that has an image."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "image"
        self.folder.mkdir(exist_ok=True)
        (self.folder / "rootfs.ext4").write_bytes(bytes(4096))

    def find(self, flavour: str) -> Image:
        return Image("d" * 64, flavour, self.folder)


async def test_supervisors_that_share_a_cache_boot_an_image_once(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "ImageStore", OneImage)
    hypervisors = [FakeHypervisor(), FakeHypervisor()]
    catalogues = [Catalogue(hypervisor, short_tmp, "tcg", Transport.SERIAL) for hypervisor in hypervisors]
    found = await asyncio.gather(*(each.golden("minimal", PROFILE, lambda _: None) for each in catalogues))
    assert found[0] == found[1]
    assert sum(len(hypervisor.machines) for hypervisor in hypervisors) == 1
    assert found[0].device_state.read_text() == "device state"


async def test_a_vm_that_is_larger_than_the_host_is_refused_before_anything_is_booted(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "ImageStore", OneImage)
    hypervisor = FakeHypervisor()
    large = PROFILE.model_copy(update={"memory_mib": 1 << 20})
    with pytest.raises(HostError, match=r"A VM of 1048576 MiB does not fit.*\n.*memory_mib"):
        await Catalogue(hypervisor, short_tmp, "tcg", Transport.SERIAL).golden("minimal", large, lambda _: None)
    assert not hypervisor.machines
