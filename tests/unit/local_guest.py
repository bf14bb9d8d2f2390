"""The real guest agent with the real ipykernel as an ordinary process of this host, for tests without a VM.

async with local_guest() as guest:
    link = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch)
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from agentvm_kernel.errors import LinkError
from agentvm_kernel.link.control import ControlChannel
from agentvm_kernel.link.endpoint import UnixEndpoint

ROOT = Path(__file__).resolve().parents[2]
AGENT = ROOT / "guest" / "agentvm_guest" / "agent.py"


PARSED_VARIABLE = "AGENTVM_TEST_PARSED"
"""Environment variable: where what ipykernels parse of their libraries for completion is kept for the next guests.

To parse it takes more than half of a guest's start.
"""


@dataclass
class LocalGuest:
    """A running agent that has an identity.

    Attributes:
        folder: Its folder.
        pid: The agent's process id.
        control: The open control channel.
        control_path: The control port's socket.
        endpoint: Where to dial the link.
        key: The link's key.
        epoch: The epoch.
        events: Events that came on the control channel.
    """

    folder: Path
    pid: int
    control: ControlChannel
    control_path: Path
    endpoint: UnixEndpoint
    key: bytes
    epoch: int
    events: list[dict[str, object]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def identify(self, epoch: int, *, timeout: float = 30, **fields: object) -> dict[str, object]:
        """Give the agent a new key and this epoch, as after a clone."""
        self.key, self.epoch = secrets.token_bytes(32), epoch
        return await self.control.request("identity", timeout=timeout, **identity_fields(self.key, epoch) | fields)

    async def event(self, name: str, *, timeout: float = 30) -> dict[str, object]:
        """Return the next event of that name, which is taken out."""
        async with asyncio.timeout(timeout):
            while True:
                for event in self.events:
                    if event["event"] == name:
                        self.events.remove(event)
                        return event
                self.arrived.clear()
                await self.arrived.wait()


def identity_fields(key: bytes, epoch: int) -> dict[str, object]:
    return {
        "epoch": epoch,
        "key": key.hex(),
        "time_ns": time.time_ns(),
        "entropy": secrets.token_bytes(64).hex(),
        "hostname": f"vm-{epoch}",
        "machine_id": secrets.token_hex(16),
    }


@asynccontextmanager
async def local_guest(
    *arguments: str, python: str = sys.executable, identify: bool = True
) -> AsyncIterator[LocalGuest]:
    with tempfile.TemporaryDirectory(prefix="agentvm-") as name:
        folder = Path(name)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(AGENT),
            "--unprivileged",
            name,
            "--python",
            python,
            "--folder",
            str(folder / "kernel"),
            *arguments,
            env=_environment(folder),
        )
        try:
            async with _connected(folder, process) as guest:
                await guest.control.request("ready", timeout=120)
                _keep_parsed(folder / ".cache")
                if identify:
                    await guest.identify(1)
                yield guest
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()


def _environment(folder: Path) -> dict[str, str]:
    # What its programs leave in the folder for temporary files goes with it.
    (temporary := folder / "tmp").mkdir()
    environment = {**os.environ, "IPYTHONDIR": str(folder / "ipython"), "HOME": str(folder), "TMPDIR": str(temporary)}
    if (parsed := _parsed()) is not None and parsed.is_dir():
        shutil.copytree(parsed, folder / ".cache")
    environment.pop("XDG_CACHE_HOME", None)
    # As in the VM, `python` is the one that has the packages.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # With it ipykernel leaves the process's own stdout alone.
    environment.pop("PYTEST_CURRENT_TEST", None)
    return environment


def _parsed() -> Path | None:
    place = os.environ.get(PARSED_VARIABLE)
    return Path(place, "cache") if place else None


def _keep_parsed(cache: Path) -> None:
    """Keep what the first guest has parsed; each of the others has a copy of its own."""
    parsed = _parsed()
    if parsed is None or parsed.is_dir() or not cache.is_dir():
        return
    copy = shutil.copytree(cache, Path(tempfile.mkdtemp(dir=parsed.parent), "cache"))
    with suppress(OSError):  # another one was first
        copy.rename(parsed)


@asynccontextmanager
async def _connected(folder: Path, process: asyncio.subprocess.Process) -> AsyncIterator[LocalGuest]:
    events: list[dict[str, object]] = []
    arrived = asyncio.Event()

    def on_event(event: dict[str, object]) -> None:
        events.append(event)
        arrived.set()

    path = folder / "control.sock"
    control = await _dial(path, process, on_event)
    endpoint = UnixEndpoint(str(folder / "link.sock"))
    guest = LocalGuest(folder, process.pid, control, path, endpoint, b"", 0, events, arrived)
    try:
        yield guest
    finally:
        await control.close()


async def _dial(path: Path, process: asyncio.subprocess.Process, on_event) -> ControlChannel:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(60):
        while True:
            try:
                return await ControlChannel.connect(path, on_event)
            except LinkError:
                if process.returncode is not None:
                    raise
                await asyncio.sleep(0.02)
