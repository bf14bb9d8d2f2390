"""``agentvm config``: what is configured, and what can be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from agentvm_kernel.config import Paths, read_configuration
from agentvm_kernel.terminal import add_row, console, table

config_app = typer.Typer(help="The configuration: check, show, reference.", no_args_is_help=True)

_out = console()


@config_app.command()
def check() -> None:
    """Read the configuration; exit 1 and say what is wrong, if something is."""
    from agentvm_kernel.egress.addresses import parse_reachable  # noqa: PLC0415 - not needed by other commands
    from agentvm_kernel.supervisor.lease_network import configured  # noqa: PLC0415

    paths = Paths.of_user()
    network = read_configuration(paths).settings.network
    configured(network)
    parse_reachable(network.reachable)
    print(f"{paths.config}: valid." if paths.config.exists() else f"There is no {paths.config}: the defaults hold.")


@config_app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show all settings, and where each comes from."""
    paths = Paths.of_user()
    loaded = read_configuration(paths)
    rows = [(path, value, loaded.origins.get(path, "default")) for path, value in _leaves(loaded.settings.model_dump())]
    if as_json:
        settings = {".".join(path): {"value": value, "from": origin} for path, value, origin in rows}
        print(json.dumps({"file": str(paths.config), "settings": settings}, indent=2))
        return
    shown = table("setting", "value", "from")
    for path, value, origin in rows:
        add_row(shown, ".".join(path), "none" if value is None else json.dumps(value), origin)
    _out.print(shown)


@config_app.command()
def reference() -> None:
    """Print all that can be configured, what is valid and what it means, as Markdown."""
    from agentvm_kernel import config_reference  # noqa: PLC0415 - not needed by other commands

    print(config_reference.reference(), end="")


def _leaves(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value
