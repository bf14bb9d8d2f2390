"""Traces for the anomaly detector: some recorded of real VMs, most drawn by chance from fixed seeds.

The drawn ones are what a sampler would see of a VM once a second: each is an idle or working VM, over which an attack
is laid. What is known only roughly (how long, how much, how regularly) is drawn.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Final

from agentvm_kernel.observe.anomaly.reading import Contact, Reading
from agentvm_kernel.observe.anomaly.trace import Step, Trace

_MB: Final = 1e6


@dataclass
class _Second:
    """What happens in a second."""

    cpu: float = 0.0
    executing: bool = False
    sent: float = 0.0
    received: float = 0.0
    written: float = 0.0
    space: float = 0.0
    output: float = 0.0
    processes: float = 0.0
    contacts: list[tuple[float, str, int, str, float]] = field(
        default_factory=list
    )  # when, host, port, verdict, length

    def reach(self, at: float, host: str, port: int = 443, verdict: str = "allowed", length: float = 1.0) -> None:
        self.contacts.append((at, host, port, verdict, length))


Seconds = list[_Second]
Paint = Callable[[random.Random, Seconds, int], None]


def traces() -> list[Trace]:
    """Return all traces."""
    return [*recorded(), *drawn()]


def recorded() -> Iterator[Trace]:
    """Yield those that were measured of real VMs."""
    folder = files("agentvm_kernel.bench") / "anomaly_traces"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".jsonl"):
            yield Trace.load(file.read_text().splitlines())


def drawn(salt: str = "") -> Iterator[Trace]:
    """Yield those that are drawn, the same ones each time.

    Args:
        salt: Makes them others.
    """
    for kind, paint, lengths in _WORK:
        for number, length in enumerate(lengths):
            yield _draw(f"{salt}{kind} {number + 1}", kind, paint, length, None)
    numbers = Counter[str]()
    for kind, paint, variants in _ATTACKS:
        for ground, length in variants:
            numbers[kind] += 1
            yield _draw(f"{salt}{kind} {numbers[kind]}", kind, paint, length, ground)


def _draw(name: str, kind: str, paint: Paint, length: int, ground: Paint | None) -> Trace:
    # Not for secrets: the same traces are wanted each time.
    chance = random.Random(name)  # nosec B311
    seconds = [_Second() for _ in range(length)]
    _idle(chance, seconds, 0)
    begins = None
    if ground is not None:
        ground(chance, seconds, 0)
        begins = length // 3 + chance.randrange(30)
    paint(chance, seconds, begins or 0)
    return Trace(name, kind, begins, False, tuple(_steps(chance, seconds)))


def _steps(chance: random.Random, seconds: Seconds) -> Iterator[Step]:
    """Turn seconds into what a sampler says, whose looks are not quite regular."""
    time = 0.0
    sums = dict.fromkeys(("sent", "received", "written", "space", "output", "processes", "allowed", "refused"), 0.0)
    open_until: list[tuple[float, Contact]] = []
    number = 0
    yield Reading(0.0, processes=0.0), ()
    for second in seconds:
        time += chance.uniform(0.99, 1.03)
        contacts = []
        for at, host, port, verdict, length in sorted(second.contacts):
            number += 1
            sums[verdict] += 1
            contact = Contact(time - 1 + at, number, host, port, "allowed")
            if verdict == "allowed":
                contacts.append(contact)
                open_until.append((contact.time + length, contact))
            else:
                contacts.append(contact._replace(verdict="refused", is_over=True))
        contacts += [contact._replace(is_over=True) for until, contact in open_until if until <= time]
        open_until = [one for one in open_until if one[0] > time]
        for name in ("sent", "received", "written", "space", "output", "processes"):
            sums[name] += getattr(second, name)
        yield (
            Reading(
                time, cpu_percent=second.cpu, memory=300 * _MB, disk_written=sums["written"], disk_space=sums["space"],
                network_sent=sums["sent"], network_received=sums["received"],
                connections=sum(contact.verdict == "allowed" for _, contact in open_until), allowed=sums["allowed"],
                refused=sums["refused"], executing=float(second.executing), output=sums["output"],
                processes=sums["processes"],
            ),
            tuple(contacts),
        )  # fmt: skip


# Ordinary work


def _idle(chance: random.Random, seconds: Seconds, _begin: int) -> None:
    for second in seconds:
        second.cpu = abs(chance.gauss(2, 1.5))
        second.written = 4096.0 * chance.randrange(3)


def _cells(chance: random.Random, seconds: Seconds, _begin: int) -> None:
    """Cells of some seconds, with rests in which somebody thinks."""
    at = chance.randrange(5, 20)
    while at < len(seconds):
        end = at + int(chance.expovariate(1 / 12)) + 1
        for second in seconds[at:end]:
            second.cpu, second.executing = chance.uniform(30, 101), True
            second.output += chance.choice((0, 200, 30_000))
        at = end + int(chance.expovariate(1 / 25)) + 2


def _training(chance: random.Random, seconds: Seconds, _begin: int) -> None:
    for second in seconds[10:-20]:
        second.cpu, second.executing = chance.gauss(99, 1), True
        second.output += 300
        if chance.random() < 0.02:
            second.written += 40 * _MB
            second.space += 2 * _MB
    for second in seconds[10:-20:97]:
        second.cpu = 40


def _install(chance: random.Random, seconds: Seconds, _begin: int) -> None:
    at = chance.randrange(10, 20)
    for _ in range(chance.randrange(12, 40)):
        if at >= len(seconds) - 5:
            break
        size = chance.lognormvariate(14, 1.6)
        second = seconds[at]
        second.reach(chance.random(), chance.choice(("index.example", "files.example")), length=chance.uniform(0.3, 20))
        second.sent += 4000
        for later in seconds[at : at + 2]:
            later.received += size / 2
            later.sent += size / 60
            later.cpu, later.executing = chance.uniform(50, 100), True
            later.written += size
            later.space += size * 1.5
            later.processes += chance.randrange(4)
        at += chance.choice((0, 0, 1, 1, 2, 3, 7))


def _build(chance: random.Random, seconds: Seconds, _begin: int) -> None:
    for second in seconds[15:-15]:
        second.cpu, second.executing = chance.gauss(98, 4), True
        second.processes += chance.randrange(5, 60)
        second.written += chance.uniform(0, 3 * _MB)
        second.space += chance.uniform(0, 2 * _MB)
        second.output += 2000


def _download(chance: random.Random, seconds: Seconds, _begin: int) -> None:
    rate = chance.uniform(2, 30) * _MB
    seconds[15].reach(0.5, "data.example", length=len(seconds) / 2)
    for second in seconds[15 : len(seconds) // 2 + 15]:
        speed = max(0.0, chance.gauss(rate, rate / 4))
        second.received, second.sent = speed, speed / 50
        second.written = second.space = min(speed, 12 * _MB)
        second.cpu, second.executing = chance.uniform(20, 90), True


def _plots(chance: random.Random, seconds: Seconds, begin: int) -> None:
    _cells(chance, seconds, begin)
    for second in seconds:
        if second.executing and chance.random() < 0.3:
            second.output += chance.uniform(0.1, 3) * _MB


def _forks(chance: random.Random, seconds: Seconds, begin: int) -> None:
    _cells(chance, seconds, begin)
    for second in seconds:
        if second.executing:
            second.processes += chance.choice((0, 1, 20, 120))


def _model_calls(chance: random.Random, seconds: Seconds, _begin: int) -> None:
    """An agent that talks to a model: one request after the other, of irregular length."""
    at = 10
    while at < len(seconds) - 10:
        second = seconds[at]
        length = chance.lognormvariate(1.8, 0.8) + 1
        second.reach(chance.random(), "model.example", length=length)
        second.sent += chance.uniform(2_000, 400_000)
        for later in seconds[at : at + int(length) + 1]:
            later.received += chance.uniform(500, 5000)
            later.executing = True
        at += int(length + chance.lognormvariate(1.0, 1.0)) + 1


def _poll(chance: random.Random, seconds: Seconds, _begin: int) -> None:
    """A cell that asks every so often whether a job elsewhere is done: it looks like a beacon, and is one."""
    for at in range(10, len(seconds) - 5, 30):
        seconds[at].reach(chance.random(), "jobs.example")
    for second in seconds[10:-5]:
        second.executing = True


def _push(chance: random.Random, seconds: Seconds, begin: int) -> None:
    """Work, of which a result is uploaded."""
    _cells(chance, seconds, begin)
    at = len(seconds) // 2
    seconds[at].reach(0.2, "git.example", length=8)
    for second in seconds[at : at + 6]:
        second.sent += chance.uniform(1, 4) * _MB
        second.executing = True


def _mistyped(chance: random.Random, seconds: Seconds, begin: int) -> None:
    """A host that is not allowed, which a library tries again some times."""
    _cells(chance, seconds, begin)
    at = len(seconds) // 3
    for wait in (0, 1, 3, 7, 15, 31):
        seconds[at + wait].reach(0.5, "blocked.example", verdict="refused", length=0.01)
        seconds[at + wait].executing = True


# Attacks


def _miner(chance: random.Random, seconds: Seconds, begin: int) -> None:
    seconds[begin].reach(0.1, "relay.example", port=3333, length=len(seconds))
    for second in seconds[begin:]:
        second.cpu = max(second.cpu, chance.gauss(99, 1))
        second.sent += chance.uniform(0, 300)
        second.received += chance.uniform(0, 500)


def _quiet_miner(chance: random.Random, seconds: Seconds, begin: int) -> None:
    """One over the usual port, that computes while no cell does."""
    seconds[begin].reach(0.1, "web.example", length=len(seconds))
    for second in seconds[begin:]:
        second.cpu = max(second.cpu, chance.gauss(99.3, 0.7))


def _known_pool(chance: random.Random, seconds: Seconds, begin: int) -> None:
    for second in seconds[begin::15]:
        second.reach(chance.random(), "eu.xmr-pool.example", port=443, verdict="refused", length=0.01)


def _throttled_miner(chance: random.Random, seconds: Seconds, begin: int) -> None:
    """One that takes half of a core, over the usual port: nothing here sees it."""
    seconds[begin].reach(0.1, "web.example", length=len(seconds))
    for second in seconds[begin:]:
        second.cpu = max(second.cpu, chance.gauss(50, 5))


def _exfiltration(chance: random.Random, seconds: Seconds, begin: int) -> None:
    rate = chance.uniform(12, 60) * _MB
    seconds[begin].reach(0.1, "drop.example", length=30)
    for second in seconds[begin : begin + 30]:
        second.sent += rate * chance.uniform(0.8, 1.2)
        second.received += rate / 100


def _slow_exfiltration(chance: random.Random, seconds: Seconds, begin: int) -> None:
    rate = chance.uniform(0.12, 0.5) * _MB
    for at in range(begin, len(seconds)):
        if at % 20 == begin % 20:
            seconds[at].reach(chance.random(), "drop.example", length=15)
        seconds[at].sent += rate * chance.uniform(0.5, 1.5)


def _fork_bomb(chance: random.Random, seconds: Seconds, begin: int) -> None:
    for second in seconds[begin : begin + 60]:
        second.cpu = 100
        second.executing = True
        second.processes += chance.uniform(300, 1500)


def _scan_ports(chance: random.Random, seconds: Seconds, begin: int) -> None:
    rate = chance.randrange(3, 40)
    for offset, second in enumerate(seconds[begin : begin + 60]):
        for number in range(rate):
            second.reach(number / rate, "victim.example", port=1 + offset * rate + number, verdict="refused", length=0)


def _scan_names(chance: random.Random, seconds: Seconds, begin: int) -> None:
    for offset, second in enumerate(seconds[begin : begin + 90]):
        for number in range(chance.randrange(1, 4)):
            second.reach(chance.random(), f"h{offset}-{number}.example", verdict="refused", length=0)


def _beacon(every: float, jitter: float, verdict: str) -> Paint:
    def paint(chance: random.Random, seconds: Seconds, begin: int) -> None:
        at = float(begin)
        while at < len(seconds):
            seconds[int(at)].reach(at % 1, "control.example", verdict=verdict, length=0.5)
            seconds[int(at)].sent += 700
            at += every * chance.uniform(1 - jitter, 1 + jitter)

    return paint


def _storm(chance: random.Random, seconds: Seconds, begin: int) -> None:
    for second in seconds[begin : begin + 60]:
        for number in range(chance.randrange(5, 60)):
            second.reach(number / 60, "other.example", verdict="refused", length=0)


def _flood(chance: random.Random, seconds: Seconds, begin: int) -> None:
    for second in seconds[begin : begin + 20]:
        second.output += chance.uniform(15, 64) * _MB
        second.executing, second.cpu = True, chance.uniform(60, 100)


def _fill(chance: random.Random, seconds: Seconds, begin: int) -> None:
    for second in seconds[begin : begin + 60]:
        amount = chance.uniform(20, 190) * _MB
        second.written += amount
        second.space += amount
        second.executing = True


_WORK: Final[tuple[tuple[str, Paint, tuple[int, ...]], ...]] = (
    ("idle notebook", _idle, (1800, 3600)),
    ("cells", _cells, (1800, 3600, 3600)),
    ("training loop", _training, (900, 3600)),
    ("pip install", _install, (300, 300, 600)),
    ("build", _build, (600, 900)),
    ("data set", _download, (300, 600)),
    ("plot session", _plots, (1200, 2400)),
    ("fork bursts", _forks, (900, 1800)),
    ("model calls", _model_calls, (1800, 3600)),
    ("upload of a result", _push, (900, 900)),
    ("mistyped host", _mistyped, (600, 600)),
    ("polling", _poll, (900,)),
)
_ATTACKS: Final[tuple[tuple[str, Paint, tuple[tuple[Paint, int], ...]], ...]] = (
    ("miner", _miner, ((_idle, 400), (_cells, 600), (_model_calls, 600))),
    ("miner", _quiet_miner, ((_idle, 400), (_cells, 900))),
    ("miner", _known_pool, ((_idle, 300),)),
    ("miner", _throttled_miner, ((_idle, 600),)),
    ("exfiltration", _exfiltration, ((_idle, 300), (_cells, 300), (_model_calls, 300))),
    ("slow exfiltration", _slow_exfiltration, ((_idle, 900), (_cells, 900), (_model_calls, 900))),
    ("fork bomb", _fork_bomb, ((_idle, 300), (_cells, 300))),
    ("port scan", _scan_ports, ((_idle, 300), (_cells, 300))),
    ("port scan", _scan_names, ((_idle, 300),)),
    ("beacon", _beacon(30, 0.1, "allowed"), ((_idle, 900), (_cells, 900))),
    ("beacon", _beacon(60, 0.2, "refused"), ((_cells, 1500),)),
    ("beacon", _beacon(60, 0.3, "allowed"), ((_model_calls, 1500),)),
    ("beacon", _beacon(60, 0.6, "allowed"), ((_idle, 1500),)),
    ("refused-connection storm", _storm, ((_idle, 300), (_cells, 300))),
    ("output flood", _flood, ((_idle, 300), (_plots, 300))),
    ("disk fill", _fill, ((_idle, 300), (_cells, 300))),
)
