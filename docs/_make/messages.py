"""Writes the messages of all errors into docs/troubleshooting.md while MkDocs builds it, from the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final

import agentvm_kernel
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.supervisor.fork_messages import ForkEnded
from agentvm_kernel.supervisor.messages import Ended
from agentvm_kernel.supervisor.route import STATUS
from agentvm_kernel.supervisor.status import Refusal

_MARK: Final = re.compile(r"<!-- messages: (\w+) -->")
_PACKAGE: Final = Path(agentvm_kernel.__file__).parent
_NOT_FOR_USERS: Final = {"bench", "widgets"}
_SAID: Final = ("reason", "message")


@dataclass(frozen=True, order=True)
class Message:
    """One message of an error.

    Attributes:
        code: The error's code.
        text: What it says, with … where something is filled in.
        hint: The remedy, likewise; empty for none, or for one that is made elsewhere.
    """

    code: str
    text: str
    hint: str = ""


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the messages in the places of their marks; MkDocs calls this for each page.

    Args:
        markdown: The page.
    """
    return _MARK.sub(lambda found: table(found[1]), markdown)


def table(code: str) -> str:
    """Return the messages that an error of this code can have, and the names of its classes.

    Args:
        code: The error's code.
    """
    rows = [f"| {_cell(one.text)} | {_cell(one.hint)} |" for one in messages() if one.code == code]
    shown = "" if not (names := classes(code)) else f"Class: {', '.join(f'`{name}`' for name in names)}.\n\n"
    return shown + ("\n".join(["| message | hint |", "| --- | --- |", *rows]) if rows else "")


@cache
def messages() -> list[Message]:
    """Return all messages that stand in the code, in order."""
    return sorted({one for path in sorted(_PACKAGE.rglob("*.py")) for one in _of_module(path)})


@cache
def codes() -> frozenset[str]:
    """Return the codes of all errors that there are."""
    return frozenset({one.code for one in _classes()} | {one.code for one in messages()} | set(STATUS))


def classes(code: str) -> list[str]:
    """Return the names of the classes of errors that have a code.

    Args:
        code: The code.
    """
    return [one.__name__ for one in _classes() if one.code == code]


def _classes() -> list[type[AgentVMError]]:
    messages()  # has all modules loaded
    found = [AgentVMError]
    for one in found:  # grows meanwhile
        found += [below for below in one.__subclasses__() if below.__module__.startswith("agentvm_kernel.")]
    return found


def _of_module(path: Path) -> Iterator[Message]:
    parts = path.relative_to(_PACKAGE).with_suffix("").parts
    if parts[0] in _NOT_FOR_USERS or parts[-1] == "__main__":
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = vars(import_module(".".join(("agentvm_kernel", *parts)).removesuffix(".__init__")))
    for call in calls:
        kind = names.get(call.func.id) if isinstance(call.func, ast.Name) else None
        if isinstance(kind, type):
            yield from _of_call(kind, call)


def _of_call(kind: type, call: ast.Call) -> Iterator[Message]:
    by_name = {one.arg: one.value for one in call.keywords if one.arg}
    if issubclass(kind, AgentVMError):
        code, said, hint = kind.code, call.args[:1], (*call.args[1:2], *filter(None, [by_name.get("hint")]))
    elif kind in {Ended, ForkEnded, Refusal} and isinstance(given := by_name.get("code"), ast.Constant):
        code, said = str(given.value), [by_name[name] for name in _SAID if name in by_name]
        hint = tuple(filter(None, [by_name.get("hint")]))
    else:
        return
    for text in _texts(said[0]) if said else ():
        if re.search(r"\w{3}", text):
            yield Message(code, text, " / ".join(_texts(hint[0])) if hint else "")


def _texts(node: ast.expr) -> list[str]:
    """Return what an expression can say, as far as that stands in it."""
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.JoinedStr(values=values):
            parts = [one.value if isinstance(one, ast.Constant) else "…" for one in values]
            return [re.sub("…+", "…", "".join(map(str, parts)))]
        case ast.IfExp(body=body, orelse=other):
            return [one for one in (*_texts(body), *_texts(other)) if one]
        case _:
            return []


def _cell(text: str) -> str:
    """Return a text so that Markdown shows it as it is, but for code in backticks."""
    pieces = " ".join(text.split()).replace("|", "\\|").split("`")
    pieces[::2] = [re.sub(r"([*_<\[])", r"\\\1", one) for one in pieces[::2]]
    return "`".join(pieces)
