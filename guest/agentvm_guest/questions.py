"""The link's service ``agent``: what a notebook's host asks of the guest, and what it is told of ipykernel's end."""

from __future__ import annotations

import json
from collections.abc import Callable

from agentvm_guest import qga
from agentvm_guest.errand import Errand
from agentvm_guest.facts import facts
from agentvm_guest.kernel import Death, KernelProcess
from agentvm_guest.loop import Loop
from agentvm_guest.system import System
from agentvm_kernel.link.stream import SessionStream

SERVICE = "agent"
_DESCRIBE_SECONDS = 10.0


class Questions:
    """Answers them.

    Args:
        loop: The agent's loop.
        kernel: The guest's ipykernel.
        system: The privileged operations.
        pump: Sends what was said since the loop turned last.
    """

    def __init__(self, loop: Loop, kernel: KernelProcess, system: System, pump: Callable[[], None]) -> None:
        self._loop = loop
        self._kernel = kernel
        self._system = system
        self._pump = pump
        self._stream: SessionStream | None = None
        self._is_describing = False

    def serve(self, stream: SessionStream) -> None:
        """Answer what came on a stream, which is the one that is told of ipykernel's end from now on."""
        self._stream = stream
        # One that asks without reading the answers waits.
        while not stream.queued and not stream.closed and (parts := stream.receive()) is not None:
            try:
                request = json.loads(parts[0])
            except ValueError:
                request = None
            if isinstance(request, dict) and request.get("op") == "describe":
                self._describe(stream, request.get("id"))
            elif isinstance(request, dict):
                _say(stream, request.get("id"), self._answer(request.get("op")))

    def detach(self) -> None:
        """Forget the stream."""
        self._stream = None

    def tell(self, death: Death) -> None:
        """Tell of ipykernel's end."""
        if self._stream is not None:
            self._stream.send([json.dumps(death.describe()).encode()])
            self._pump()

    def _describe(self, stream: SessionStream, number: object) -> None:
        """Let QEMU's agent describe the guest; who asks again meanwhile is not answered."""
        if self._is_describing:
            return
        self._is_describing = True

        def reply(answer: dict[str, object]) -> None:
            self._is_describing = False
            if not stream.closed:
                _say(stream, number, answer)
                self._pump()

        Errand(self._loop, lambda: qga.facts(_DESCRIBE_SECONDS), reply)

    def _answer(self, operation: object) -> dict[str, object]:
        if operation == "interrupt":
            return {"ok": True} if self._kernel.interrupt() else {"ok": False, "error": "ipykernel is dead"}
        if operation == "facts":
            return {"ok": True, **facts(self._kernel, self._system)}
        if operation == "ping":
            return {"ok": True}
        return {"ok": False, "error": f"there is no operation {str(operation)[:40]!r}"}


def _say(stream: SessionStream, number: object, answer: dict[str, object]) -> None:
    stream.send([json.dumps({"id": number, **answer}).encode()])
