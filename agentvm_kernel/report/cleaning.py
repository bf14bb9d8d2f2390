"""What a notebook's file holds, as it may stand in a page: cleaned again, whatever was let through before.

The file may have been changed by anybody since. So its outputs pass the firewall in its strict mode, in which no script
and no address of another host is left, and what is shown beside them can be told from them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from markupsafe import Markup

from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.firewall import Firewall
from agentvm_kernel.firewall.images import TYPES
from agentvm_kernel.firewall.markdown import clean_markdown
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.report.document import Output

MOST_TEXT: Final = 20_000
MOST_MARKUP: Final = 1 << 20
MOST_PICTURE: Final = 8 << 20
MOST_OUTPUTS: Final = 200
MOST_OF_PAGE: Final = 64 << 20

_STEERING: Final = re.compile(r"\x1b\[[0-9;:]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# They change in which order text is read: what is shown as one thing would be another.
_DIRECTIONS: Final = re.compile("[\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Shown:
    """One output as it stands in the page.

    Attributes:
        kind: ``text``, ``stderr``, ``error``, ``markup``, ``picture`` or ``note``; a note is the report's own.
        html: HTML that is safe.
    """

    kind: str
    html: Markup


class Cleaner:
    """Cleans what stands in one notebook.

    Attributes:
        left_out: How much was taken out, by reason.
    """

    def __init__(self) -> None:
        self.left_out: Counter[Reason] = Counter()
        self._policy = Policy(mode=Mode.STRICT)
        self._room = MOST_OF_PAGE

    def outputs(self, outputs: tuple[Output, ...]) -> list[Shown]:
        """Return a cell's outputs."""
        shown = [self._output(output) for output in outputs[:MOST_OUTPUTS]]
        if (more := len(outputs) - MOST_OUTPUTS) > 0:
            shown.append(_note(f"{more} more outputs are left out; the notebook's file has them."))
        return [self._fitting(one) for one in shown if one is not None]

    def markdown(self, text: str) -> Markup:
        """Return a Markdown cell."""
        html = clean_markdown(text, Context(Mode.STRICT, self._block))
        return self._fitting(Shown("markup", safe(html or f"<pre>{escape(text[:MOST_TEXT])}</pre>"))).html

    def _output(self, output: Output) -> Shown | None:
        kind = str(output.get("output_type"))
        content = json.dumps(output).encode()
        # A firewall of its own: what one output says must not change how the next is taken.
        shown = Firewall(self._policy).output(kind, content, b"{}", [], self._block)
        if shown is None:
            return _note("An output is left out: it is of a kind that cannot be shown safely.")
        if kind == "stream":
            name = "stderr" if shown.content["name"] == "stderr" else "text"
            return _text(name, str(shown.content["text"]))
        if kind == "error":
            lines = shown.content.get("traceback")
            text = "\n".join(map(str, lines)) if isinstance(lines, list) and lines else ""
            return _text("error", text or f"{shown.content.get('ename')}: {shown.content.get('evalue')}")
        data = shown.content.get("data")
        return _bundle(data if isinstance(data, dict) else {})

    def _fitting(self, one: Shown) -> Shown:
        self._room -= len(one.html)
        return one if self._room >= 0 else _note("Left out: the page is full; the notebook's file has it.")

    def _block(self, reason: Reason, _words: str) -> None:
        self.left_out[reason] += 1


def plain(text: str) -> str:
    """Return text without what steers terminals or turns the order in which it is read."""
    return _DIRECTIONS.sub("\N{REPLACEMENT CHARACTER}", _STEERING.sub("", text))


def _bundle(data: dict[str, Any]) -> Shown:
    """Return the richest of what an output consists of that a page without scripts can show."""
    picture = next((mime for mime in TYPES if mime in data), None)
    if picture is not None:
        content = "".join(str(data[picture]).split())
        if len(content) > MOST_PICTURE:
            return _note("A picture of more than 8 MiB is left out; the notebook's file has it.")
        return Shown("picture", safe(f'<img alt="" src="data:{picture};base64,{content}">'))
    html = data.get("text/html")
    if isinstance(html, str) and len(html) <= MOST_MARKUP:
        return Shown("markup", safe(html))
    for mime in ("text/latex", "text/plain"):
        if isinstance(data.get(mime), str):
            return _text("text", data[mime])
    if not data:
        return _note("Nothing of an output can be shown safely.")
    return _note("An output can be shown in Jupyter only: it is an interactive plot, a widget, or too large.")


def _text(kind: str, text: str) -> Shown:
    shown, more = plain(text[:MOST_TEXT]), len(text) - MOST_TEXT
    note = (
        f'<p class="note">{more} more characters are left out; the notebook\'s file has them.</p>' if more > 0 else ""
    )
    return Shown(kind, safe(f"<pre>{escape(shown)}</pre>{note}"))


def _note(text: str) -> Shown:
    return Shown("note", safe(f'<p class="note">{escape(text)}</p>'))


def safe(html: str) -> Markup:
    """Mark HTML as safe that the firewall, or this package, has made."""
    return Markup(html)  # nosec B704 - see above
