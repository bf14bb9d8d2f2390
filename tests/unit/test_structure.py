"""What holds for the whole of the code: what depends on what, and that errors can be told apart."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from documents import ROOT

PACKAGE = ROOT / "agentvm_kernel"
UNFORESEEN = {"kernel/router.py", "widgets/anywidget.py"}
"""Where the root of the errors is raised: for a mistake in the code, and for a package that was built by halves."""

LAYERS = (
    "errors durable pace tally tarheader terminal tomllines kernel_command",
    "firewall blocking private_file validation profiles anomalies settings config config_reference",
    "link",
    "vm",
    "egress observe image snapshots",
    "supervisor",
    "config_command quickstart host kernelspec_command kernel run experiment session compare report",
    "widgets magics reproduce server bench cli __main__",
)
ORDER = [name for layer in LAYERS for name in layer.split()]
"""Packages, and modules beside them: each knows only those before it."""


def modules() -> dict[str, Path]:
    """All modules by name; of a package, the file that is run when it is imported."""
    found = {}
    for folder in (PACKAGE, ROOT / "guest" / "agentvm_guest"):
        for path in folder.rglob("*.py"):
            name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports, wherever that stands in it: for types only, too."""
    known = modules()
    return {name: set(imported(path, set(known))) - {name} for name, path in known.items()}


def imported(path: Path, known: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert not node.level, f"{path} has a relative import"
            for one in node.names:
                inner = f"{node.module}.{one.name}"
                if inner in known or node.module in known:
                    yield inner if inner in known else node.module


def part(module: str) -> str:
    """Where in the order a module belongs; empty for those of the guest."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "agentvm_kernel" else ""


def test_no_module_imports_itself_on_a_detour() -> None:
    # The package itself loads its sessions only when they are asked for; everybody may ask it for the version.
    graph = {name: found - {"agentvm_kernel"} for name, found in imports().items() if name != "agentvm_kernel"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_what_is_below_knows_nothing_of_what_is_above() -> None:
    places = {name: place for place, name in enumerate(ORDER)}
    assert {part(name) for name in modules()} - {""} == set(places), "each has its place in the order"
    upwards = [
        f"{name} imports {one}"
        for name, found in imports().items()
        for one in found
        if part(name) in places and part(one) in places and places[part(one)] > places[part(name)]
    ]
    assert upwards == []


def test_an_error_that_a_user_can_make_is_never_the_root_of_all_errors() -> None:
    made = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "AgentVMError"
    }
    assert {path for path in made if not path.startswith("bench/")} == UNFORESEEN
