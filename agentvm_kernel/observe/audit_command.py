"""``agentvm audit``: read the audit log and examine it, whether a supervisor runs or not."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from agentvm_kernel.config import Paths
from agentvm_kernel.durable import Disk
from agentvm_kernel.errors import AuditError
from agentvm_kernel.observe.chain import Record, look
from agentvm_kernel.observe.describe import describe
from agentvm_kernel.observe.events.known import EVENTS
from agentvm_kernel.observe.reading import Place, Wanted, follow, newest, records
from agentvm_kernel.observe.verify import Problem, Verdict
from agentvm_kernel.observe.verify import verify as examine
from agentvm_kernel.terminal import UNITS, console, plain

audit_app = typer.Typer(help="The audit log: tail, show, verify, export.", no_args_is_help=True)

_AGO: Final = re.compile(r"([0-9]{1,6})([smhdw])")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

_out = console()
_err = Console(stderr=True)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Events = Annotated[list[str] | None, typer.Option("--event", help="Only events of this name (repeatable).")]
_VM = Annotated[str, typer.Option("--vm", help="Only of the VM with this id.")]
_Notebook = Annotated[str, typer.Option("--notebook", help="Only of this notebook, or session.")]


def _folder() -> Path:
    return Paths.of_user().state / "audit"


@audit_app.command()
def tail(
    number: Annotated[int, typer.Option("--number", "-n", min=0, help="How many of the newest.")] = 20,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes; Ctrl-C ends it.")] = False,
    as_json: _Json = False,
) -> None:
    """Show the newest events."""
    coming = follow(_folder(), Wanted()) if following else iter(())
    known = newest(_folder(), Wanted(), max(number, 1))
    for record in known[-number:] if number else ():
        _print(record, as_json)
    last = known[-1].sequence if known else 0
    with suppress(KeyboardInterrupt):
        _print_all((one for one in coming if one.record is None or one.record.sequence > last), as_json)


@audit_app.command()
def show(
    since: Annotated[str, typer.Option(help="Not older: 2026-01-31, 2026-01-31T12:00, or 90m, 12h, 7d ago.")] = "",
    until: Annotated[str, typer.Option(help="Older: as for --since.")] = "",
    events: _Events = None,
    vm: _VM = "",
    notebook: _Notebook = "",
    as_json: _Json = False,
) -> None:
    """Show events, the oldest first."""
    if unknown := [name for name in events or () if name not in EVENTS]:
        raise AuditError(f"There is no event {unknown[0]!a:.60}.", f"There are: {', '.join(EVENTS)}.")
    now = time.time()
    wanted = Wanted(
        _moment(since, now) if since else 0.0, _moment(until, now) if until else float("inf"),
        frozenset(events or ()), vm, notebook,
    )  # fmt: skip
    _print_all(records(_folder(), wanted), as_json)


@audit_app.command()
def verify(
    against: Annotated[str, typer.Option(metavar="DIGEST", help="A digest noted elsewhere that must be in it.")] = "",
    as_json: _Json = False,
) -> None:
    """Find records that were changed, removed, reordered, doubled or cut off; exit 1 if there are any."""
    if against and not _DIGEST.fullmatch(against):
        raise AuditError("That is no digest.", "A digest is 64 hexadecimal digits, as this command prints the last.")
    verdict = examine(_folder(), against)
    if as_json:
        print(json.dumps(_values(verdict), indent=2))
    else:
        _tell(verdict)
    raise typer.Exit(int(bool(verdict.problems)))


@audit_app.command()
def export(file: Annotated[Path, typer.Argument(help="File to create, for you alone.")]) -> None:
    """Write all records into one file, a line each as they are, and examine them; exit 1 if something is wrong."""
    if file.exists():
        raise AuditError(f"{file} exists already.", "Give another name.")
    verdict = examine(_folder())
    partial = file.with_name(f".{file.name}.new")
    disk = Disk()
    partial.unlink(missing_ok=True)
    disk.make(partial, _copy_all)
    disk.sync(partial)
    disk.rename(partial, file)
    disk.sync(file.parent.absolute())
    _tell(verdict)
    raise typer.Exit(int(bool(verdict.problems)))


def _copy_all(target: Path) -> None:
    target.touch(mode=0o600)
    with target.open("wb") as into:
        for path, _ in look(_folder()).files:
            with path.open("rb") as source:
                shutil.copyfileobj(source, into)


def _print_all(places: Iterable[Place], as_json: bool) -> None:
    for place in places:
        if place.record is None:
            _err.print(Text(f"{place.file}:{place.number}: this is no record; `agentvm audit verify` says more."))
        else:
            _print(place.record, as_json)


def _print(record: Record, as_json: bool) -> None:
    if as_json:
        lost = {"lost": record.lost} if record.lost else {}
        values = {"sequence": record.sequence, "time": record.time, **record.event.fields(), **lost}
        print(json.dumps(values | {"previous": record.previous}), flush=True)
        return
    event = record.event
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.time))
    vm, notebook = getattr(event, "vm", ""), getattr(event, "notebook", "")
    line = f"{record.sequence:>6}  {when}  {event.event:<26}  {vm:<11}  {notebook[-30:]:<16}  {describe(event)}"
    _out.print(Text(plain(line.rstrip())), soft_wrap=True)


def _tell(verdict: Verdict) -> None:
    for problem in verdict.problems:
        _out.print(Text(plain(str(problem)), style="red"), soft_wrap=True)
    for remark in verdict.remarks:
        _out.print(Text(plain(f"{remark} (not wrong)")), soft_wrap=True)
    last = verdict.last
    if not verdict.records:
        _out.print("There are no records.", highlight=False)
    else:
        _out.print(
            f"{verdict.records} records, {verdict.first} to {last.sequence}; the last has the digest {last.digest}.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    number = len(verdict.problems)
    _out.print(f"{number} problem{'s'[: number != 1]}." if number else "Nothing is wrong.", highlight=False)


def _values(verdict: Verdict) -> dict[str, object]:
    def listed(found: list[Problem]) -> list[dict[str, object]]:
        return [{"file": one.file, "line": one.line, "what": one.what} for one in found]

    return {
        "ok": not verdict.problems, "records": verdict.records, "first": verdict.first,
        "last": verdict.last.model_dump(), "lost": verdict.lost, "problems": listed(verdict.problems),
        "remarks": listed(verdict.remarks),
    }  # fmt: skip


def _moment(text: str, now: float) -> float:
    """Return a time that was given as a date, as date and time, or as how long ago it was."""
    if match := _AGO.fullmatch(text):
        return now - int(match[1]) * UNITS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise AuditError(
            f"{text!a:.40} is no time.", "Valid are 2026-01-31, 2026-01-31T12:00 (local time) and 90m, 12h, 7d ago."
        ) from error
