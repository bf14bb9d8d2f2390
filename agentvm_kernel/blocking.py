"""Lets code without an event loop use what needs one."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from agentvm_kernel.errors import RequestError

_T = TypeVar("_T")


class LoopThread:
    """An event loop in a thread of its own; `call` may be used from any other thread.

    It cancels what is interrupted once, as asyncio does, so that it can still give back what it has (anyio's portal
    cancels again at every step on the way out).
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changing = threading.Lock()

    def __enter__(self) -> Self:
        """Start the thread."""
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="agentvm", daemon=True)
        self._thread.start()
        self._process = os.getpid()
        self._loop = ready.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what still runs, wait for it, and end the thread."""
        with self._changing:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what a coroutine returns, or raise what it raises.

        Raises:
            RequestError: the thread does not run; or not here, because this process was forked since.
            KeyboardInterrupt: the user has interrupted; the coroutine is cancelled.
        """
        with self._changing:
            if self._loop is None or self._process != os.getpid():
                work.close()
                raise RequestError("It is not open in this process.", "Use it within `with`, where that was entered.")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _main(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        self._over = asyncio.Event()
        ready.set_result(asyncio.get_running_loop())
        await self._over.wait()
