"""``agentvm reproduce``: a notebook again, as it was run, and what is different."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.terminal import plain

FAILED: Final = 2
_INTERRUPTED: Final = 130
_MIB: Final = 1 << 20
_err = Console(stderr=True)

Progress = Callable[[str, float | None], None]


def reproduce(
    file: Annotated[Path, typer.Argument(help="A notebook, or the archive of a report.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the results; NAME.reproduced by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
    rtol: Annotated[float, typer.Option(min=0, max=1, help="By what share numbers may differ.")] = 0.0,
    atol: Annotated[float, typer.Option(min=0, help="By how much numbers may differ.")] = 0.0,
    normalise: Annotated[
        list[Path] | None, typer.Option(help="A TOML file of rules for what differs by nature (repeatable).")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Without the usual rules for what differs by nature.")] = False,
    lax: Annotated[bool, typer.Option("--lax", help="Compare only cells marked NBVAL_CHECK_OUTPUT.")] = False,
    pixel_level: Annotated[int, typer.Option(min=0, max=255, help="By how much a pixel's channel may differ.")] = 0,
    pixel_share: Annotated[float, typer.Option(min=0, max=1, help="What share of pixels may differ by more.")] = 0.0,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also in another image than the recorded one.")] = False,
    profile: Annotated[str, typer.Option(help="Another profile than the recorded one.")] = "",
    image: Annotated[str, typer.Option(help="Flavour of the image, where none is recorded.")] = "",
    allow: Annotated[
        list[str] | None, typer.Option(metavar="HOST[:PORT]", help="A host that it may reach besides (repeatable).")
    ] = None,
    allow_recorded: Annotated[
        bool,
        typer.Option("--allow-recorded", help="Let it reach the hosts that it was allowed to reach; they are told."),
    ] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=PATH", help="A file that its %push NAME may copy in (repeatable)."),
    ] = None,
    out_limit: Annotated[int, typer.Option(min=0, metavar="MIB", help="How much it may copy out, MiB.")] = 4096,
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds that it may take.")] = None,
    key: Annotated[str, typer.Option(metavar="FINGERPRINT", help="Whose key the report must be signed by.")] = "",
) -> None:
    """Run a notebook again as it was run, in a fresh virtual machine, and compare what it shows.

    Exits with 0 if all is the same, 1 if not, 3 if it is the same in another image than the recorded one, 2 if nothing
    could be run.
    """
    try:
        from agentvm_kernel.reproduce import again  # noqa: PLC0415 - needs what is optional
        from agentvm_kernel.reproduce.compare import Rules  # noqa: PLC0415
        from agentvm_kernel.reproduce.hosts import recorded_hosts  # noqa: PLC0415
        from agentvm_kernel.reproduce.judge import Judge  # noqa: PLC0415
        from agentvm_kernel.reproduce.normalise import DEFAULTS, read_normalisers  # noqa: PLC0415
        from agentvm_kernel.reproduce.pictures import Tolerance  # noqa: PLC0415
        from agentvm_kernel.reproduce.source import open_source  # noqa: PLC0415
        from agentvm_kernel.reproduce.verdict import lines_of  # noqa: PLC0415
    except ModuleNotFoundError as error:
        _fail(f"This needs {error.name}.", "Install it: pip install 'agentvm-kernel[notebook]'.")
    try:
        own = [rule for path in normalise or () for rule in read_normalisers(path)]
        usual = () if exact else DEFAULTS
        rules = Rules((*usual, *own), rtol, atol, Tolerance(pixel_level, pixel_share))
        paths = Paths.of_user()
        order = again.Order(
            Judge(rules, is_lax=lax, is_exact=exact), out or _beside(file), image, profile, tuple(allow or ()),
            _inputs(inputs or ()), out_limit * _MIB, timeout, anyway,
        )  # fmt: skip
        source = open_source(file, paths, key)
        if allow_recorded:
            hosts = recorded_hosts(source)
            _tell_hosts(set(hosts.values()))
            order = replace(order, allow=tuple(dict.fromkeys([*order.allow, *hosts])))
        with _progress() as on_progress:
            outcome = again.reproduce(source, order, paths, on_progress)
    except AgentVMError as error:
        _fail(error.message, error.hint)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        print(json.dumps(outcome.as_json(), indent=1))
    else:
        for line in lines_of(outcome):
            print(plain(line))
        print(f"The results are in {plain(str(order.out))}.")
    raise typer.Exit(outcome.status)


def _fail(message: str, hint: str) -> None:
    for line in filter(None, (*message.split("\n"), hint)):
        _err.print(Text(f"agentvm reproduce: {plain(line)}"), soft_wrap=True)
    sys.exit(FAILED)


def _tell_hosts(hosts: Collection[str]) -> None:
    for line in ("Allowed as recorded, besides what the configuration allows:", *(sorted(hosts) or ("nothing",))):
        _err.print(Text(plain(line)), soft_wrap=True)


def _beside(file: Path) -> Path:
    return file.absolute().with_name(f"{file.stem.removesuffix('.report')}.reproduced")


def _inputs(given: Sequence[str]) -> dict[str, Path]:
    found = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals:
            name, path = Path(one).name, one
        if not name or not Path(path).exists():
            raise ReproduceError(f"There is no input {path!a:.200}.", "Name a file: --input NAME=PATH.")
        found[name] = Path(path).absolute()
    return found


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show on a terminal what is going on; say nothing elsewhere."""
    with Status("", console=_err) as status:

        def show(stage: str, done: float | None) -> None:
            share = "" if done is None else f" {done:.0%}"
            status.update(Text(plain(f"{stage}{share}")))

        yield show
