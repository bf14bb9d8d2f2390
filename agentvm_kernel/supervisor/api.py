"""The supervisor's API: HTTP over a Unix socket that only its user may open.

A lease is an open response: it carries progress, the grant and the VM's end, and closing it (a killed process does)
releases the VM.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager

from aiohttp import web
from pydantic import ValidationError

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.forks import Forks, rest
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.messages import (
    Ended,
    ForkRequest,
    LeaseRequest,
    Message,
    RollbackRequest,
    SnapshotRequest,
)

_log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 15.0
_MAX_BODY = 64 * 1024

_supervisor = web.AppKey("supervisor", Supervisor)
_stop = web.AppKey("stop", asyncio.Event)


def make_app(supervisor: Supervisor, stop: asyncio.Event) -> web.Application:
    """Return the application.

    Args:
        supervisor: What it serves.
        stop: Set by a request to shut down.
    """
    app = web.Application(middlewares=[_only_this_user, _errors_as_json], client_max_size=_MAX_BODY)
    app[_supervisor] = supervisor
    app[_stop] = stop
    lease = "/v1/leases/{lease}"
    app.add_routes(
        [
            web.get("/v1/status", _status),
            web.post("/v1/shutdown", _shutdown),
            web.post("/v1/leases", _lease),
            web.get(f"{lease}/snapshots", _snapshots),
            web.post(f"{lease}/snapshots", _snapshot),
            web.post(f"{lease}/rollback/plan", _plan),
            web.post(f"{lease}/rollback", _rollback),
            web.post(f"{lease}/forks", _forks),
            web.post(f"{lease}/forks/{{fork:[0-9]+}}/rest", _rest),
            web.delete(f"{lease}/forks/{{fork:[0-9]+}}", _end_fork),
            web.post(f"{lease}/forks/{{fork:[0-9]+}}/adopt", _adopt),
        ]
    )
    return app


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket (``unix(7)``, SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _refusal(error: AgentVMError, status: int) -> web.Response:
    return web.json_response({"code": error.code, "message": error.message, "hint": error.hint}, status=status)


@web.middleware
async def _only_this_user(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    connection = request.transport.get_extra_info("socket") if request.transport else None
    if connection is None or peer_uid(connection) != os.geteuid():
        raise web.HTTPForbidden(text="This supervisor belongs to another user.")
    return await handler(request)


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except AgentVMError as error:
        return _refusal(error, 500)
    except ValidationError as error:
        return web.json_response({"code": "request", "message": str(error), "hint": ""}, status=400)


async def _status(request: web.Request) -> web.Response:
    return web.json_response(request.app[_supervisor].status())


async def _shutdown(request: web.Request) -> web.Response:
    request.app[_stop].set()
    return web.json_response({})


def _lease_of(request: web.Request) -> Lease:
    return request.app[_supervisor].lease(request.match_info["lease"])


async def _snapshots(request: web.Request) -> web.Response:
    return _answer(await request.app[_supervisor].history.tree(_lease_of(request)))


async def _snapshot(request: web.Request) -> web.Response:
    wanted = SnapshotRequest.model_validate_json(await request.read())
    return _answer(await request.app[_supervisor].history.snapshot(_lease_of(request), wanted))


async def _plan(request: web.Request) -> web.Response:
    wanted = RollbackRequest.model_validate_json(await request.read())
    return _answer(await request.app[_supervisor].history.plan(_lease_of(request), wanted.to))


async def _rollback(request: web.Request) -> web.Response:
    wanted = RollbackRequest.model_validate_json(await request.read())
    # A client that goes away must not stop it half-way.
    return _answer(await asyncio.shield(request.app[_supervisor].rollback(_lease_of(request), wanted.to)))


async def _adopt(request: web.Request) -> web.Response:
    number = int(request.match_info["fork"])
    return _answer(await asyncio.shield(request.app[_supervisor].adopt(_lease_of(request), number)))


async def _rest(request: web.Request) -> web.Response:
    await rest(_lease_of(request), int(request.match_info["fork"]))
    return web.json_response({})


async def _end_fork(request: web.Request) -> web.Response:
    request.app[_supervisor].end_fork(_lease_of(request), int(request.match_info["fork"]))
    return web.json_response({})


def _answer(message: Message) -> web.Response:
    return web.Response(text=message.model_dump_json(), content_type="application/json")


async def _forks(request: web.Request) -> web.StreamResponse:
    wanted = ForkRequest.model_validate_json(await request.read())
    supervisor, lease = request.app[_supervisor], _lease_of(request)
    return await _stream(request, lambda emit: Forks(supervisor, lease, wanted, emit).serve())


async def _lease(request: web.Request) -> web.StreamResponse:
    wanted = LeaseRequest.model_validate_json(await request.read())
    return await _stream(request, lambda emit: _serve_lease(request.app[_supervisor], wanted, emit))


async def _stream(
    request: web.Request, serve: Callable[[Callable[[Message], None]], Coroutine[None, None, None]]
) -> web.StreamResponse:
    """Answer with the events of some work, a line each; the work ends when the client goes away."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    events: asyncio.Queue[Message] = asyncio.Queue()
    async with _running(serve(events.put_nowait)) as task:
        while not (task.done() and events.empty()):
            await response.write(await _next_line(events, task))
    return response


async def _next_line(events: asyncio.Queue[Message], task: asyncio.Task[None]) -> bytes:
    """Return the next event as a line, or an empty line to keep the connection alive."""
    getter = asyncio.ensure_future(events.get())
    try:
        await asyncio.wait({getter, task}, timeout=KEEPALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if getter.done():
            return getter.result().model_dump_json().encode() + b"\n"
    finally:
        getter.cancel()
    if task.done():
        task.result()
    return b"\n"


async def _serve_lease(supervisor: Supervisor, wanted: LeaseRequest, emit: Callable[[Message], None]) -> None:
    lease: Lease | None = None
    try:
        lease = await supervisor.acquire(wanted, emit)
        emit(lease.granted)
        emit(await lease.ended())
    except AgentVMError as error:
        _log.warning("no VM for %r: %s", wanted.owner, error)
        emit(Ended(code=error.code, reason=error.message, hint=error.hint))
    finally:
        if lease is not None:
            await asyncio.shield(supervisor.release(lease))


@asynccontextmanager
async def _running(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
