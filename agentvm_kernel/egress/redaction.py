"""Takes secrets out of bytes that come back: whole, or as they stream by."""

from __future__ import annotations

import base64
import html
import json
import re
import urllib.parse
from collections.abc import Iterable
from typing import Final

_FILLER: Final = b"*"


class Redaction:
    """Puts placeholders over secrets, without changing any length, so that no framing has to change either.

    A secret is found as it is and in the forms in which servers usually quote what they were sent: in JSON, in HTML,
    percent-encoded, in Base64.

    Args:
        secrets: Values and their placeholders.
        encoded: Texts that hold a secret in some other form; they are blotted out.
    """

    def __init__(self, secrets: Iterable[tuple[bytes, bytes]], encoded: Iterable[bytes] = ()) -> None:
        masks = {form: placeholder for value, placeholder in secrets for form in _forms(value)}
        masks |= dict.fromkeys(encoded, b"agentvm-secret")
        self._masks = {form: (mask + _FILLER * len(form))[: len(form)] for form, mask in masks.items()}
        # The longest first: one form may begin with another.
        self._forms = sorted(self._masks, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms))) if self._forms else None
        self._held = b""

    def whole(self, data: bytes) -> bytes:
        """Return bytes without the secrets.

        Args:
            data: All there is of them.
        """
        return self._pattern.sub(lambda found: self._masks[found[0]], data) if self._pattern else data

    def feed(self, data: bytes) -> bytes:
        """Return what can go on of a stream: all but an end that may be the beginning of a secret.

        Args:
            data: What came.
        """
        clean = self.whole(self._held + data)
        held = self._open_end(clean)
        self._held = clean[len(clean) - held :]
        return clean[: len(clean) - held]

    def rest(self) -> bytes:
        """Return what was held back, once nothing more comes."""
        held, self._held = self._held, b""
        return held

    def _open_end(self, data: bytes) -> int:
        longest = min(len(self._forms[0]) - 1, len(data)) if self._forms else 0
        ends = (length for length in range(longest, 0, -1) if self._begins_form(data[-length:]))
        return next(ends, 0)

    def _begins_form(self, end: bytes) -> bool:
        return any(form.startswith(end) for form in self._forms)


def _forms(value: bytes) -> set[bytes]:
    text = value.decode("ascii")
    quoted = json.dumps(text)[1:-1]
    return {
        value,
        quoted.encode(),
        quoted.replace("/", "\\/").encode(),
        html.escape(text).encode(),
        urllib.parse.quote(text, safe="").encode(),
        urllib.parse.quote_plus(text).encode(),
        base64.b64encode(value),
    }
