"""The supervisor's API: HTTP over a Unix socket that only its user may open.

A lease is an open response: it carries progress, the grant and the VM's end, and closing it (a killed process does)
releases the VM.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from aiohttp import web
from pydantic import BaseModel

from agentvm_kernel.errors import AgentVMError, host_error
from agentvm_kernel.supervisor import exposition
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.emit import Emit
from agentvm_kernel.supervisor.messages import Message
from agentvm_kernel.supervisor.route import PARAMETERS, Call, Route, status_of
from agentvm_kernel.supervisor.routes import ROUTES
from agentvm_kernel.supervisor.status import Refusal
from agentvm_kernel.validation import parsed

_log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 15.0
_MAX_BODY: Final = 64 * 1024
_HTTP_CODES: Final = {403: "forbidden", 404: "no_route", 405: "method", 413: "too_large"}

_supervisor = web.AppKey("supervisor", Supervisor)
_stop = web.AppKey("stop", asyncio.Event)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(supervisor: Supervisor, stop: asyncio.Event) -> web.Application:
    """Return the application.

    Args:
        supervisor: What it serves.
        stop: Set by a request to shut down.
    """
    app = web.Application(middlewares=[_errors_as_json, _only_this_user], client_max_size=_MAX_BODY)
    app[_supervisor] = supervisor
    app[_stop] = stop
    for route in ROUTES:
        app.router.add_route(route.method, _path(route), partial(_serve, route))
    app.router.add_get(exposition.PATH, _expose)
    return app


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket (``unix(7)``, SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _path(route: Route) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: f"{{{match[1]}:{PARAMETERS[match[1]][0]}}}", route.path)


def _refused(code: str, message: str, hint: str = "", *, status: int = 0) -> web.Response:
    text = Refusal(code=code[:64], message=message, hint=hint).model_dump_json()
    return web.Response(text=text, status=status or status_of(code), content_type="application/json")


@web.middleware
async def _only_this_user(request: web.Request, handler: _Handler) -> web.StreamResponse:
    connection = request.transport.get_extra_info("socket") if request.transport else None
    if connection is None or peer_uid(connection) != os.geteuid():
        return _refused("forbidden", "This supervisor belongs to another user.", "Every user has one of their own.")
    return await handler(request)


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except AgentVMError as error:
        return _refused(error.code, " ".join(error.message.splitlines()), error.hint)
    except web.RequestPayloadError:
        return _refused("request", "What was sent is not encoded as it says.", "Send plain JSON.")
    except web.HTTPException as error:
        code = _HTTP_CODES.get(error.status, "request")
        answer = _refused(code, _said(error, request), "GET /v1/openapi.json lists what there is.", status=error.status)
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer


def _said(error: web.HTTPException, request: web.Request) -> str:
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return f"The request is longer than {_MAX_BODY} bytes."
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.method} is not possible here; {' or '.join(sorted(error.allowed_methods))} is."
    if isinstance(error, web.HTTPNotFound):
        return f"There is nothing at {request.path!a:.200}."
    return f"{error.reason}."


async def _serve(route: Route, request: web.Request) -> web.StreamResponse:
    call = Call(request.app[_supervisor], request.app[_stop], request.match_info, request.query)
    arguments: list[Message] = []
    if route.request is not None:
        arguments = [parsed(route.request, await request.read())]
    if route.events is not None:
        if "lease" in call.parameters:
            _ = call.lease  # while its absence can still be a status
        return await _stream(request, lambda emit: _run(route, call, *arguments, emit))
    try:
        answer = await route.handler(call, *arguments)
    except AgentVMError:
        raise
    except OSError as error:
        _log.exception("%s %s failed", request.method, request.path)
        raise host_error(error) from error
    except Exception:  # noqa: BLE001 - the outermost: whatever it is, the client is told, and the log has it
        _log.exception("%s %s failed", request.method, request.path)
        return _refused("internal", "The supervisor failed on this request.", "Its log says why.")
    text = answer.model_dump_json() if isinstance(answer, BaseModel) else json.dumps(answer or {})
    return web.Response(text=text, content_type="application/json")


async def _expose(request: web.Request) -> web.Response:
    """Answer with the metrics: no JSON, so that it is no route of the table."""
    return exposition.answer(request.app[_supervisor].metrics.exposition())


async def _run(route: Route, call: Call, *arguments: Message | Emit) -> None:
    await route.handler(call, *arguments)


async def _stream(request: web.Request, serve: Callable[[Emit], Coroutine[None, None, None]]) -> web.StreamResponse:
    """Answer with the events of some work, a line each; the work ends when the client goes away."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    emit = Emit()
    events = emit.events
    async with _running(serve(emit)) as task:
        while not (task.done() and events.empty()):
            line = await _next_line(events, task)
            await response.write(line)
            if line.strip():
                events.task_done()
    return response


async def _next_line(events: asyncio.Queue[BaseModel], task: asyncio.Task[None]) -> bytes:
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


@asynccontextmanager
async def _running(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
