"""What `agentvm run` is to run: a script, a program, or a folder with a main file, and how."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from agentvm_kernel.errors import RunError

_MAIN_FILES: Final = ("main.py", "__main__.py")


@dataclass(frozen=True)
class Plan:
    """A program, or a notebook, and how it is run.

    Attributes:
        source: The file, or the folder, that is copied in; the folder becomes the working folder.
        argv: What is run in the working folder; empty for a notebook.
    """

    source: Path
    argv: tuple[str, ...]

    @property
    def is_folder(self) -> bool:
        """Whether a whole folder is copied in."""
        return self.source.is_dir()

    @property
    def is_notebook(self) -> bool:
        """Whether it is a notebook."""
        return not self.argv


def make_plan(source: Path, arguments: Sequence[str]) -> Plan:
    """Look at a file or folder, and say how it is run.

    Args:
        source: The file or folder.
        arguments: The program's arguments; for a folder the command.

    Raises:
        RunError: it is not there, cannot be read, or nothing that can be run.
    """
    if not source.exists():
        raise RunError(f"There is no file {source}.")
    if not os.access(source, os.R_OK | (os.X_OK if source.is_dir() else 0)):
        raise RunError(f"{source} cannot be read.", "Its permissions do not allow you to.")
    if source.is_dir():
        return Plan(source, _folders_command(source, arguments))
    if not source.is_file():
        raise RunError(f"{source} is neither a file nor a folder.")
    if source.suffix == ".ipynb":
        if arguments:
            raise RunError("A notebook takes no arguments.")
        return Plan(source, ())
    return Plan(source, (*_starter(source), f"./{source.name}", *arguments))


def check_out(out: Path | None) -> None:
    """Make sure, before anything runs, that there will be a place for the results.

    Raises:
        RunError: there is something in that place.
    """
    if out is not None and (os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir()))):
        raise RunError(f"{out}, where the results are to go, is there already.", "Name a folder that is new or empty.")


def check_results(results: Sequence[str]) -> None:
    """Make sure that results are named as paths in the working folder.

    Raises:
        RunError: one leads elsewhere.
    """
    for name in results:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise RunError(f"The result {name!r} is no path in the working folder.")


def _folders_command(source: Path, arguments: Sequence[str]) -> tuple[str, ...]:
    if arguments:
        return tuple(arguments)
    for name in _MAIN_FILES:
        if (source / name).is_file():
            return ("python", name)
    raise RunError(
        f"{source} has neither {' nor '.join(_MAIN_FILES)} in it.",
        f"Name the command that is to be run in it: agentvm run {source} -- COMMAND.",
    )


def _starter(source: Path) -> tuple[str, ...]:
    if source.suffix == ".py":
        return ("python",)
    with source.open("rb") as file:
        has_interpreter = file.read(2) == b"#!"
    is_executable = os.access(source, os.X_OK)
    if has_interpreter and is_executable:
        return ()
    if source.suffix == ".sh":
        return ("bash",)
    if has_interpreter:
        raise RunError(f"{source} is not executable.", f"Make it so: chmod +x {source}.")
    raise RunError(
        f"{source} is nothing that can be run.",
        "Run a Python script (.py), a shell script (.sh), an executable that begins with #!, a notebook (.ipynb) or a "
        "folder.",
    )
