"""What the user's processes may use together, as the owner sets it: at the identity step, with the clock, at any time.

They protect from accidents. The user is root where they like and can lift them; the host's own limits are the fence.
"""

from __future__ import annotations

from typing import NamedTuple

from agentvm_guest.identity import RequestError, read_integer

_MOST_PROCESSES = 1 << 22
_MOST_FILES = 1 << 20
_MOST_MIB = 1 << 32


class UserLimits(NamedTuple):
    """Limits on the user's processes.

    Attributes:
        processes: How many there may be, threads included.
        open_files: Files that each may have open.
        memory_mib: What they may use together, MiB; None for all that the VM can spare.
    """

    processes: int
    open_files: int
    memory_mib: int | None


# What holds until the owner says otherwise.
START = UserLimits(8192, 65_536, None)
# Others, so that setting them is gone through once before anybody waits for it.
REHEARSED = UserLimits(4096, 32_768, 1 << 20)


def parse_limits(value: object) -> UserLimits:
    """Read the limits of a request.

    Raises:
        RequestError: naming the field that is not valid.
    """
    if not isinstance(value, dict):
        raise RequestError("limits is not an object")
    memory = None if value.get("memory_mib") is None else read_integer(value, "memory_mib", _MOST_MIB)
    return UserLimits(
        read_integer(value, "processes", _MOST_PROCESSES + 1),
        read_integer(value, "open_files", _MOST_FILES + 1),
        memory,
    )
