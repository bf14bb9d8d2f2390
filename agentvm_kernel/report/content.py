"""What a report says of a notebook: everything that the page shows, in the words in which it shows it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from agentvm_kernel import __version__
from agentvm_kernel.observe.curves import Moment
from agentvm_kernel.observe.events.execution import FilesCopied
from agentvm_kernel.observe.events.network import NetworkConnectionBlocked
from agentvm_kernel.observe.events.vm import LeaseAcquired
from agentvm_kernel.observe.verify import Verdict
from agentvm_kernel.profiles import LIMIT_WORDS
from agentvm_kernel.report.cleaning import Cleaner, Shown, plain, safe
from agentvm_kernel.report.curves import draw_curves
from agentvm_kernel.report.document import Document
from agentvm_kernel.report.environment import Environment
from agentvm_kernel.report.hosts import Host
from agentvm_kernel.report.matching import Match, Standing
from agentvm_kernel.report.picture import draw_tree
from agentvm_kernel.report.plots import draw_runs, seconds, size
from agentvm_kernel.report.record import Found, Run, Session, name_of, said

_MOST_RUNS: Final = 1000
_MOST_ROWS: Final = 500
_MOST_SOURCE: Final = 50_000
_MEANINGS: Final[dict[Standing, str]] = {
    "as recorded": "their run is known, and they show what it showed",
    "changed": "their run is known, but it showed something else than they show now",
    "not recorded": "their run is known, but not what it showed",
    "no known run": "nobody knows of a run that made what they show; magics, which the host carries out, have none",
    "not run": "they show nothing, and no run of them is known",
}


@dataclass(frozen=True)
class Said:
    """Something that is said of a cell.

    Attributes:
        text: It.
        off: Whether a reader should be wary.
    """

    text: str
    off: bool = False


@dataclass(frozen=True)
class CellView:
    """A cell; of Markdown there is only that."""

    markdown: Markup | None = None
    source: str = ""
    said: tuple[Said, ...] = ()
    outputs: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class RunView:
    """A row of the table of runs."""

    number: int
    cell: str
    began: str
    end: str
    error: str
    seconds: str
    cpu: str
    memory: str
    sent: str
    received: str
    snapshot: str


@dataclass(frozen=True)
class SessionView:
    """A session."""

    began: str
    facts: tuple[tuple[str, str], ...]
    tree: Markup
    plots: Markup
    curves: Markup
    way: str
    left: str
    runs: tuple[RunView, ...]
    more_runs: int
    changes: tuple[tuple[str, str], ...]
    forks: tuple[tuple[str, int, str, str], ...]
    copies: tuple[tuple[int, str, str, str, str], ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class HostView:
    """A row of the table of hosts."""

    name: str
    port: int
    allowed: int
    refused: int
    sent: str
    received: str
    rule: str
    runs: str


@dataclass(frozen=True)
class LogView:
    """What was found of the audit log."""

    records: int
    digest: str
    problem_count: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Content:
    """All that the page shows; see `page.html`."""

    name: str
    made: str
    version: str
    log: LogView
    emulated: bool
    found_by: str
    summary: tuple[tuple[str, str], ...]
    standings: tuple[tuple[str, int, str], ...]
    cells: tuple[CellView, ...]
    left_out: str
    sessions: tuple[SessionView, ...]
    hosts: tuple[HostView, ...]
    blocked: tuple[tuple[int, str, int], ...]
    images: tuple[Environment, ...]
    again: str
    cautions: tuple[str, ...]


def make_content(
    document: Document, found: Found, matches: Sequence[Match], hosts: Iterable[Host],
    curves: Mapping[str, Sequence[Moment]], images: Sequence[Environment], log: Verdict, now: float,
) -> Content:  # fmt: skip
    """Put together what the page shows.

    Args:
        document: The notebook.
        found: What the audit log has of it.
        matches: Its code cells' runs.
        hosts: What it wanted to reach.
        curves: What its sessions' VMs used over time, by lease.
        images: Of its sessions.
        log: What was found of the audit log.
        now: Seconds since 1970.
    """
    cleaner = Cleaner()
    sessions = found.sessions
    return Content(
        name=plain(document.name), made=_when(now), version=__version__,
        log=_log(log),
        emulated=any(session.acquired.accelerator == "tcg" for session in sessions),
        found_by=found.by, summary=_summary(document, sessions), standings=_standings(matches),
        cells=_cells(document, matches, cleaner),
        left_out=", ".join(f"{count} {reason}" for reason, count in sorted(cleaner.left_out.items())),
        sessions=tuple(_session(session, matches, curves.get(session.lease, ())) for session in sessions),
        hosts=tuple(_host(host) for host in hosts), blocked=_blocked(sessions), images=tuple(images),
        again=_again(document), cautions=_cautions(matches, sessions),
    )  # fmt: skip


def _log(found: Verdict) -> LogView:
    problems = tuple(plain(str(one)) for one in found.problems[:20])
    return LogView(found.records, found.last.digest, len(found.problems), problems)


def _when(moment: float | None) -> str:
    return "" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment))


def _summary(document: Document, sessions: Sequence[Session]) -> tuple[tuple[str, str], ...]:
    ran = sum(len(session.runs) for session in sessions)
    failed = sum(run.outcome in {"failed", "timeout"} for session in sessions for run in session.runs)
    last = sessions[-1] if sessions else None
    rows = [
        ("sessions", f"{len(sessions)}, the first from {_when(sessions[0].began)}" if sessions else "none"),
        ("runs", f"{ran}, of which {failed} failed" if ran else "none"),
        ("ways back", str(sum(len(session.returns) for session in sessions)) if sessions else ""),
        ("snapshots", str(sum(len(session.snapshots) for session in sessions)) if sessions else ""),
        ("cells", str(len(document.cells))),
        ("image", _joined(session.acquired.image for session in sessions)),
        ("accelerator", _joined(session.acquired.accelerator for session in sessions)),
        ("hypervisor", _joined(session.acquired.hypervisor for session in sessions)),
        ("AgentVM Kernel", _joined(session.acquired.version for session in sessions)),
        ("profile", _joined(session.acquired.profile for session in sessions)),
        ("end", (_when(last.ended) or "not over when this was made") if last else ""),
    ]
    return tuple((name, plain(value)) for name, value in rows if value)


def _joined(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, values)))


def _standings(matches: Sequence[Match]) -> tuple[tuple[str, int, str], ...]:
    numbers = Counter(match.standing for match in matches)
    return tuple((name, numbers[name], meaning) for name, meaning in _MEANINGS.items() if numbers[name])


def _cells(document: Document, matches: Sequence[Match], cleaner: Cleaner) -> tuple[CellView, ...]:
    of_code = iter(matches)
    views = []
    for cell in document.cells:
        if cell.kind == "markdown":
            views.append(CellView(markdown=cleaner.markdown(cell.source)))
        elif cell.kind == "raw":
            views.append(CellView(source=_source(cell.source)))
        else:
            match = next(of_code)
            views.append(CellView(None, _source(cell.source), _said(match), tuple(cleaner.outputs(cell.outputs))))
    return tuple(views)


def _source(text: str) -> str:
    more = len(text) - _MOST_SOURCE
    return plain(text[:_MOST_SOURCE]) + (f"\n[{more} more characters are left out]" if more > 0 else "")


def _said(match: Match) -> tuple[Said, ...]:
    run = match.run
    if run is None or match.session is None:
        return _unknown(match)
    told = [Said(f"run {run.number}, {_when(run.began)}")]
    if run.outcome:
        told.append(Said(_ended(run), off=run.outcome != "completed"))
    if run.end:
        told += [Said(text) for text in _cost(run)]
    if run.snapshot:
        told.append(Said(f"from snapshot {run.snapshot}"))
    if run not in match.session.way:
        told.append(Said("on a branch that was left", off=True))
    told.append(Said(f"outputs {match.standing}", off=match.standing == "changed"))
    return tuple(told)


def _unknown(match: Match) -> tuple[Said, ...]:
    if match.standing != "no known run":
        return ()
    if match.cell.source.lstrip().startswith("%"):
        return (Said("a magic has no run: nobody vouches for what this shows"),)
    return (Said("no known run", off=True),)


def _ended(run: Run) -> str:
    reason = f": {plain(run.end.reason)}" if run.end and run.end.reason else ""
    return f"{run.outcome or 'not over'}{reason}"


def _cost(run: Run) -> list[str]:
    end = run.end
    if end is None:
        return []
    parts = [seconds(end.seconds)]
    if end.cpu_seconds is not None:
        parts.append(f"CPU {seconds(end.cpu_seconds)}")
    if end.memory_grown:
        parts.append(f"memory +{size(end.memory_grown)}")
    if end.network_sent or end.network_received:
        parts.append(f"sent {size(end.network_sent or 0)}, received {size(end.network_received or 0)}")
    return parts


def _session(session: Session, matches: Sequence[Match], moments: Sequence[Moment]) -> SessionView:
    acquired, places = session.acquired, {id(match.run): place for place, match in enumerate(matches, 1) if match.run}
    way = session.way
    left = [run for run in session.runs if run not in way and run.fork == 0]
    facts = [
        ("until", _when(session.ended) or "not over when this was made"),
        ("image", acquired.image), ("profile", acquired.profile),
        ("machine", _machine(acquired)),
        ("accelerator", acquired.accelerator), ("hypervisor", acquired.hypervisor),
        ("limits", _limits(acquired.limits)), ("network", acquired.network), ("lease", session.lease),
    ]  # fmt: skip
    return SessionView(
        began=_when(session.began), facts=tuple((name, plain(value)) for name, value in facts if value),
        tree=safe(draw_tree(session)), plots=safe(draw_runs(session)),
        curves=safe(draw_curves(session, moments)),
        way=_numbers(way), left=_numbers(left),
        runs=tuple(_run(run, places.get(id(run), 0)) for run in session.runs[:_MOST_RUNS]),
        more_runs=max(0, len(session.runs) - _MOST_RUNS),
        changes=tuple((_when(moment), plain(what)) for moment, what in session.changes[:_MOST_ROWS]),
        forks=tuple(
            (_when(moment), one.count, one.randomness, one.seed) for moment, one in session.forks[:_MOST_ROWS]
        ),
        copies=tuple(_copy(one) for _, one in session.copies[:_MOST_ROWS]),
        missing=tuple(session.missing[:_MOST_ROWS]),
    )  # fmt: skip


def _copy(one: FilesCopied) -> tuple[int, str, str, str, str]:
    way = "in" if one.way == "push" else "out"
    return one.run, way, plain(name_of(one.path)), size(one.size), one.digest


def _machine(acquired: LeaseAcquired) -> str:
    if not acquired.vcpus:
        return ""
    disk = f", {acquired.disk_gb} GB of disk" if acquired.disk_gb else ""
    return f"{acquired.vcpus} CPU{'' if acquired.vcpus == 1 else 's'}, {acquired.memory_mib} MiB of memory{disk}"


def _limits(text: str) -> str:
    """Return limits, which the log has as JSON, by the words of `%limits`."""
    try:
        values = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return text
    found = [
        f"{word.replace('_', ' ')} {values[name]:g} {unit}".rstrip()
        for name, (word, unit) in LIMIT_WORDS.items()
        if isinstance(values, dict) and type(values.get(name)) in {int, float}
    ]
    return ", ".join(found)


def _numbers(runs: Sequence[Run]) -> str:
    """Return the numbers of runs, those that follow each other as a span."""
    spans: list[list[int]] = []
    for number in sorted({run.number for run in runs}):
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ", ".join("\N{EN DASH}".join(map(str, span)) for span in spans)


def _run(run: Run, place: int) -> RunView:
    end = run.end
    fork = f"fork {run.fork}" if run.fork else ""

    def shown(value: float | None, say: object) -> str:
        return "" if value is None or not callable(say) else str(say(value))

    return RunView(
        number=run.number, cell=fork or (f"[{place}]" if place else ""), began=_when(run.began)[11:], end=_ended(run),
        error=plain(said(end.error)) if end else "", seconds=shown(end.seconds if end else None, seconds),
        cpu=shown(end.cpu_seconds if end else None, seconds), memory=shown(end.memory_grown if end else None, size),
        sent=shown(end.network_sent if end else None, size),
        received=shown(end.network_received if end else None, size), snapshot=run.snapshot,
    )  # fmt: skip


def _host(host: Host) -> HostView:
    return HostView(
        plain(host.name), host.port, host.allowed, host.refused, size(host.sent) if host.sent else "",
        size(host.received) if host.received else "", plain(host.rule), ", ".join(map(str, host.runs)),
    )  # fmt: skip


def _blocked(sessions: Sequence[Session]) -> tuple[tuple[int, str, int], ...]:
    rows: Counter[tuple[int, str]] = Counter()
    for session in sessions:
        for (run, reason), count in session.blocked.items():
            rows[run, f"output: {reason}"] += count
        for one in session.exceeded:
            rows[one.run, f"limit: {plain(one.limit)}"] += 1
        for _, event in session.connections:
            if isinstance(event, NetworkConnectionBlocked):
                rows[event.run, f"connection to {plain(said(event.name)) or event.address}:{event.port}"] += event.count
        for _, anomaly in session.anomalies:
            rows[0, f"anomaly: {plain(anomaly.kind)} ({plain(anomaly.response)})"] += 1
    return tuple((run, what, number) for (run, what), number in sorted(rows.items())[:_MOST_ROWS])


def _again(document: Document) -> str:
    return f"agentvm reproduce {_quoted(plain(document.name))}"


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "'\\''") + "'"


def _cautions(matches: Sequence[Match], sessions: Sequence[Session]) -> tuple[str, ...]:
    cautions = ["It goes the recorded path in a fresh machine of the same image, and compares what the cells show."]
    if any(session.returns for session in sessions):
        cautions.append("There were ways back: what the state at the end consists of is the runs on the green path.")
    numbers = [match.run.number for match in matches if match.run]
    if numbers != sorted(numbers):
        cautions.append("The cells were run in another order than they stand in.")
    return tuple(cautions)
