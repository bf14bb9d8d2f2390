"""A supervisor over a hypervisor without VMs, serving its API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from fake_hypervisor import FakeHypervisor

from agentvm_kernel.config import Paths
from agentvm_kernel.image.store import Image
from agentvm_kernel.profiles import Profile
from agentvm_kernel.settings import Settings
from agentvm_kernel.supervisor.api import make_app
from agentvm_kernel.supervisor.client import Lease
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.daemon import prepare_folders
from agentvm_kernel.supervisor.messages import Granted

SETTINGS = Settings(
    image="minimal", profile="tiny", accelerator="tcg", transport="serial",
    profiles={"tiny": Profile(vcpus=1, memory_mib=256, disk_gb=4)},
)  # fmt: skip


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


@asynccontextmanager
async def serving(paths: Paths, hypervisor: FakeHypervisor, settings: Settings = SETTINGS) -> AsyncIterator[Supervisor]:
    """Serve as the daemon does; the catalogue's ``ImageStore`` must be a ``FakeStore``."""
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
