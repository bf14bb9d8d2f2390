"""Writes the HTTP reference into docs/http.md while MkDocs builds it, from the description that is served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from agentvm_kernel.supervisor.openapi import describe
from agentvm_kernel.supervisor.routes import ROUTES
from agentvm_kernel.validation import valid

_MARK: Final = "<!-- routes -->"
_FIELD: Final = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_CODE: Final = re.compile(r"`(\w+)`: ")
_OF_ALL: Final = frozenset({"forbidden", "internal"})
_REFERENCE: Final = "#/components/schemas/"

_Object = dict[str, Any]


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the reference in the place of its mark; MkDocs calls this for each page.

    Args:
        markdown: The page.
    """
    return markdown.replace(_MARK, reference()) if _MARK in markdown else markdown


def reference() -> str:
    """Return every route with what goes in and out, and then every kind of message."""
    described = describe(ROUTES)
    lines = ["## Routes", ""]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            lines += [f"### {method.upper()} {path}", "", *_operation(operation)]
    lines += ["## Messages", ""]
    for name, schema in sorted(described["components"]["schemas"].items()):
        lines += [f"### {name}", "", *_message(schema)]
    return "\n".join(lines)


def _operation(operation: _Object) -> Iterator[str]:
    yield from (operation["summary"], "")
    for one in operation.get("parameters", []):
        place = "" if one["in"] == "path" else "?"
        yield f"- `{place}{one['name']}`: {one['description']}"
    if sent := operation.get("requestBody"):
        (content,) = sent["content"].values()
        yield f"- Sent: {_kind(content['schema'])}"
    for status, response in operation["responses"].items():
        ((media, content),) = response["content"].items()
        if status == "200":
            stream = "a stream of " if media.endswith("ndjson") else ""
            yield f"- Answered: {stream}{_kind(content['schema'])}"
        else:
            codes = [one for one in _CODE.findall(response["description"]) if one not in _OF_ALL]
            if codes:
                yield f"- {status}: {', '.join(f'[`{code}`](troubleshooting.md#{code})' for code in codes)}"
    yield ""


def _message(schema: _Object) -> Iterator[str]:
    about, _, attributes = schema.get("description", "").partition("Attributes:\n")
    yield from (_flowing(about), "")
    if "enum" in schema:
        yield from (f"One of {', '.join(f'`{one}`' for one in schema['enum'])}.", "")
    if fields := schema.get("properties"):
        meanings = dict(_FIELD.findall(attributes))
        yield from ("| field | is | default | meaning |", "| --- | --- | --- | --- |")
        for name, one in fields.items():
            given = f"`{json.dumps(one['default'])}`" if "default" in one and "$ref" not in one else ""
            yield f"| `{name}` | {_kind(one)} | {_cell(given)} | {_cell(_flowing(meanings.get(name, '')))} |"
        yield ""


def _kind(schema: _Object) -> str:
    """Say what may stand there, with references as links."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REFERENCE)
        return f"[{name}](#{name.lower()})"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_kind(one) for one in options)
    for key, what in (("items", "a list"), ("additionalProperties", "a table")):
        if isinstance(inner := schema.get(key), dict):
            return f"{what}: {_kind(inner)}"
    if schema.get("type") == "null":
        return "nothing"
    if schema.get("maxProperties") == 0:
        return "nothing but that it is done"
    return _cell(re.sub(r"\^\S+\$", lambda found: f"`{found[0]}`", valid(schema)))


def _flowing(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
