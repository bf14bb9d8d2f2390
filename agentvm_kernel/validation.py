"""Says what is wrong with values from outside, and what would be valid, in one line each."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from agentvm_kernel.errors import RequestError

Path = tuple[str | int, ...]
_Schema = dict[str, Any]

_Model = TypeVar("_Model", bound=BaseModel)

_MOST: Final = 3
"""Mistakes of one request that are told."""

_LONGEST: Final = 60
"""Characters shown of what was given."""

_KEY: Final = "[key]"
"""How pydantic says that it means a key, not its value."""

_TYPES: Final = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: Where, from the outermost table inwards.
        text: What is wrong and what would be valid; begins with the path's dotted form.
    """

    path: Path
    text: str


def checked(model: type[_Model], **values: object) -> _Model:
    """Return a model's instance with these values.

    Args:
        model: The model.
        values: Its fields, from a user.

    Raises:
        RequestError: they are not valid.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, model) from error


def parsed(model: type[_Model], text: bytes) -> _Model:
    """Return a model's instance from JSON.

    Args:
        model: The model.
        text: The JSON, from anywhere.

    Raises:
        RequestError: it is not valid.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise _refusal(error, model) from error


def _refusal(error: ValidationError, model: type[BaseModel]) -> RequestError:
    found = [problem.text for problem in problems(error, model)]
    return RequestError(" ".join(found[:_MOST]), "Correct that and ask again.")


def problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return all that is wrong.

    Args:
        error: What validation raised.
        model: What the value was to be.
    """
    schema = model.model_json_schema()
    return [
        Problem(one["loc"], _text(one["loc"], one["type"], one["msg"], one["input"], schema)) for one in error.errors()
    ]


def valid(schema: _Schema) -> str:
    """Say in words what a JSON schema allows; empty if it does not say it in a way that this knows.

    Args:
        schema: The schema of one value; without references.
    """
    if options := [one for one in schema.get("anyOf", []) if one.get("type") != "null"]:
        return " or ".join(filter(None, map(valid, options)))
    if "enum" in schema:
        return _listed([f'"{one}"' for one in schema["enum"]])
    if "const" in schema:
        return f'"{schema["const"]}"'
    words = _TYPES.get(schema.get("type", ""), "")
    if schema.get("type") == "string":
        longest = schema.get("maxLength")
        words += f" of at most {longest} characters" if longest else ""
        return words + (f" that matches {schema['pattern']}" if "pattern" in schema else "")
    return f"{words} {_range(schema)}".rstrip()


def field(schema: _Schema, path: Path) -> _Schema:
    """Return the schema of a value inside of another.

    Args:
        schema: A model's whole schema.
        path: Where the value is.

    Returns:
        Its schema, with its references followed; empty if there is none of that name.
    """
    found = _followed(schema, schema)
    for part in path:
        inner = found.get("items", {}) if isinstance(part, int) else found.get("properties", {}).get(part)
        if inner is None:
            extra = found.get("additionalProperties")
            inner = extra if isinstance(extra, dict) else next(iter(found.get("patternProperties", {}).values()), {})
        found = _followed(inner, schema)
    return found


def _followed(found: _Schema, schema: _Schema) -> _Schema:
    while "$ref" in found:
        found = schema["$defs"][found["$ref"].rpartition("/")[2]]
    return found


def _text(path: Path, kind: str, message: str, value: object, schema: _Schema) -> str:
    name = ".".join(map(str, path)) or "What was sent"
    if kind == "json_invalid":
        return f"This is no JSON: {message.partition(': ')[2] or message}."
    if kind == "extra_forbidden":
        return _unknown(path, field(schema, path[:-1]).get("properties", {}))
    if path[-1:] == (_KEY,):
        patterns = " or ".join(field(schema, path[:-2]).get("patternProperties", {}))
        return f"{'.'.join(map(str, path[:-1]))} has a name that is not valid: it must match {patterns}."
    wanted = valid(field(schema, path))
    if kind == "missing":
        return f"{name} is missing; it must be {wanted}." if wanted else f"{name} is missing."
    if not wanted or kind == "value_error":
        return f"{name}: {message.removeprefix('Value error, ').rstrip('.')}."
    return f"{name} is {_shown(value)}, but must be {wanted}."


def _unknown(path: Path, known: _Schema) -> str:
    name = str(path[-1])
    where = f" in {'.'.join(map(str, path[:-1]))}" if len(path) > 1 else ""
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"Did you mean {near[0]}? " if near else ""
    return f"There is no {name[:_LONGEST]!r}{where}. {guess}Valid are: {', '.join(sorted(known))}."


def _range(schema: _Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}" if max(low, high) < 1e6 else f"from {low} to {high}"
    parts = [
        f"of at least {low}" if low is not None else "",
        f"above {above}" if above is not None else "",
        f"of at most {high}" if high is not None else "",
        f"below {below}" if below is not None else "",
    ]
    return " and ".join(filter(None, parts))


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = ascii(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
