"""Why output was not let through, in a few words; `docs/output.md` says more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agentvm_kernel.firewall.reasons import Reason

WORDS: Final[Mapping[Reason, str]] = {
    Reason.MESSAGE: "a message that no guest may send",
    Reason.MIME: "output of a type that is not known to be safe",
    Reason.SCRIPT: "a script",
    Reason.MARKUP: "markup that reaches into the page",
    Reason.STYLE: "a style that draws over the page, or fetches",
    Reason.REMOTE: "something that would be fetched from another host",
    Reason.LINK: "a link that does more than lead somewhere",
    Reason.RENDERER: "a plot's wish to fetch or to run something",
    Reason.TERMINAL: "control sequences for a terminal",
    Reason.PAYLOAD: "a wish to change the notebook or the page",
    Reason.COMM: "a connection to a part of the page that is not known",
    Reason.WIDGET: "a widget, or a part of one, that is not known to be safe",
    Reason.INPUT: "a question for input that no cell asks",
    Reason.SIZE: "output that is too large",
    Reason.RATE: "output that comes too fast",
    Reason.MALFORMED: "a message that no sense can be made of",
}
