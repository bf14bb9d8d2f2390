"""Which names a snapshot may have."""

from __future__ import annotations

import re
from typing import Final

from agentvm_kernel.errors import SnapshotError

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_ID: Final = re.compile(r"[0-9a-f]{12}", re.ASCII)

RULE: Final = (
    "A label is 1 to 64 characters long: ASCII letters, digits, dots, underscores and dashes, a letter or digit first"
)


def check_label(text: str) -> str:
    """Return a label that is valid.

    Args:
        text: What a user, or an imported file, says that it is.

    Raises:
        SnapshotError: it is no valid label; the message says what is.
    """
    if not _LABEL.fullmatch(text):
        raise SnapshotError(f"{text[:32]!a} is no valid label. {RULE}.")
    if _ID.fullmatch(text):
        raise SnapshotError(f"{text!a} is no valid label: twelve hexadecimal digits would be taken for an id.")
    return text
