"""A VM whose network is under test: what its cells say, and what the supervisor has written down about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from kernel_client import wait_until

from agentvm_kernel import Session
from agentvm_kernel.config import Paths
from agentvm_kernel.egress.record import Connection

TOOLS = Path(__file__).parents[1] / "security" / "egress_attacker.py"
CELL_SECONDS = 280.0


class Visitor:
    """A leased VM with the attacker's tools in it.

    Args:
        session: The lease.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._seen: set[int] = set()
        session.put(TOOLS, "/tmp/egress_attacker.py")
        self.do("import json, os, socket, subprocess, sys\nsys.path.insert(0, '/tmp')\nfrom egress_attacker import *")
        self.use()

    def do(self, code: str) -> str:
        """Run a cell that must not fail; return what it printed."""
        cell = self.session.run(code, timeout=CELL_SECONDS)
        assert cell.status == "ok", (cell.error, cell.stdout[-2000:], cell.reason)
        return cell.stdout

    def value(self, expression: str) -> Any:
        """The value of an expression in the VM, of plain data."""
        return json.loads(self.do(f"show({expression})").rpartition("\n@")[2])

    def as_root(self, expression: str) -> Any:
        """The same, in a process of root's."""
        script = f"import sys; sys.path.insert(0, '/tmp'); from egress_attacker import *; show({expression})"
        return json.loads(self.program("sudo", "python3", "-c", script).rpartition("\n@")[2])

    def program(self, *argv: str, **environment: str) -> str:
        """Run a program that must not fail; return what it wrote."""
        done = self.session.exec(argv, env=environment, timeout=CELL_SECONDS)
        assert done.code == 0, (argv, done)
        return done.stdout.decode()

    def fails(self, *argv: str, **environment: str) -> str:
        """Run a program that must fail by itself; return all that it wrote."""
        done = self.session.exec(argv, env=environment, timeout=CELL_SECONDS)
        assert done.code != 0, (argv, done)
        assert not done.timed_out, (argv, done)
        return (done.stdout + done.stderr).decode()

    def use(self) -> None:
        """Wait until the VM has its network, and forget the connections that there have been."""
        wait_until(
            lambda: self.value("through(b'good.example.org', 80, get('good.example.org'))")[:5] == "data:", "link"
        )
        wait_until(lambda: all(one.duration is not None for one in self.session.connections()), "their end")
        self._seen = {one.id for one in self.session.connections()}

    @property
    def connections(self) -> list[Connection]:
        """What has been written down since `use`."""
        return [one for one in self.session.connections() if one.id not in self._seen]

    def refused(self, *wanted: tuple[str, int]) -> list[Connection]:
        """Wait until these connections, and no others, have been written down as refused; then forget all.

        Args:
            wanted: Name and port, or address and port where there was no name; as often as it was tried.
        """
        expected = Counter(wanted)
        found: list[Connection] = []

        def complete() -> bool:
            found[:] = [one for one in self.connections if one.verdict != "allowed"]
            return sum(one.count for one in found) >= expected.total()

        wait_until(complete, f"{expected} refused", 30)
        counted: Counter[tuple[str, int]] = Counter()
        for one in found:
            counted[one.name or one.address, one.port] += one.count
            assert one.reason
        assert counted == expected
        self._seen |= {one.id for one in self.connections}
        return found


@contextmanager
def visitor(
    paths: Paths,
    allow: tuple[str, ...] = ("good.example.org",),
    lease: Callable[..., AbstractContextManager[Session]] = Session,
    **options: str,
) -> Iterator[Visitor]:
    """Lease a VM for a test.

    Args:
        paths: Whose supervisor is asked.
        allow: What it may reach.
        lease: Makes the session.
        **options: What the session is to be besides.
    """
    with lease(paths=paths, allow=allow, **{"image": "minimal", "profile": "test", **options}) as session:
        yield Visitor(session)
