"""What holds for the whole of the code: what depends on what, and that errors can be told apart."""

from __future__ import annotations

import ast
from pathlib import Path

import agentvm_kernel

PACKAGE = Path(agentvm_kernel.__file__).parent
UNFORESEEN = {"kernel/router.py", "widgets/anywidget.py"}
"""Where the root of the errors is raised: for a mistake in the code, and for a package that was built by halves."""


def test_an_error_that_a_user_can_make_is_never_the_root_of_all_errors() -> None:
    made = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "AgentVMError"
    }
    assert {path for path in made if not path.startswith("bench/")} == UNFORESEEN
