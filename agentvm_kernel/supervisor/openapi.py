"""Describes the API as an OpenAPI 3.1 document, from its routes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from agentvm_kernel import __version__
from agentvm_kernel.supervisor.messages import API_VERSION
from agentvm_kernel.supervisor.route import PARAMETERS, QUERY, Route, status_of
from agentvm_kernel.supervisor.status import Refusal

_JSON: Final = "application/json"
_EVENTS: Final = "application/x-ndjson"
_ALWAYS: Final = {
    "forbidden": "The supervisor belongs to another user.",
    "internal": "Something failed; the supervisor's log says more.",
}
_WITH_BODY: Final = {
    "request": "What was sent is not valid.",
    "too_large": "What was sent is too large.",
}

_Key = tuple[str, str]
_Mode = Literal["validation", "serialization"]
_Object = dict[str, Any]


def describe(routes: Sequence[Route]) -> _Object:
    """Return the document.

    Args:
        routes: All of the API.
    """
    named = [*_models(routes), (("", "refusal"), "serialization", TypeAdapter(Refusal))]
    schemas, definitions = TypeAdapter.json_schemas(named, ref_template="#/components/schemas/{model}")
    of = {key: schema for (key, _), schema in schemas.items()}
    paths: dict[str, _Object] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AgentVM Kernel: the supervisor",
            "version": f"{API_VERSION}.{__version__}",
            "description": "HTTP over the Unix socket run/supervisor.sock in the state folder of its user.",
        },
        "servers": [{"url": "http://supervisor", "description": "Any host name: the socket is what counts."}],
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _models(routes: Iterable[Route]) -> Iterable[tuple[_Key, _Mode, TypeAdapter[Any]]]:
    for route in routes:
        if route.request is not None:
            yield (route.handler.__name__, "request"), "validation", TypeAdapter(route.request)
        if route.events is not None:
            yield (route.handler.__name__, "answer"), "serialization", route.events
        elif route.answer is not None:
            yield (route.handler.__name__, "answer"), "serialization", TypeAdapter(route.answer)


def _operation(route: Route, schemas: dict[_Key, _Object]) -> _Object:
    name = route.handler.__name__
    operation: _Object = {"operationId": name, "summary": route.summary}
    if route.parameters or route.query:
        operation["parameters"] = [
            *(_parameter(name, "path", *PARAMETERS[name]) for name in route.parameters),
            *(_parameter(name, "query", *QUERY[name]) for name in route.query),
        ]
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schemas[name, "request"]}}}
    schema = schemas.get((name, "answer"), {"type": "object", "maxProperties": 0})
    said = "Events, one JSON object a line; empty lines keep the connection alive." if route.events else "Done."
    operation["responses"] = {
        "200": {"description": said, "content": {_EVENTS if route.events else _JSON: {"schema": schema}}},
        **_refusals(route, schemas["", "refusal"]),
    }
    return operation


def _parameter(name: str, place: Literal["path", "query"], pattern: str, meaning: str) -> _Object:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": meaning,
        "schema": {"type": "string", "pattern": f"^{pattern}$"},
    }


def _refusals(route: Route, schema: _Object) -> _Object:
    """Return the responses with errors, by status."""
    meanings = _ALWAYS | (_WITH_BODY if route.request else {})
    meanings |= {error.code: (error.__doc__ or "").partition("\n")[0] for error in route.refusals}
    by_status: dict[int, list[str]] = {}
    for code, meaning in meanings.items():
        by_status.setdefault(status_of(code), []).append(f"`{code}`: {meaning}")
    return {
        str(status): {
            "description": f"{HTTPStatus(status).phrase}. {' '.join(by_status[status])}",
            "content": {_JSON: {"schema": schema}},
        }
        for status in sorted(by_status)
    }
