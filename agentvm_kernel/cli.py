"""The ``agentvm`` command."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agentvm_kernel import __version__
from agentvm_kernel.bench import Benchmark
from agentvm_kernel.compare.command import diff
from agentvm_kernel.config import Paths
from agentvm_kernel.config_command import config_app
from agentvm_kernel.egress.secret_command import secret_app
from agentvm_kernel.errors import AgentVMError, ImageError
from agentvm_kernel.host import install_packages
from agentvm_kernel.kernelspec_command import kernelspec_app
from agentvm_kernel.observe.audit_command import audit_app
from agentvm_kernel.report.command import report
from agentvm_kernel.reproduce.command import reproduce
from agentvm_kernel.run.command import run
from agentvm_kernel.run.copy_command import cp
from agentvm_kernel.snapshots.command import snapshot_app
from agentvm_kernel.supervisor.command import pool_app, status, supervisor, vm_app
from agentvm_kernel.supervisor.metrics_command import metrics
from agentvm_kernel.supervisor.net_command import net_app
from agentvm_kernel.terminal import plain

app = typer.Typer(help="Run every notebook in a virtual machine of its own.", no_args_is_help=True)
image_app = typer.Typer(help="Guest images: build, list, remove.", no_args_is_help=True)
app.add_typer(image_app, name="image")
app.add_typer(snapshot_app, name="snapshot")
app.add_typer(vm_app, name="vm")
app.add_typer(pool_app, name="pool")
app.add_typer(net_app, name="net")
app.add_typer(config_app, name="config")
app.add_typer(kernelspec_app, name="kernelspec")
app.add_typer(secret_app, name="secret")
app.add_typer(audit_app, name="audit")
app.command()(report)
app.command()(reproduce)
app.command()(run)
app.command()(cp)
app.command()(supervisor)
app.command()(status)
app.command()(metrics)
snapshot_app.command()(diff)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Flavour = Annotated[str, typer.Argument(help="minimal or standard.")]

_out = Console()
_err = Console(stderr=True)
_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failure": "[red]failure[/]"}


def main() -> None:
    """Run the command; errors of ours end in one message and status 1."""
    try:
        app()
    except AgentVMError as error:
        # What is in a message may come from anywhere, so it is no markup, and must not steer the terminal.
        _err.print(Text.assemble((f"{error.code}:", "red"), " ", plain(error.message, keep="\n")))
        if error.hint:
            _err.print(Text(plain(error.hint, keep="\n")))
        sys.exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


@app.command()
def setup() -> None:
    """Install the system packages that are missing (asks for root through sudo where it must)."""
    install_packages()


@app.command()
def doctor(as_json: Json = False) -> None:
    """Examine this host; exit 1 if a notebook could not run."""
    from agentvm_kernel.host.doctor import examine  # noqa: PLC0415 - loads libvirt, which other commands need not

    findings = asyncio.run(examine(Paths.of_user()))
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        table = Table(box=None, pad_edge=False)
        for title in ("check", "", "found", "remedy"):
            table.add_column(title, overflow="fold")
        for finding in findings:
            table.add_row(finding.name, _MARKS[finding.status], finding.detail, finding.remedy)
        _out.print(table)
    raise typer.Exit(int(any(finding.status == "failure" for finding in findings)))


@image_app.command("build")
def image_build(flavour: Flavour = "standard") -> None:
    """Build an image, unless it is there."""
    from agentvm_kernel.image.store import ImageStore  # noqa: PLC0415 - not needed by other commands

    with _progress() as show:
        image = ImageStore(Paths.of_user().cache).build(flavour, show)
    print(image.folder)


@image_app.command("list")
def image_list(as_json: Json = False) -> None:
    """List the images."""
    from agentvm_kernel.image.store import ImageStore  # noqa: PLC0415 - not needed by other commands

    images = ImageStore(Paths.of_user().cache).images()
    rows = [{"digest": image.digest, "flavour": image.flavour, "folder": str(image.folder)} for image in images]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("There is no image yet; `agentvm image build` builds one.")
    for row in () if as_json else rows:
        print(row["digest"][:12], row["flavour"], row["folder"])


@image_app.command("rm")
def image_rm(
    digest: Annotated[str, typer.Argument(help="Digest, or its beginning.")],
    force: Annotated[bool, typer.Option("--force", help="Even if snapshots of notebooks build on it.")] = False,
) -> None:
    """Remove an image and its golden snapshots."""
    from agentvm_kernel.image.store import ImageStore  # noqa: PLC0415 - not needed by other commands
    from agentvm_kernel.snapshots.command import count_built_on  # noqa: PLC0415
    from agentvm_kernel.supervisor.catalogue import remove_snapshots_of  # noqa: PLC0415

    paths = Paths.of_user()
    store = ImageStore(paths.cache)
    found = [image for image in store.images() if image.digest.startswith(digest)]
    if len(found) != 1:
        raise ImageError(f"{len(found)} images begin with {digest!r}.", "See `agentvm image list`.")
    if not force and (number := count_built_on(found[0].digest)):
        raise ImageError(
            f"{number} snapshots of notebooks build on this image, and could not be gone back to any more.",
            "Look at them with `agentvm snapshot list`, or use --force.",
        )
    store.remove(found[0].digest)
    remove_snapshots_of(paths.cache, found[0].digest)
    print(f"Removed {found[0].digest[:12]} ({found[0].flavour}).")


@app.command()
def quickstart(
    notebook: Annotated[Path, typer.Argument(help="The notebook to run.")] = Path("notebooks/quickstart.ipynb"),
) -> None:
    """Run the quickstart notebook in a VM and print its outputs."""
    from agentvm_kernel.quickstart import prepare, run_notebook  # noqa: PLC0415 - loads nbclient, which is optional

    paths = Paths.of_user()
    with _progress() as show:
        show("starting the supervisor", None)
        asyncio.run(prepare(paths, show))
    raise typer.Exit(run_notebook(notebook, paths.state / "notebooks", _out))


@app.command()
def bench(
    name: Annotated[Benchmark | None, typer.Argument(help="Which one; all of them by default.")] = None,
    as_json: Json = False,
    image: Annotated[str, typer.Option(help="Flavour of the image.")] = "minimal",
    profile: Annotated[str, typer.Option(help="The VM's profile; `bench` is 1 vCPU and 512 MiB.")] = "bench",
    repeat: Annotated[int, typer.Option(min=0, help="Number of samples; 0 for the usual one.")] = 0,
    vms: Annotated[int, typer.Option(min=0, max=1000, help="Number of VMs of `sampling`; 0 for the usual one.")] = 0,
) -> None:
    """Run benchmarks, each beside its baseline in the same run."""
    from agentvm_kernel.bench import bed, run, show  # noqa: PLC0415 - loads libvirt and Jupyter's client

    with _progress() as say:
        result = run.run(name, bed.Wanted(image, profile, repeat, vms), say)
    if as_json:
        print(show.as_json(result))
    else:
        _out.print(show.as_table(result))


@contextmanager
def _progress() -> Iterator[Callable[[str, float | None], None]]:
    """Show stages as a bar on a terminal, as lines elsewhere."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True) as bars:
        task = bars.add_task("starting", total=None)
        seen: set[str] = set()

        def show(stage: str, done: float | None) -> None:
            if not _err.is_terminal and stage not in seen:
                seen.add(stage)
                _err.print(stage, highlight=False)
            bars.update(task, description=stage, total=None if done is None else 1.0, completed=done or 0.0)

        yield show
