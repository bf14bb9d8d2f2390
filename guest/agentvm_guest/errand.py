"""Work that may block, for the agent's loop, which must not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from agentvm_guest.control import Reply
from agentvm_guest.loop import Loop


class Errand:
    """Does something in a thread, and tells the owner how it went.

    Args:
        loop: The agent's loop.
        work: Does it; returns what is answered.
        reply: Told what it returned, or which error it raised.
    """

    def __init__(self, loop: Loop, work: Callable[[], dict[str, object]], reply: Reply) -> None:
        self._loop = loop
        self._work = work
        self._reply = reply
        self._answer: dict[str, object] = {}
        self._done = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add(self._done, self._tell)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer = {"ok": True, **self._work()}
        except OSError as error:
            self._answer = {"ok": False, "error": str(error)}
        os.eventfd_write(self._done, 1)

    def _tell(self) -> None:
        self._loop.remove(self._done)
        os.close(self._done)
        self._reply(self._answer)
