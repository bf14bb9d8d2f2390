"""Pages that are made of the code, or speak of it by name, say what the code says."""

from __future__ import annotations

import ast
import inspect
import logging
import re
import shlex
import textwrap
from functools import cache
from importlib import import_module
from pathlib import Path

import griffe
import http_reference
import messages
import pictures
import pytest
from documents import ROOT

import agentvm_kernel
from agentvm_kernel import Session
from agentvm_kernel.bench import Benchmark
from agentvm_kernel.cli import app
from agentvm_kernel.errors import NoSnapshotError
from agentvm_kernel.magics.call import UsageError
from agentvm_kernel.magics.registry import Registry
from agentvm_kernel.supervisor.routes import ROUTES
from agentvm_kernel.vm import full_disk
from agentvm_kernel.vm.libvirt_hypervisor import _STOPPED_REASONS

DOCS = ROOT / "docs"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
WITHOUT_CLASS = {"forbidden", "no_route", "method", "too_large"}
MADE_ELSEWHERE = {"network_policy", "forbidden_address"}
"""Their messages do not stand where such an error is made."""


@cache
def page(name: str) -> str:
    return (DOCS / name).read_text()


@cache
def entries() -> dict[str, str]:
    """What the troubleshooting says of each code."""
    parts = re.split(
        r"^### (.+)$", page("troubleshooting.md").partition("## Notes that are no errors")[0], flags=re.MULTILINE
    )
    assert len(set(parts[1::2])) == len(parts[1::2]), "a code stands there twice"
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_code_of_an_error_is_explained_and_no_other() -> None:
    assert set(entries()) == messages.codes()


@pytest.mark.parametrize("code", sorted(messages.codes()))
def test_an_entry_says_something_and_then_lists_all_messages(code: str) -> None:
    said, mark, rest = entries()[code].partition(f"<!-- messages: {code} -->")
    assert len(said.split()) > 5
    assert bool(mark) == (code not in WITHOUT_CLASS)
    assert "messages:" not in rest


def test_messages_are_found_where_they_are_made_with_what_is_filled_in_left_open() -> None:
    found = messages.messages()
    assert messages.Message("no_snapshot", "There is no snapshot ….") in {
        messages.Message(one.code, one.text) for one in found
    }
    assert messages.Message("killed", "The VM was ended by `agentvm vm kill`.") in found
    assert {one.code for one in found} | WITHOUT_CLASS | MADE_ELSEWHERE == messages.codes()
    assert messages.classes("usage") == [UsageError.__name__]
    assert NoSnapshotError.__name__ in messages.classes("no_snapshot")


@pytest.mark.parametrize("reason", [*_STOPPED_REASONS.values(), full_disk.REASON])
def test_an_end_of_qemu_is_explained_in_the_words_that_a_session_is_told(reason: str) -> None:
    assert f"| {reason[:1].upper()}{reason[1:]}. | " in entries()["vm_ended"]


def test_a_message_is_shown_as_it_is() -> None:
    text = messages.on_page_markdown("<!-- messages: name -->")
    assert r"\*.example.org" in text, "a star would be taken for emphasis"
    assert "`NameRefusedError`" in text


def test_the_http_reference_has_every_route_and_every_kind_of_message() -> None:
    text = http_reference.on_page_markdown(page("http.md"))
    for route in ROUTES:
        assert f"### {route.method} {route.path}\n\n{route.summary}" in text
    assert "<!--" not in text.partition("## Routes")[2]
    linked = set(re.findall(r"\(#(\w+)\)", text))
    assert linked <= {name.lower() for name in re.findall(r"^### (\w+)$", text, re.MULTILINE)}
    assert "| `cell_deadline` | a number of at least 1 | `300` | Seconds that a cell may run. |" in text


@pytest.mark.parametrize("name", ["security.md", "architecture.md", "secrets.md", "nat.md"])
def test_the_tests_that_a_page_names_are_there(name: str) -> None:
    for path, test in TEST.findall(page(name)):
        nodes = ast.walk(ast.parse((ROOT / path).read_text()))
        names = {one.name for one in nodes if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert test in names, f"{name} names {path}::{test}"


def test_every_promise_names_a_test() -> None:
    promises = page("security.md").partition("## Promises")[2].partition("## Five layers")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ") and not re.match(r"\| (what|---)", line)]
    assert len(rows) > 30
    assert [row for row in rows if not TEST.search(row.rpartition(" | ")[2])] == []


@pytest.mark.parametrize("name", sorted(pictures.PICTURES))
def test_a_picture_is_what_its_script_draws(name: str) -> None:
    assert (pictures.FOLDER / f"{name}.svg").read_text() == str(pictures.PICTURES[name]())
    assert f"(pictures/{name}.svg)" in page("architecture.md")


def test_no_picture_is_there_that_nobody_draws() -> None:
    assert {path.stem for path in pictures.FOLDER.iterdir()} == set(pictures.PICTURES)


UNTOLD = {"model_config", "event", "code"}
"""The first is pydantic's; an event says only which one it is, and codes have a page of their own."""

DOCUMENTED = re.findall(r"^::: (\S+)$", page("python.md"), re.MULTILINE)


def test_what_the_package_gives_is_in_the_reference() -> None:
    documented = {name.rpartition(".")[2] for name in DOCUMENTED}
    assert {name for name in agentvm_kernel.__all__ if not name.startswith("__")} <= documented


@pytest.mark.parametrize("name", DOCUMENTED)
def test_everything_in_the_reference_is_described(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    found = _loaded().modules_collection[name]
    if found.is_class:
        _check(found)
    else:
        assert found.is_module
        for one in found.classes.values():
            _check(one)
    assert caplog.text == ""


@cache
def _loaded() -> griffe.GriffeLoader:
    loader = griffe.GriffeLoader(search_paths=[ROOT], docstring_parser="google")
    loader.load("agentvm_kernel")
    return loader


def _check(cls: griffe.Class) -> None:
    """Assert that a class, its parameters or attributes, and its public methods are described."""
    described = _described(cls)
    assert described, f"{cls.path} has no docstring"
    public = [one for name, one in cls.members.items() if not name.startswith("_") and name not in UNTOLD]
    parameters = cls.members["__init__"].parameters if "__init__" in cls.members else ()
    for wanted in {one.name for one in public if not one.is_function} | {one.name for one in parameters} - {"self"}:
        assert wanted in described, f"{cls.path} does not say what {wanted} is"
    for method in public:
        if method.is_function:
            said = _described(method) | set(re.findall(r"``(\w+)``", cls.docstring.value))
            assert _described(method), f"{method.path} has no docstring"
            names = [one.name for one in method.parameters if one.name != "self"]
            assert [one for one in names if one.lstrip("*") not in said] == [], (
                f"{method.path} does not say what these are"
            )
            _check_outcomes(method)


def _check_outcomes(method: griffe.Function) -> None:
    """Assert that it is said what a method returns, and which errors it raises itself."""
    kinds = {section.kind.value: section.value for section in method.docstring.parsed}
    first = method.docstring.value.partition("\n")[0]
    returns = str(method.returns) != "None" and not re.search(r"\b([Rr]eturn|[Yy]ield|Say)\b", first)
    assert not returns or kinds.keys() & {"returns", "yields"}, f"{method.path} does not say what it returns"
    told = {str(one.annotation) for one in kinds.get("raises", ())}
    raised = {
        one.exc.func.id
        for one in ast.walk(ast.parse(textwrap.dedent("\n".join(method.lines))))
        if isinstance(one, ast.Raise) and isinstance(one.exc, ast.Call) and isinstance(one.exc.func, ast.Name)
    }
    assert raised <= told, f"{method.path} does not say that it raises {raised - told}"


def _described(found: griffe.Object) -> set[str]:
    """Return what a docstring describes by name, and its first line."""
    if found.docstring is None:
        return set()
    sections = found.docstring.parsed
    rows = [one for section in sections if section.kind.value in {"parameters", "attributes"} for one in section.value]
    return {found.docstring.value.partition("\n")[0], *(one.name.lstrip("*") for one in rows)}


def test_folders_are_where_the_architecture_says() -> None:
    from agentvm_kernel.config import Paths

    text = page("architecture.md")
    assert Paths.of_user().socket.relative_to(Paths.of_user().state) == Path("run/supervisor.sock")
    assert "| `STATE/run/supervisor.sock` |" in text
    for name in re.findall(r"`agentvm_kernel/(\w+)`", text):
        assert inspect.ismodule(import_module(f"agentvm_kernel.{name}"))


SPANS = [
    part for line in page("tasks.md").splitlines() if line.startswith("| ") for part in re.findall(r"`(.+?)`", line)
]


@pytest.mark.parametrize("magic", sorted({one for one in SPANS if re.match(r"%%?[a-z]", one)}))
def test_magics_of_the_list_of_tasks_are_there(magic: str) -> None:
    assert Registry().find(f"{magic}\n1" if magic.startswith("%%") else magic) is not None


@pytest.mark.parametrize("command", sorted({one for one in SPANS if one.startswith("agentvm ")}))
def test_commands_of_the_list_of_tasks_are_there(command: str) -> None:
    from typer.main import get_command

    found, words = get_command(app), shlex.split(command)[1:]
    while hasattr(found, "commands"):
        found = found.commands[words.pop(0)]
    options = {option for one in found.params for option in one.opts}
    assert {one for one in words if one.startswith("-")} <= options


@pytest.mark.parametrize("call", sorted({one for one in SPANS if re.match(r"s\.|Session\(", one)}))
def test_calls_of_the_list_of_tasks_are_there(call: str) -> None:
    node = ast.parse(call.replace("…", "0"), mode="eval").body
    assert isinstance(node, ast.Call)
    called = getattr(Session, node.func.attr) if isinstance(node.func, ast.Attribute) else Session
    own = [None] if isinstance(node.func, ast.Attribute) else []
    inspect.signature(called).bind(*own, *node.args, **{one.arg: one.value for one in node.keywords if one.arg})


def test_every_benchmark_is_on_its_page() -> None:
    assert re.findall(r"^\| `(\w+)` \|", page("benchmarks.md"), re.MULTILINE) == [str(one) for one in Benchmark]
