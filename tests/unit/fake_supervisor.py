"""A supervisor without VMs: the real HTTP API on the real socket; what it leases are guest agents on this host.

    python tests/unit/fake_supervisor.py        # folders from AGENTVM_*_DIR; prints "ready" once it accepts

It keeps one guest ready, so that a lease is granted at once, as the real one does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from aiohttp import web
from local_guest import LocalGuest, local_guest

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, Message, Progress


class FakeSupervisor:
    """Leases local guests.

    Args:
        paths: Where the socket is.
        progress: Progress events before each grant.
        refuse: End every lease with this instead.
    """

    def __init__(self, paths: Paths, *, progress: list[Progress] | None = None, refuse: Ended | None = None) -> None:
        self.paths = paths
        self.progress = progress or []
        self.refuse = refuse
        self.leases = 0
        self._spare: asyncio.Task[tuple[LocalGuest, AsyncExitStack]] | None = None
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> FakeSupervisor:
        app = web.Application()
        app.add_routes([web.get("/v1/status", self._status), web.post("/v1/leases", self._lease)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        self.paths.runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        await web.UnixSite(self._runner, str(self.paths.socket)).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner
        await self._runner.cleanup()
        if self._spare:
            _, stack = await self._spare
            await stack.aclose()

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response({"fake": True, "leases": self.leases})

    async def _lease(self, request: web.Request) -> web.StreamResponse:
        wanted = LeaseRequest.model_validate_json(await request.read())
        response = web.StreamResponse()
        response.content_type = "application/x-ndjson"
        response.enable_chunked_encoding()
        await response.prepare(request)
        self.leases += 1
        number = self.leases
        for step in self.progress:
            await _say(response, step)
        if self.refuse:
            await _say(response, self.refuse)
            return response
        guest, stack = await self._take()
        async with stack:
            await guest.identify(number)
            await _say(response, _granted(guest, number, wanted))
            await _ended(guest.pid)
            await _say(response, Ended(code="vm_ended", reason="The virtual machine powered off."))
        return response

    async def _take(self) -> tuple[LocalGuest, AsyncExitStack]:
        spare, self._spare = self._spare or asyncio.create_task(_start()), asyncio.create_task(_start())
        return await asyncio.shield(spare)


async def _start() -> tuple[LocalGuest, AsyncExitStack]:
    stack = AsyncExitStack()
    return await stack.enter_async_context(local_guest(identify=False)), stack


def _granted(guest: LocalGuest, number: int, wanted: LeaseRequest) -> Granted:
    return Granted(
        vm=f"local-{number}",
        epoch=guest.epoch,
        key=guest.key.hex(),
        link=guest.endpoint,
        image="0" * 64,
        flavour=wanted.image or "minimal",
        profile=wanted.profile or "standard",
        vcpus=1,
        memory_mib=512,
        disk_gb=4,
        accelerator="tcg",
        pid=guest.pid,
        acquire_ms=1.0,
    )


async def _say(response: web.StreamResponse, event: Message) -> None:
    await response.write(event.model_dump_json().encode() + b"\n")


async def _ended(pid: int) -> None:
    """Return once a process is gone."""
    descriptor = os.pidfd_open(pid)
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-fd", type=int, default=1)
    arguments = parser.parse_args()
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    async with FakeSupervisor(Paths.of_user()):
        os.write(arguments.ready_fd, b"1")
        with suppress(asyncio.CancelledError):
            await over.wait()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    asyncio.run(_main())
