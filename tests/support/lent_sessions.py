"""Sessions of one user that another one's process uses: `python lent_sessions.py SOCKET`, run by the former.

A supervisor answers its own user only, and the tests that make networks are root's.
"""

from __future__ import annotations

import sys
from multiprocessing.managers import BaseManager

from agentvm_kernel import Session

KEY = b"tests"
"""No secret: who gets to the socket, in the user's own folder, is trusted."""


class _Lent(Session):
    """A session that is opened and closed by calls: a context manager would have to be where it is used."""

    def open(self) -> None:
        self.__enter__()

    def close(self) -> None:
        self.__exit__(None, None, None)


class Sessions(BaseManager):
    """Has them; `lease` makes one."""


Sessions.register("lease", _Lent)

if __name__ == "__main__":
    server = Sessions(sys.argv[1], KEY).get_server()
    print("ready", flush=True)
    server.serve_forever()
