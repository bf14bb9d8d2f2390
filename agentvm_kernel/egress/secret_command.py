"""``agentvm secret``: secrets that VMs may use and never see."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Final

import typer

from agentvm_kernel.config import Paths
from agentvm_kernel.egress.names import Pattern
from agentvm_kernel.egress.secrets import SecretStore
from agentvm_kernel.errors import SecretError
from agentvm_kernel.terminal import add_row, console, table

secret_app = typer.Typer(help="Secrets that VMs may use and never see: set, list, remove.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Environment variable in VMs, like OPENAI_API_KEY.")]

_HTTPS: Final = 443
_LONGEST: Final = 1 << 16

_out = console()


def _store() -> SecretStore:
    paths = Paths.of_user()
    return SecretStore(paths.state, paths.tag)


@secret_app.command("set")
def set_secret(
    name: _Name,
    host: Annotated[str, typer.Option(metavar="HOST[:PORT]", help="The only host that gets it, over https.")],
    header: Annotated[str, typer.Option(help="The only request header in which it is put.")] = "Authorization",
    notebook: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Only this notebook's VMs (or this session's) may use it; can be repeated."),
    ] = None,
) -> None:
    """Keep a secret; its value is read from standard input, or asked for on a terminal."""
    pattern = Pattern.parse(host)
    if pattern.wildcard or len(pattern.ports or ()) > 1:
        raise SecretError("A secret is for one host and one port.", "Write --host api.example.org.")
    (port,) = pattern.ports or {_HTTPS}
    notebooks = [_name_of(one) for one in notebook or ()]
    entry = _store().put(name, pattern.name, port, header, _ask(name), notebooks=notebooks)
    where = "in the host's keyring" if entry.kept == "keyring" else "in a file that only you may read"
    print(f"{name} is kept {where}. VMs see {entry.placeholder}; {pattern.name} gets the secret in {header}.")


@secret_app.command("list")
def list_secrets(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the secrets, without their values."""
    entries = _store().entries()
    if as_json:
        print(json.dumps([entry.model_dump(exclude={"value"}) for entry in entries], indent=2))
    elif not entries:
        print("There is no secret; `agentvm secret set` keeps one.")
    else:
        shown = table("name", "host", ">port", "header", "kept in", "notebooks")
        for entry in entries:
            add_row(
                shown,
                entry.name,
                entry.host,
                str(entry.port),
                entry.header,
                entry.kept,
                "\n".join(entry.notebooks) or "all",
            )
        _out.print(shown)


@secret_app.command("rm")
def remove_secret(name: _Name) -> None:
    """Forget a secret; requests with its placeholder are sent with the placeholder then."""
    _store().remove(name)
    print(f"{name} is forgotten.")


def _name_of(notebook: str) -> str:
    """Return what a notebook's lease is called: Jupyter says its whole path."""
    return os.path.abspath(notebook) if notebook.endswith(".ipynb") else notebook  # noqa: PTH100 - links as they are


def _ask(name: str) -> str:
    """Return the value; never an argument, which every user of the host could read."""
    if sys.stdin.isatty():
        return str(typer.prompt(f"Value of {name}", hide_input=True))
    return sys.stdin.read(_LONGEST).removesuffix("\n")
