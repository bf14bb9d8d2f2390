"""A supervisor over a hypervisor without VMs, serving its API; and a lease of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_hypervisor import FakeHypervisor

from agentvm_kernel.config import Paths
from agentvm_kernel.image.store import Image
from agentvm_kernel.profiles import Profile
from agentvm_kernel.settings import Pool, Settings
from agentvm_kernel.supervisor import catalogue
from agentvm_kernel.supervisor.api import make_app
from agentvm_kernel.supervisor.client import Lease, SupervisorClient
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.daemon import prepare_folders
from agentvm_kernel.supervisor.lease import Lease as SupervisorLease
from agentvm_kernel.supervisor.messages import Granted, LeaseRequest

SETTINGS = Settings(
    image="minimal", profile="tiny", accelerator="tcg", transport="serial",
    profiles={"tiny": Profile(vcpus=1, memory_mib=256, disk_gb=4)},
)  # fmt: skip
COLD = SETTINGS.model_copy(update={"pool": Pool(warm=0, blanks=1)})


class FakeStore:
    """A store with one image, which it builds on demand."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "image"
        self.builds = 0

    def find(self, flavour: str) -> Image | None:
        return Image("d" * 64, flavour, self.folder) if self.folder.exists() else None

    def build(self, flavour: str, progress: object) -> Image:
        assert callable(progress)
        progress("installing packages", 0.5)
        self.folder.mkdir(parents=True)
        image = Image("d" * 64, flavour, self.folder)
        for path in (image.kernel, image.initramfs, image.rootfs):
            path.write_bytes(b"\0" * 512)
        return image


def make_paths(folder: Path) -> Paths:
    return Paths(folder / "c", folder / "s", folder / "s/run", folder / "config.toml")


@dataclass
class Leased:
    """A client with a lease.

    Attributes:
        events: What it is told of the lease after its grant.
    """

    supervisor: Supervisor
    hypervisor: FakeHypervisor
    client: SupervisorClient
    id: str
    events: AsyncIterator[object]

    @property
    def lease(self) -> SupervisorLease:
        return self.supervisor.lease(self.id)

    @property
    def machine(self) -> Any:
        """The fake machine under the lease's VM."""
        return self.lease.vm.machine

    async def told(self) -> object:
        return await anext(self.events)


@asynccontextmanager
async def leased(folder: Path, hypervisor: FakeHypervisor, settings: Settings = COLD) -> AsyncIterator[Leased]:
    """Lease from a supervisor of one's own, which leaves no machine behind."""
    paths = make_paths(folder)
    async with (
        serving(paths, hypervisor, settings) as supervisor,
        SupervisorClient(paths, start=False) as client,
        client.lease(LeaseRequest(notebook="n.ipynb")) as events,
    ):
        granted = await first_grant(events)
        await supervisor.pool.filled()
        ours = Leased(supervisor, hypervisor, client, granted.lease, events)
        ours.machine.calls.clear()
        yield ours
    assert not hypervisor.running


@asynccontextmanager
async def serving(paths: Paths, hypervisor: FakeHypervisor, settings: Settings = SETTINGS) -> AsyncIterator[Supervisor]:
    """Serve as the daemon does, with images from a ``FakeStore``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "ImageStore", FakeStore)
        async with _serving(paths, hypervisor, settings) as supervisor:
            yield supervisor


@asynccontextmanager
async def _serving(paths: Paths, hypervisor: FakeHypervisor, settings: Settings) -> AsyncIterator[Supervisor]:
    prepare_folders(paths)
    supervisor = Supervisor(paths, settings, hypervisor)
    await supervisor.open()
    runner = web.AppRunner(make_app(supervisor, asyncio.Event()), handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.UnixSite(runner, str(paths.socket)).start()
    try:
        yield supervisor
    finally:
        await supervisor.close()
        await runner.cleanup()


async def first_grant(lease: Lease) -> Granted:
    async for event in lease:
        if isinstance(event, Granted):
            return event
    raise AssertionError("no grant")
