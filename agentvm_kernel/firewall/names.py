"""Names the guest gives its elements: kept, but under a prefix that no front end uses for anything of its own.

Without it an ``id`` could stand in for a variable of the page (DOM clobbering), and a class could borrow the looks and
the behaviour of a dialog of the front end.
"""

from __future__ import annotations

import re
from typing import Final

PREFIX: Final = "vm-"
SCOPE_PREFIX: Final = "agentvm-scope-"
"""Of the class that a style sheet's rules are bound to; only the host gives it, see ``css.py``."""

HOST_PREFIX: Final = "agentvm-"
"""Of the ids of comms that the host owns: nothing of the guest's bears it, or refers to what does."""

HOST_MIME: Final = "application/vnd.agentvm."
"""Beginning of the MIME types that are the host's own: nothing of the guest's has one, whatever is allowed."""

_SHARED: Final = frozenset({"dataframe"})
"""Classes that front ends style for everyone's tables and attach no behaviour to."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,200}\Z")


def prefixed(name: str) -> str | None:
    """The name as it may be shown, or None if it is no plain name; a name that has the prefix stays as it is."""
    if not _NAME.match(name) or name.startswith(SCOPE_PREFIX):
        return None
    if name in _SHARED or name.startswith(PREFIX):
        return name
    return PREFIX + name


def prefixed_list(names: str) -> str | None:
    """The same for names with spaces between them, as in ``class``; None if nothing is left."""
    return " ".join(name for name in map(prefixed, names.split()) if name) or None


def words(text: str) -> frozenset[str]:
    """A set of words written as one text, for the allow-lists."""
    return frozenset(text.split())
