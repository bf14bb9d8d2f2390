"""Records traces of real VMs for the anomaly detector: python tests/support/record_anomalies.py [NAME...]

Each is one session with the tests' own small profile; what it wants from the network is refused by the policy, so that
nothing leaves this host.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vms import own_supervisor

from agentvm_kernel import Session
from agentvm_kernel.observe.anomaly.reading import Contact, Reading
from agentvm_kernel.observe.anomaly.trace import Trace
from agentvm_kernel.supervisor.stats_messages import VMStats
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient
from agentvm_kernel.vm.cputime import wanted_cpu

FOLDER = Path(__file__).parents[2] / "agentvm_kernel" / "bench" / "anomaly_traces"
QUIET = 20.0

TRAIN = """
import time
until = time.time() + 50
weights = [0.0] * 200
while time.time() < until:
    for row in range(200):
        weights = [w - 0.01 * (w - (i * row % 7)) for i, w in enumerate(weights)]
"""
BUILD = """
import compileall, shutil, sys, os, time
until = time.time() + 40
while time.time() < until:
    shutil.rmtree('/tmp/built', ignore_errors=True)
    shutil.copytree(os.path.dirname(os.__file__) + '/asyncio', '/tmp/built')
    compileall.compile_dir('/tmp/built', quiet=1, force=True)
"""
FORKS = """
import subprocess, time
for _ in range(15):
    subprocess.run(['sh', '-c', 'for i in 1 2 3 4 5 6 7 8 9 10; do true | cat > /dev/null; done'])
    time.sleep(2)
"""
FILES = """
import os
with open('/home/agent/data', 'wb') as file:
    for _ in range(60): file.write(os.urandom(1 << 20))
sum(len(block) for block in iter(lambda f=open('/home/agent/data', 'rb'): f.read(1 << 20), b''))
"""
CONNECT = """
import socket
def reach(name, port):
    try: socket.create_connection((name, port), timeout=5).close()
    except OSError: pass
"""
BURNER = """
import subprocess, sys
subprocess.Popen([sys.executable, '-c', 'while True: pass'], start_new_session=True)
"""
SCAN = (
    CONNECT
    + """
for port in range(1, 400): reach('victim.example', port)
"""
)
STORM = (
    CONNECT
    + """
for _ in range(400): reach('other.example', 443)
"""
)
BEACON = (
    CONNECT
    + """
import random, threading, time
def beacon():
    while True:
        reach('control.example', 443)
        time.sleep(10 * random.uniform(0.9, 1.1))
threading.Thread(target=beacon, daemon=True).start()
"""
)
FILL = """
import os
with open('/home/agent/fill', 'wb') as file:
    block = os.urandom(1 << 20)
    for _ in range(1300): file.write(block)
    os.fsync(file.fileno())
"""


@dataclass(frozen=True)
class Scene:
    """What is done, and what it is an example of."""

    kind: str
    is_attack: bool
    play: Callable[[Session], None]


class Wanted(threading.Thread):
    """How much a VM's busiest thread wants a CPU, once a second, as the supervisor looks at it."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._over = threading.Event()
        self._shares: list[tuple[float, float]] = []

    def __enter__(self) -> Wanted:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        before, then = wanted_cpu(self._pid), time.time()
        while not self._over.wait(1.0):
            now, seen = time.time(), wanted_cpu(self._pid)
            most = max((value - before.get(thread, value) for thread, value in seen.items()), default=0.0)
            self._shares.append((now, min(100.0, 100 * most / (now - then))))
            before, then = seen, now

    def at(self, moment: float) -> float:
        return next((share for at, share in reversed(self._shares) if at <= moment), 0.0)


def cells(*codes: str, rest: float = 15.0) -> Callable[[Session], None]:
    def play(session: Session) -> None:
        for code in codes:
            result = session.run(code, timeout=280)
            print("   ", result.status, flush=True)
            wait(rest)

    return play


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


SCENES = {
    "recorded-idle": Scene("idle notebook", False, lambda _: wait(100)),
    "recorded-training": Scene("training loop", False, cells(TRAIN)),
    "recorded-build": Scene("build", False, cells(BUILD)),
    "recorded-forks": Scene("fork bursts", False, cells(FORKS)),
    "recorded-files": Scene("data set", False, cells(FILES, FILES)),
    "recorded-burner": Scene("miner", True, cells(BURNER, rest=100)),
    "recorded-scan": Scene("port scan", True, cells(SCAN)),
    "recorded-storm": Scene("refused-connection storm", True, cells(STORM)),
    "recorded-beacon": Scene("beacon", True, cells(BEACON, rest=160)),
    "recorded-fill": Scene("disk fill", True, cells(FILL)),
}


def record(name: str, scene: Scene) -> Trace:
    with ExitStack() as stack:
        paths = stack.enter_context(own_supervisor())
        session = stack.enter_context(Session(paths=paths, notebook=name))
        client = stack.enter_context(SyncSupervisorClient(paths, start=False))
        (lease,) = client.status().leases
        session.run("1")
        wanted = stack.enter_context(Wanted(lease.pid))
        began = time.time()
        wait(QUIET)
        at = time.time() - began
        print(name, "begins at", round(at), flush=True)
        scene.play(session)
        with client.stats(lease.lease) as events:
            stats = [one for one in events if one.time >= began]
        with client.connections(lease.lease) as events:
            contacts = [
                Contact(one.time - began, one.id, one.name or one.address, one.port, one.verdict, over, one.count)
                for one in events
                for over in ((False, True) if one.verdict == "allowed" else (True,))
            ]
    return Trace(name, scene.kind, at if scene.is_attack else None, True, tuple(steps(stats, contacts, began, wanted)))


def steps(
    stats: list[VMStats], contacts: list[Contact], began: float, wanted: Wanted
) -> Iterator[tuple[Reading, tuple[Contact, ...]]]:
    then = -1.0
    for one in stats:
        now = one.time - began
        mine = tuple(contact for contact in contacts if then < contact.time <= now)
        names = set(VMStats.model_fields) & set(Reading._fields) - {"time", "executing"}
        values = {name: float(getattr(one, name)) for name in names}
        yield Reading(now, **values, executing=float(one.executing), cpu_wanted=wanted.at(one.time)), mine
        then = now


def main() -> None:
    for name in sys.argv[1:] or SCENES:
        trace = record(name, SCENES[name])
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.jsonl").write_text("\n".join(trace.dump()) + "\n")
        print(name, len(trace.steps), "steps", flush=True)


if __name__ == "__main__":
    main()
