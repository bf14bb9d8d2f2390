"""A VM for code without an event loop: `AsyncSession`, whose calls return when they are done.

with Session(profile="light") as session:
    session.run("data = load()")
    start = session.snapshot("loaded")
    tried = session.fork(8, "score = search(data); score")
    session.rollback(start)

Sessions may be used from many threads and processes at the same time. Ctrl-C interrupts the cell, or whatever is going
on, and is a `KeyboardInterrupt` as everywhere; the session can be used on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from agentvm_kernel.blocking import LoopThread
from agentvm_kernel.config import Paths
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.experiment import AsyncSession
from agentvm_kernel.kernel.execution import CellResult
from agentvm_kernel.kernel.forks import ForkResult, OnProgress
from agentvm_kernel.profiles import Limits
from agentvm_kernel.run.collect import ExecResult, OnOutput
from agentvm_kernel.run.files import Bounds, Received, Sent
from agentvm_kernel.run.unpack import USUAL, no_progress
from agentvm_kernel.run.unpack import OnProgress as OnCopied
from agentvm_kernel.supervisor.snapshot_messages import RollbackPlan, SnapshotInfo, SnapshotTree

__all__ = ["Bounds", "CellResult", "ExecResult", "ForkResult", "Received", "Sent", "Session"]


class Session:
    """A leased VM, from entering the context to leaving it.

    Args:
        image: Flavour of the image; by default ``AGENTVM_IMAGE``, or what is configured.
        profile: Name of the profile; by default ``AGENTVM_PROFILE``, or what is configured.
        notebook: What its snapshots belong to; sessions with the same name share them.
        allow: Hosts that it may reach besides those that are configured: ``HOST[:PORT]``.
        paths: The user's folders; found by default.
    """

    def __init__(
        self,
        *,
        image: str = "",
        profile: str = "",
        notebook: str = "experiment",
        allow: Sequence[str] = (),
        paths: Paths | None = None,
    ) -> None:
        self._session = AsyncSession(image=image, profile=profile, notebook=notebook, allow=allow, paths=paths)
        self._thread = LoopThread()

    def __enter__(self) -> Self:
        """Lease the VM.

        Raises:
            AgentVMError: it cannot be had.
        """
        self._thread.__enter__()
        try:
            self._thread.call(self._session.__aenter__())
        except BaseException:
            self._thread.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the VM back."""
        try:
            self._thread.call(self._session.__aexit__(kind, error, trace))
        finally:
            self._thread.__exit__(None, None, None)

    def run(self, code: str, *, timeout: float | None = None) -> CellResult:
        """Run a cell; an exception in it, or its VM's end, is a result.

        Args:
            code: The cell.
            timeout: Seconds until it is interrupted; the limit `cell_deadline` by default.

        Raises:
            AgentVMError: the VM has ended before.
            KeyboardInterrupt: the user has interrupted, and so has been the cell.
        """
        return self._thread.call(self._session.run(code, timeout=timeout))

    def interrupt(self) -> None:
        """Interrupt the cell that another thread runs; nothing happens if none does."""
        self._thread.call(self._session.interrupt())

    def limits(self, **changes: float | None) -> Limits:
        """Change limits of the VM, and return all that hold then.

        Args:
            changes: New values by the names in `Limits`; without any, nothing is changed.

        Raises:
            AgentVMError: one is unknown or not valid; or there is no VM any more.
        """
        return self._thread.call(self._session.limits(**changes))

    def connections(self) -> list[Connection]:
        """Return the newest connections of the VM, oldest first, with those that were refused.

        Raises:
            AgentVMError: there is no VM any more.
        """
        return self._thread.call(self._session.connections())

    def snapshot(self, label: str = "", text: str = "") -> SnapshotInfo:
        """Take a snapshot.

        Args:
            label: Its name.
            text: What there is to say of it.

        Raises:
            AgentVMError: there is none now; the VM goes on.
        """
        return self._thread.call(self._session.snapshot(label, text))

    def snapshots(self) -> SnapshotTree:
        """Return all snapshots of the notebook.

        Raises:
            AgentVMError: there is no VM any more.
        """
        return self._thread.call(self._session.snapshots())

    def plan_rollback(self, to: SnapshotInfo | str = "") -> RollbackPlan:
        """Say what a rollback would do.

        Args:
            to: As for `rollback`.

        Raises:
            AgentVMError: it would be refused.
        """
        return self._thread.call(self._session.plan_rollback(to))

    def rollback(self, to: SnapshotInfo | str = "") -> SnapshotInfo:
        """Go back to a snapshot, and return it.

        Args:
            to: The snapshot, its label, its id, or ``~N``; the newest by default.

        Raises:
            AgentVMError: the supervisor refused, and the VM goes on; or there is none any more.
        """
        return self._thread.call(self._session.rollback(to))

    def fork(
        self,
        count: int,
        code: str,
        *,
        randomness: Literal["diverge", "common"] = "diverge",
        timeout: float | None = None,
        on_progress: OnProgress = lambda _progress: None,
    ) -> list[ForkResult]:
        """Run a cell in clones of the VM; those in which it ended by itself can be adopted until the next fork.

        Each has its number, from 1, in the environment variable ``AGENTVM_FORK``, if the code names it.

        Args:
            count: How many clones.
            code: The cell.
            randomness: Whether their generators are seeded differently or alike.
            timeout: Seconds that it may take in each; the limit `cell_deadline` by default.
            on_progress: Called whenever something has changed, in another thread; it must not use the session.

        Returns:
            What came of each; a clone that died, hung or flooded its output is a result, too.

        Raises:
            AgentVMError: there could be none.
        """
        work = self._session.fork(count, code, randomness=randomness, timeout=timeout, on_progress=on_progress)
        return self._thread.call(work)

    def adopt(self, fork: int) -> None:
        """Go on in a fork.

        Args:
            fork: Its number.

        Raises:
            AgentVMError: the supervisor refused, and the VM goes on; or there is none any more.
        """
        self._thread.call(self._session.adopt(fork))

    def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: OnOutput = lambda _output: None,
    ) -> ExecResult:
        """Run a program in the VM, beside whatever else runs there; that it fails is a result.

        Args:
            argv: The program and its arguments. One that cannot be found exits with 127.
            cwd: Where it runs; a relative path begins at the user's home, where cells run, too.
            env: What is added to the environment of a login.
            stdin: Its standard input.
            timeout: Seconds until it is ended; None for no limit.
            on_output: Called with output as it comes, in another thread; it must not use the session.

        Raises:
            AgentVMError: it could not be started, or the VM has ended.
        """
        work = self._session.exec(argv, cwd=cwd, env=env, stdin=stdin, timeout=timeout, on_output=on_output)
        return self._thread.call(work)

    def put(
        self,
        local: Path | str,
        remote: str = "",
        bounds: Bounds = USUAL,
        on_progress: OnCopied = no_progress,
    ) -> Sent:
        """Copy a file or a folder into the VM, whole or not at all.

        Args:
            local: What is copied.
            remote: What it becomes; a relative path begins at the user's home, one that ends with a slash gets the name
                of what is copied added, and so does none. A file there is replaced, a folder is an error.
            bounds: How much may be copied.
            on_progress: Called with how many bytes are there, and how many there are, in another thread.

        Returns:
            What was copied, with its SHA-256.

        Raises:
            AgentVMError: it could not be copied, is more than the bounds, or the VM has ended.
        """
        return self._thread.call(self._session.put(local, remote, bounds, on_progress))

    def get(
        self, remote: str, local: Path | str, bounds: Bounds = USUAL, on_progress: OnCopied = no_progress
    ) -> Received:
        """Copy a file or a folder out of the VM, whole or not at all.

        Args:
            remote: What is copied; a relative path begins at the user's home.
            local: What it becomes. A file there is replaced, and so is an empty folder.
            bounds: How much is taken.
            on_progress: Called with how many bytes have come, and how many there are as the guest claims, in another
                thread.

        Returns:
            What came, and what was left out: links that lead out, devices, named pipes, names that cannot be shown.

        Raises:
            AgentVMError: it could not be copied, is more than the bounds, or the VM has ended.
        """
        return self._thread.call(self._session.get(remote, local, bounds, on_progress))
