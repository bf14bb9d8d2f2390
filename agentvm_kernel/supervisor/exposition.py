"""The metrics over HTTP: on the supervisor's own socket always, on a port of the loopback interface if configured."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from agentvm_kernel.settings import parse_listen

_log = logging.getLogger(__name__)

PATH: Final = "/metrics"


def answer(text: bytes) -> web.Response:
    """Return metrics as Prometheus wants them.

    Args:
        text: The exposition.
    """
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


class Exposition:
    """The port of the loopback interface, where everybody on this host may look.

    Args:
        expose: Returns the metrics.
    """

    def __init__(self, expose: Callable[[], bytes]) -> None:
        self._expose = expose
        self._runner: web.AppRunner | None = None
        self._changing = asyncio.Lock()
        self._moving: asyncio.Task[None] | None = None

    async def listen(self, where: str) -> None:
        """Listen there, and nowhere else. Where that is not possible the log says so, and nothing listens.

        Args:
            where: As in the configuration; empty for nowhere.
        """
        async with self._changing:
            await self.close()
            if (found := parse_listen(where)) is not None:
                await self._listen(where, *found)

    def move(self, where: str) -> None:
        """Begin to listen there, and nowhere else, in the background; see `listen`."""
        self._moving = asyncio.create_task(self.listen(where), name="listen")

    async def settled(self) -> None:
        """Wait until what the last `move` began is done; for tests."""
        if self._moving is not None:
            await asyncio.wait([self._moving])

    async def _listen(self, where: str, address: str, port: int) -> None:
        app = web.Application()
        app.router.add_get(PATH, self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, address, port).start()
        except OSError as error:
            await runner.cleanup()
            _log.error("no metrics on %s: %s; see listen in [metrics] of the configuration", where, error.strerror)
            return
        self._runner = runner
        _log.info("metrics on http://%s%s", where, PATH)

    async def close(self) -> None:
        """Listen no more."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        # A page in a browser can have its own name lead here; its requests bear that name.
        if not _is_here(request.host):
            raise web.HTTPForbidden(text="Ask by the loopback interface's address.\n")
        return answer(self._expose())


def _is_here(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
