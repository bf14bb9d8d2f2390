"""Where a benchmark runs: a supervisor of its own in a temporary folder, with the user's images."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import subprocess  # nosec B404 - runs this package's own supervisor
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import ApiError, SupervisorError
from agentvm_kernel.profiles import Profile
from agentvm_kernel.settings import Pool, Settings
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, Progress
from agentvm_kernel.supervisor.operator_messages import PoolInfo

PROFILE = "bench"
DEFAULT_PROFILE = Profile(vcpus=1, memory_mib=512, disk_gb=4)
Say = Callable[[str, float | None], None]

_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.02
# An abandoned supervisor leaves by itself after this.
_IDLE_SECONDS = 300.0


@dataclass(frozen=True)
class Wanted:
    """What to measure with.

    Attributes:
        image: Flavour of the image.
        profile: A profile's name; ``bench`` is 1 vCPU and 512 MiB.
        repeat: How many samples to take of what is quick; slower things get fewer.
        vms: How many VMs to measure, where that can be chosen; 0 for the usual number.
    """

    image: str = "minimal"
    profile: str = PROFILE
    repeat: int = 0
    vms: int = 0


@dataclass(frozen=True)
class Bed:
    """A running supervisor.

    Attributes:
        paths: Its folders.
        settings: Its settings.
        pid: Its process.
    """

    paths: Paths
    settings: Settings
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """Environment for kernel processes that are to use it."""
        return environment_of(self.paths)

    async def filled(self) -> None:
        """Return when the pool is full: as long as something is being started, nothing else can be measured."""
        async with SupervisorClient(self.paths, start=False) as client:
            while not is_full(await client.pool()):  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(_POLL_SECONDS)

    async def prepare(self, say: Say) -> None:
        """Lease a VM once, so that image and golden snapshot are there."""
        async with SupervisorClient(self.paths, start=False) as client, client.lease(LeaseRequest()) as lease:
            async for event in lease:
                if isinstance(event, Progress):
                    say(event.stage, event.done)
                elif isinstance(event, Granted):
                    return
                elif isinstance(event, Ended):
                    raise ApiError(event.code, event.reason, event.hint)


def is_full(pool: PoolInfo) -> bool:
    """Whether a supervisor has all in stock that it wants."""
    stocks = pool.stocks
    return bool(stocks) and all(one.warm == one.warm_wanted and one.blanks == one.blanks_wanted for one in stocks)


def environment_of(paths: Paths) -> dict[str, str]:
    """Return the environment in which ``Paths.of_user`` yields these folders and no other setting interferes."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("AGENTVM_")}
    return ours | paths.environment


@contextmanager
def temporary_paths() -> Iterator[Paths]:
    """Provide folders for a supervisor: all temporary but the user's cache of images and golden snapshots."""
    # Sockets lie below: the path has to be short, whatever TMPDIR says.
    folder = Path(tempfile.mkdtemp(prefix="avmb-", dir="/tmp"))  # nosec B108 - mkdtemp makes it private
    try:
        # Root's QEMUs run as another user, who has to pass through.
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        yield Paths(Paths.of_user().cache, folder / "s", folder / "s" / "run", folder / "config.toml")
    finally:
        shutil.rmtree(folder)


@cache
def libvirt_root() -> Path:
    """Return the folder of libvirt's embedded driver for this process, which can use only one in its life."""
    folder = Path(tempfile.mkdtemp(prefix="avmb-", dir="/tmp"))  # nosec B108 - mkdtemp makes it private
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    atexit.register(shutil.rmtree, folder)
    return folder / "libvirt"


@contextmanager
def bed(wanted: Wanted, pool: Pool | None = None) -> Iterator[Bed]:
    """Run a supervisor that nobody else uses, and leave nothing of it behind.

    Args:
        wanted: Its image and profile become the defaults; everything else is as the user has configured it.
        pool: What it is to keep ready, instead of what the user has configured.
    """
    with temporary_paths() as paths:
        settings = bench_settings(load_settings(Paths.of_user()), wanted)
        settings = settings.model_copy(update={"pool": pool or settings.pool})
        paths.config.write_text(settings_toml(settings))
        paths.state.mkdir()
        with _supervisor(paths) as pid:
            yield Bed(paths, settings, pid)


def bench_settings(settings: Settings, wanted: Wanted) -> Settings:
    """Return the user's settings with what a benchmark has of its own.

    Raises:
        ConfigError: there is no profile of that name.
    """
    known = settings.model_copy(update={"profiles": {PROFILE: DEFAULT_PROFILE} | settings.profiles})
    _, profile = known.find_profile(wanted.profile)
    changes = {"image": wanted.image, "profile": PROFILE, "profiles": {PROFILE: profile}, "idle_exit": _IDLE_SECONDS}
    return Settings.model_validate(settings.model_copy(update=changes).model_dump())


def settings_toml(settings: Settings) -> str:
    """Write settings down; JSON's strings and numbers are TOML's."""
    values = settings.model_dump(exclude={"pool", "profiles"})
    tables = {key: values.pop(key) for key, value in list(values.items()) if isinstance(value, dict)}
    tables |= {"pool": settings.pool.model_dump(), f"profiles.{PROFILE}": settings.profiles[PROFILE].model_dump()}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None)]
    return "\n".join(lines) + "\n"


@contextmanager
def _supervisor(paths: Paths) -> Iterator[int]:
    receiver, sender = os.pipe()
    command = [sys.executable, "-P", "-m", "agentvm_kernel.supervisor", "--ready-fd", str(sender)]
    # A session of its own: Ctrl-C is for this process, which then ends the supervisor in its turn.
    process = subprocess.Popen(  # nosec B603
        command, env=environment_of(paths), pass_fds=(sender,), stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        os.close(sender)
        with os.fdopen(receiver, "rb") as ready:
            answer = ready.read()
        if answer != b"1":
            raise _refusal(answer)
        yield process.pid
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


def _refusal(answer: bytes) -> SupervisorError:
    try:
        error = json.loads(answer)
        return ApiError(str(error["code"]), str(error["message"]), str(error["hint"]))
    except (ValueError, KeyError, TypeError):
        return SupervisorError("The benchmark's supervisor did not start.")
