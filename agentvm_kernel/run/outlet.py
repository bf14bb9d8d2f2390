"""Where what a guest writes leaves this process."""

from __future__ import annotations

import os

from agentvm_kernel.run.escapes import TerminalFilter


class Outlet:
    """A descriptor of this process: a terminal gets what is harmless to it, anything else gets every byte.

    Args:
        fd: The descriptor.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._filter = TerminalFilter() if os.isatty(fd) else None

    def write(self, data: bytes) -> None:
        """Write all of it; whoever reads may make this wait.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        view = memoryview(self._filter.feed(data) if self._filter else data)
        while view:
            view = view[os.write(self._fd, view) :]

    def end(self) -> None:
        """Leave a terminal as it was."""
        if self._filter:
            os.write(self._fd, self._filter.end())
