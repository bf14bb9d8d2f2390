"""The output firewall: one message of the guest in, what may be shown of it out."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from threading import Lock
from typing import Final

from agentvm_kernel.firewall.bundles import clean_bundle, joined
from agentvm_kernel.firewall.comms import CommGuard
from agentvm_kernel.firewall.context import Block, Context, Mode
from agentvm_kernel.firewall.plots import clean_json
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.replies import clean_error, clean_reply
from agentvm_kernel.firewall.text import clean_text, sound

log = logging.getLogger("agentvm.firewall")

MAX_BYTES: Final = 32 << 20
MAX_ELEMENTS: Final = 500_000
PROMPT: Final = "[VM] "
_LONGEST_PROMPT: Final = 2000
_MOST_FAILURES: Final = 100
_DISPLAY_ID: Final = re.compile(r"[ -~]{1,256}\Z")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_ASKS: Final = re.compile(r"getpass")

Content = dict[str, object]
_DEFAULT: Final = Policy()


@dataclass(frozen=True)
class Shown:
    """What may be passed on of a message."""

    content: Content
    metadata: Content = field(default_factory=dict)
    buffers: Sequence[bytes] = ()


class Firewall:
    """Checks and cleans everything that a guest says, before any client sees it; one per kernel.

    It never raises: what it cannot make sense of is blocked. Outputs are cleaned one after the other, in any thread;
    replies at any time.

    Args:
        policy: What the user has allowed.

    Attributes:
        policy: The same.
        blocked: How much was blocked, by reason.
        is_host_code: Whether code would be carried out by the host rather than in the VM; the router sets it.
    """

    def __init__(self, policy: Policy = _DEFAULT) -> None:
        self.policy = policy
        self.blocked: Counter[Reason] = Counter()
        self.is_host_code: Callable[[str], bool] = lambda _: False
        self._counting = Lock()
        self._failed: set[str] = set()
        self._comms = CommGuard(self._stored_output, policy.comm_targets)

    def output(
        self, msg_type: str, content: bytes, metadata: bytes, buffers: Sequence[bytes], block: Block
    ) -> Shown | None:
        """Clean a message of iopub that is no status and no ``execute_input``.

        Args:
            msg_type: Its type.
            content: As the guest sent it; known to be a JSON object.
            metadata: The same.
            buffers: Binary data that goes with it.
            block: Takes what was blocked.

        Returns:
            What may be shown, or None.
        """
        context = self._context(block)
        value, about = self._parsed(content, context), self._parsed(metadata, context)
        if value is None or about is None:
            return None
        try:
            return self._output(msg_type, value, about, buffers, context)
        except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
            self._log_failure(msg_type)
            context.block(Reason.MALFORMED, "a message that could not be understood")
            return None

    def reply(self, msg_type: str, content: bytes, block: Block) -> Content:
        """Clean the content of a reply; one that makes no sense becomes an error."""
        context = self._context(block)
        value = self._parsed(content, context)
        try:
            if value is not None:
                return clean_reply(msg_type, value, self.is_host_code, context)
        except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
            self._log_failure(msg_type)
            context.block(Reason.MALFORMED, "a reply that could not be understood")
        return {
            "status": "error",
            "ename": "OutputBlocked",
            "evalue": "The reply of the VM was blocked.",
            "traceback": [],
        }

    def prompt(self, content: bytes, code: str, block: Block) -> Content:
        """Clean an input request: the VM is named as who asks, and masked input is for code that asks for it.

        Args:
            content: Of the request.
            code: Of the cell on whose behalf it comes.
            block: Takes what was blocked.
        """
        context = self._context(block)
        value = self._parsed(content, context) or {}
        text = joined(value.get("prompt")) or ""
        masked = value.get("password") is True
        if masked and not _ASKS.search(code):
            context.block(Reason.INPUT, "masked input that the cell's own code does not ask for: it is shown as typed")
            masked = False
        return {"prompt": PROMPT + clean_text(text[:_LONGEST_PROMPT], context), "password": masked}

    def opened_by_client(self, content: Mapping[str, object]) -> None:
        """Take notice of a comm that a client has opened."""
        self._comms.opened_by_client(content)

    def _log_failure(self, msg_type: str) -> None:
        """Log the first failure with a type of message, so that a guest cannot flood the log."""
        if msg_type not in self._failed and len(self._failed) < _MOST_FAILURES:
            self._failed.add(msg_type)
            log.exception("a %s could not be cleaned", msg_type)

    def _context(self, block: Block) -> Context:
        def counted(reason: Reason, words: str) -> None:
            with self._counting:
                self.blocked[reason] += 1
            block(reason, words)

        policy = self.policy
        return Context(policy.mode, counted, policy.frame_hosts, policy.widget_modules, policy.mime_types)

    def _parsed(self, data: bytes, context: Context) -> Content | None:
        """Parse an object if that takes no more memory than a kernel may have for it."""
        if len(data) > MAX_BYTES or sum(map(data.count, (b"[", b"{", b","))) > MAX_ELEMENTS:
            context.block(Reason.SIZE, "a message of more than 32 MiB or 500,000 elements")
            return None
        try:
            # Text, not bytes: of those Python takes UTF-16 as well, in which halves of pairs are not found.
            value = json.loads(data.decode(), parse_float=_finite, parse_constant=_no_number)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            context.block(Reason.MALFORMED, "a message that is no JSON object")
            return None
        if _SURROGATE.search(data):
            value = {str(sound(key)): sound(item) for key, item in value.items()}
        return value

    def _output(
        self, msg_type: str, value: Content, about: Content, buffers: Sequence[bytes], context: Context
    ) -> Shown | None:
        content: object = None
        match msg_type:
            case "stream":
                return _stream(value, context)
            case "display_data" | "update_display_data" | "execute_result":
                return _display(msg_type, value, context)
            case "comm_open" | "comm_msg" | "comm_close":
                return self._comm(msg_type, value, about, buffers, context)
            case "error":
                content = clean_error(value, context)
            case "clear_output":
                content = {"wait": value.get("wait") is True}
            case "debug_event":
                content = clean_json(value, context)
            case _:
                context.block(Reason.MESSAGE, "a message of a type that notebooks do not have")
        return Shown(content) if isinstance(content, dict) else None

    def _comm(
        self, msg_type: str, value: Content, about: Content, buffers: Sequence[bytes], context: Context
    ) -> Shown | None:
        if msg_type == "comm_close":
            closed = self._comms.closed(value, context)
            return Shown(closed) if closed else None
        take = self._comms.opened if msg_type == "comm_open" else self._comms.message
        passed = take(value, about, buffers, context)
        return Shown(passed.content, passed.metadata, passed.buffers) if passed else None

    def _stored_output(self, output: Content, context: Context) -> Content | None:
        """Clean an output as a notebook stores it."""
        kind = output.get("output_type")
        if kind == "stream":
            text = _stream(output, context)
            return {"output_type": kind} | text.content if text else None
        if kind == "error":
            return {"output_type": kind} | clean_error(output, context)
        if kind not in {"display_data", "execute_result"}:
            return None
        bundle = clean_bundle(output.get("data"), output.get("metadata"), context)
        if bundle is None:
            return None
        cleaned: Content = {"output_type": kind, "data": bundle[0], "metadata": bundle[1]}
        return cleaned | ({"execution_count": None} if kind == "execute_result" else {})


def _finite(text: str) -> float | None:
    """Return a number that JSON has; one beyond all bounds is none."""
    value = float(text)
    return value if isfinite(value) else None


def _no_number(_name: str) -> None:
    """Stand for what JSON does not have: ``NaN`` and the like."""


def _stream(value: Content, context: Context) -> Shown | None:
    text = joined(value.get("text"))
    if text is None:
        context.block(Reason.MALFORMED, "a text that is none")
        return None
    name = "stderr" if value.get("name") == "stderr" else "stdout"
    return Shown({"name": name, "text": text if context.mode is Mode.TRUSTED else clean_text(text, context)})


def _display(msg_type: str, value: Content, context: Context) -> Shown | None:
    bundle = clean_bundle(value.get("data"), value.get("metadata"), context)
    if bundle is None:
        return None
    content: Content = {"data": bundle[0], "metadata": bundle[1], "transient": {}}
    transient = value.get("transient")
    name = transient.get("display_id") if isinstance(transient, dict) else None
    if isinstance(name, str) and _DISPLAY_ID.match(name):
        content["transient"] = {"display_id": name}
    if msg_type == "execute_result":
        count = value.get("execution_count")
        is_count = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 1 << 31
        content["execution_count"] = count if is_count else 0
    return Shown(content)
