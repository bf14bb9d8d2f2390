"""Looks names up on the host, checks the addresses, and connects to what was checked."""

from __future__ import annotations

import asyncio
import functools
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import aiohappyeyeballs

from agentvm_kernel.egress.addresses import Forbidden
from agentvm_kernel.errors import AgentVMError

_THREADS: Final = 16
_MOST_ADDRESSES: Final = 16
_NEXT_ADDRESS: Final = 0.25
"""Seconds until the next address is tried beside one that does not answer (RFC 8305, section 8)."""

Found = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]
"""One of getaddrinfo's answers."""


class UnreachableError(AgentVMError):
    """A name is not known, or none of its addresses answers."""

    code = "unreachable"


class Lookup(Protocol):
    """How names are looked up; blocks."""

    def __call__(self, name: str, port: int) -> list[Found]:
        """Return a name's addresses.

        Args:
            name: The normalised name.
            port: The port.

        Raises:
            OSError: it has none.
        """


def system_lookup(name: str, port: int) -> list[Found]:
    """Look a name up as the host's configuration says, as it stands: never as part of a search domain.

    Args:
        name: The normalised name.
        port: The port.

    Raises:
        OSError: it has no address.
    """
    flags = socket.AI_ADDRCONFIG
    return socket.getaddrinfo(f"{name}.", port, type=socket.SOCK_STREAM, flags=flags)  # type: ignore[return-value]


class Resolver:
    """Looks names up in threads of its own, so that slow name servers hold up nothing else.

    Args:
        lookup: How names are looked up.
        seconds: Time for one name.
    """

    def __init__(self, lookup: Lookup = system_lookup, seconds: float = 10.0) -> None:
        self._lookup = lookup
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolver")

    def close(self) -> None:
        """Look up nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, name: str, port: int) -> list[Found]:
        """Return a name's addresses.

        Args:
            name: The normalised name.
            port: The port.

        Raises:
            UnreachableError: it has none, or the answer took too long.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                found = await loop.run_in_executor(self._threads, functools.partial(self._lookup, name, port))
        except TimeoutError as error:
            raise UnreachableError(f"The name servers did not answer about {name} in time.") from error
        except (OSError, UnicodeError) as error:
            raise UnreachableError(f"{name} is not known to the host's name servers.", "Is it spelt right?") from error
        if not found:
            raise UnreachableError(f"{name} has no address.")
        return found[:_MOST_ADDRESSES]


async def connect(
    name: str, found: list[Found], forbidden: Forbidden
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to one of a name's addresses, if all of them may be connected to.

    Args:
        name: The name, for messages.
        found: Its addresses.
        forbidden: Which are never connected to.

    Raises:
        ForbiddenAddressError: one of them is never connected to.
        UnreachableError: none of them answers.
    """
    for *_, address in found:
        forbidden.check(name, address[0])
    try:
        connection = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS)
        return await asyncio.open_connection(sock=connection)
    except OSError as error:
        raise UnreachableError(f"{name} cannot be connected to: {error.strerror or error}.") from error
