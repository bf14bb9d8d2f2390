"""From a flavour and a profile to a golden snapshot: found, or built once while all who wait see the progress."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import re
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import HostError
from agentvm_kernel.image.store import Image, ImageStore
from agentvm_kernel.observe.events.supervisor import ImageUpdated
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.profiles import Profile
from agentvm_kernel.supervisor.budget import total_memory
from agentvm_kernel.supervisor.messages import Progress
from agentvm_kernel.vm.accelerator import Accelerator
from agentvm_kernel.vm.golden import Source, golden_id, make_golden
from agentvm_kernel.vm.hypervisor import Hypervisor
from agentvm_kernel.vm.snapshot import Snapshot
from agentvm_kernel.vm.spec import Hardware, Transport

_log = logging.getLogger(__name__)

_LOCK_SECONDS = 0.1
_PASSING: Final = "passing"
"""An empty file in the folder of a golden snapshot whose machine no profile has; as old as its last use."""

_MOST_PASSING: Final = 3
_ID = re.compile(r"[0-9a-f]{32}")

OnProgress = Callable[[Progress], None]


class _Work:
    """One piece of work and those who watch it."""

    def __init__(self) -> None:
        self.watchers: set[OnProgress] = set()
        self.task: asyncio.Task[Snapshot] | None = None

    def report(self, stage: str, done: float | None = None) -> None:
        for watcher in tuple(self.watchers):
            watcher(Progress(stage=stage, done=done))


class Catalogue:
    """Golden snapshots by (flavour, profile).

    Args:
        hypervisor: Boots images.
        cache: Images lie in ``images`` below it, golden snapshots in ``golden``.
        accelerator: KVM or TCG.
        transport: What carries the link.
        record: Takes an event into the audit log.
        booted: Told of each boot, with the seconds that it took.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        cache: Path,
        accelerator: Accelerator,
        transport: Transport,
        record: Callable[[Event], None] = lambda _: None,
        booted: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._hypervisor = hypervisor
        self._images = ImageStore(cache)
        self._folder = cache / "golden"
        self._accelerator: Accelerator = accelerator
        self._transport = transport
        self._record = record
        self._booted = booted
        self._works: dict[tuple[str, Profile], _Work] = {}

    def trim(self, used: Snapshot, needed: Collection[str]) -> None:
        """Remove golden snapshots of machines that no profile has, but for those that were used last; blocks.

        Args:
            used: One that is used now.
            needed: Ids of those that something descends from.
        """
        if (mark := used.folder / _PASSING).exists():
            mark.touch()
        marks = sorted(self._folder.glob(f"*/{_PASSING}"), key=lambda one: one.stat().st_mtime_ns, reverse=True)
        for folder in (one.parent for one in marks[_MOST_PASSING:]):
            if _ID.fullmatch(folder.name) and folder.name not in {used.id, *needed}:
                gone = folder.rename(folder.with_name(f".{folder.name}.gone"))
                shutil.rmtree(gone)
                _log.info("removed the golden snapshot %s: no profile has such machines", folder.name)

    def find(self, snapshot: str) -> Snapshot | None:
        """Return a golden snapshot by its id, if it is there."""
        return Snapshot.load(self._folder / snapshot) if _ID.fullmatch(snapshot) else None

    async def golden(
        self, flavour: str, profile: Profile, on_progress: OnProgress, *, is_passing: bool = False
    ) -> Snapshot:
        """Return the golden snapshot, after building what is missing.

        Args:
            flavour: Flavour of the image.
            profile: The VM's resources.
            on_progress: Called with each step while something is built.
            is_passing: No profile has such machines: what is built may go when others are, see `trim`.

        Raises:
            AgentVMError: it could not be built.
        """
        key = (flavour, profile)
        work = self._works.get(key)
        if work is None:
            work = self._works[key] = _Work()
            work.task = asyncio.create_task(self._find_or_make(flavour, profile, work.report, is_passing))
            work.task.add_done_callback(lambda task: self._finished(key, task))
        assert work.task is not None  # nosec B101 - set above, for the type checker
        work.watchers.add(on_progress)
        try:
            # One who gives up must not take the work from the others.
            return await asyncio.shield(work.task)
        finally:
            work.watchers.discard(on_progress)

    def _finished(self, key: tuple[str, Profile], task: asyncio.Task[Snapshot]) -> None:
        self._works.pop(key, None)
        if not task.cancelled() and (error := task.exception()):
            _log.warning("no golden snapshot for %s: %s", key[0], error)

    async def close(self) -> None:
        """Give up what is being built."""
        tasks = [work.task for work in self._works.values() if work.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _find_or_make(
        self, flavour: str, profile: Profile, report: Callable[[str, float | None], None], is_passing: bool
    ) -> Snapshot:
        image = await self._image(flavour, report)
        hardware = Hardware(profile.vcpus, profile.memory_mib, profile.disk_gb, self._accelerator, self._transport)
        source = Source(image.digest, image.kernel, image.initramfs, image.rootfs)
        name = await golden_id(self._hypervisor, source, hardware)
        folder = self._folder / name
        if snapshot := Snapshot.load(folder):
            return snapshot
        self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        async with _only_one(self._folder.with_suffix(".lock")):
            if snapshot := Snapshot.load(folder):
                return snapshot
            _check_memory(profile)
            snapshot = await make_golden(
                self._hypervisor, source, hardware, folder, self._hypervisor.domain_name(f"golden-{name[:12]}"),
                lambda stage: report(stage, None),
            )  # fmt: skip
            if is_passing:
                (folder / _PASSING).touch()
        self._record(ImageUpdated(flavour=flavour, image=image.digest, snapshot=snapshot.id))
        self._booted(snapshot.manifest.boot_seconds)
        return snapshot

    async def _image(self, flavour: str, report: Callable[[str, float | None], None]) -> Image:
        if image := await asyncio.to_thread(self._images.find, flavour):
            return image
        loop = asyncio.get_running_loop()

        def from_thread(stage: str, done: float | None) -> None:
            loop.call_soon_threadsafe(report, stage, done)

        return await asyncio.to_thread(self._images.build, flavour, from_thread)


def _check_memory(profile: Profile) -> None:
    total = total_memory() >> 20
    if profile.memory_mib > total:
        raise HostError(
            f"A VM of {profile.memory_mib} MiB does not fit on this host, which has {total} MiB of memory.",
            "Choose another profile, or change its memory_mib: `agentvm config show`.",
        )


@asynccontextmanager
async def _only_one(path: Path) -> AsyncIterator[None]:
    """Hold a file lock: supervisors with other state folders may share the cache and want the same snapshot.

    By asking again and again, since a thread that waits in flock cannot be cancelled.
    """
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(_LOCK_SECONDS)
            else:
                break
        yield


def remove_snapshots_of(cache: Path, image_digest: str) -> list[str]:
    """Remove the golden snapshots of an image and return their ids; for ``agentvm image rm``."""
    removed = []
    for folder in (cache / "golden").glob("*"):
        snapshot = Snapshot.load(folder)
        if snapshot is not None and snapshot.manifest.image == image_digest:
            shutil.rmtree(folder)
            removed.append(snapshot.id)
    return removed
