"""Replies: each field by its own rule, written anew; what has no rule is not passed on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from agentvm_kernel.firewall.bundles import clean_bundle, joined
from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.names import HOST_PREFIX
from agentvm_kernel.firewall.plots import clean_json
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.text import clean_text

Content = dict[str, object]

_WORD: Final = re.compile(r"[0-9A-Za-z_.:-]{1,128}\Z")
_VERSION: Final = re.compile(r"[0-9A-Za-z.+-]{1,32}\Z")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")
# VS Code takes some colours out before it looks for links, so they may stand within a word.
_ANCHOR: Final = re.compile(r"<(?=(?:\x1b\[[0-9;:]*m)*a)", re.IGNORECASE)
_PLACE: Final = re.compile(r"Cell\s*+In\s*+\[|Input\s++In\s*+\[|File\s")
_LINE: Final = re.compile(r":\d")
_LONGEST: Final = 4096
_MATCHES: Final = 10_000
_EXPRESSIONS: Final = 1000
_PAYLOADS: Final = 16
_STATUSES: Final = frozenset({"ok", "error", "aborted", "abort"})
_CODE_STATES: Final = frozenset({"complete", "incomplete", "invalid", "unknown"})
_COMPLETION: Final = "_jupyter_types_experimental"


def clean_error(content: Mapping[str, object], context: Context) -> Content:
    """The three fields of an error, as text."""
    lines = content.get("traceback")
    return {
        "ename": _text(content.get("ename"), context)[:_LONGEST],
        "evalue": _text(content.get("evalue"), context),
        "traceback": [_unlinked(_text(line, context)) for line in lines] if isinstance(lines, list) else [],
    }


def _unlinked(text: str) -> str:
    """Keep a traceback from becoming markup: VS Code writes links in it, and around the places it names, as HTML.

    An invisible character parts ``<`` from ``a``; a quote in the name of a place becomes another.
    """
    if "<" in text:
        text = _ANCHOR.sub("<\N{WORD JOINER}", text)
    if "'" not in text:
        return text
    lines = text.split("\n")
    return "\n".join(line.replace("'", "\u2019") if _is_place(_COLOUR.sub("", line)) else line for line in lines)


def _is_place(line: str) -> bool:
    found = _PLACE.search(line)
    return found is not None and (not found[0].startswith("File") or _LINE.search(line, found.end()) is not None)


def clean_reply(
    msg_type: str, content: Mapping[str, object], is_host_code: Callable[[str], bool], context: Context
) -> Content:
    """Clean the content of a reply on shell or control.

    Args:
        msg_type: Its type.
        content: Its content.
        is_host_code: Whether code would be carried out by the host, and so must not be put into a cell by the guest.
        context: Of the message.
    """
    status = content.get("status")
    cleaned: Content = {"status": status if status in _STATUSES or msg_type == "is_complete_reply" else "error"}
    if status == "error" and msg_type != "is_complete_reply":
        cleaned |= clean_error(content, context)
    if msg_type == "execute_reply":
        return cleaned | _executed(content, is_host_code, context)
    rules = {
        "inspect_reply": _inspected, "complete_reply": _completed, "is_complete_reply": _is_complete,
        "history_reply": _history, "comm_info_reply": _comms, "kernel_info_reply": _info, "debug_reply": _debugged,
    }  # fmt: skip
    if msg_type in rules:
        return cleaned | rules[msg_type](content, context)
    return cleaned | _subshells(content)


def _text(value: object, context: Context) -> str:
    text = joined(value)
    return clean_text(text, context) if text is not None else ""


def _number(value: object, least: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 31 else 0


def _executed(content: Mapping[str, object], is_host_code: Callable[[str], bool], context: Context) -> Content:
    cleaned: Content = {"execution_count": _number(content.get("execution_count"))}
    asked = content.get("user_expressions")
    expressions = list(asked.items())[:_EXPRESSIONS] if isinstance(asked, dict) else []
    cleaned["user_expressions"] = {name: _expression(value, context) for name, value in expressions}
    given = content.get("payload")
    kept = [_payload(item, is_host_code, context) for item in given[:_PAYLOADS]] if isinstance(given, list) else []
    cleaned["payload"] = [item for item in kept if item is not None]
    return cleaned


def _expression(value: object, context: Context) -> Content:
    given = value if isinstance(value, dict) else {}
    if given.get("status") != "ok":
        return {"status": "error", **clean_error(given, context)}
    data, metadata = clean_bundle(given.get("data"), given.get("metadata"), context) or ({}, {})
    return {"status": "ok", "data": data, "metadata": metadata}


def _payload(item: object, is_host_code: Callable[[str], bool], context: Context) -> Content | None:
    given = item if isinstance(item, dict) else {}
    match given.get("source"):
        case "page":
            data = given.get("data")
            text = joined(data.get("text/plain")) if isinstance(data, dict) else None
            if text is not None:
                shown = {"text/plain": clean_text(text, context)}
                return {"source": "page", "data": shown, "start": _number(given.get("start"))}
        case "set_next_input":
            text = joined(given.get("text"))
            if text is not None and not is_host_code(text) and context.mode is not Mode.STRICT:
                proposed = clean_text(text, context)
                return {"source": "set_next_input", "text": proposed, "replace": given.get("replace") is True}
        case "ask_exit":
            return {"source": "ask_exit", "keepkernel": given.get("keepkernel") is True}
    context.block(Reason.PAYLOAD, "what a cell would have the front end do")
    return None


def _inspected(content: Mapping[str, object], context: Context) -> Content:
    data, metadata = clean_bundle(content.get("data", {}), content.get("metadata"), context) or ({}, {})
    return {"found": content.get("found") is True and bool(data), "data": data, "metadata": metadata}


def _completed(content: Mapping[str, object], context: Context) -> Content:
    cleaned: Content = {"cursor_start": _number(content.get("cursor_start"))}
    cleaned["cursor_end"] = max(_number(content.get("cursor_end")), _number(content.get("cursor_start")))
    given = content.get("matches")
    cleaned["matches"] = [item for item in given[:_MATCHES] if _is_match(item)] if isinstance(given, list) else []
    about = content.get("metadata")
    typed = about.get(_COMPLETION) if isinstance(about, dict) else None
    kept = [_typed(item, context) for item in typed[:_MATCHES]] if isinstance(typed, list) else []
    known = [item for item in kept if item is not None]
    cleaned["metadata"] = {_COMPLETION: known} if known else {}
    return cleaned


def _is_match(item: object) -> bool:
    """Whether it may be offered: front ends write completions into markup, so none has any."""
    return (
        isinstance(item, str) and len(item) <= _LONGEST and item.isprintable() and "<" not in item and "&" not in item
    )


def _typed(item: object, _context: Context) -> Content | None:
    if not isinstance(item, dict) or not _is_match(item.get("text")):
        return None
    kind, signature = item.get("type"), item.get("signature")
    return {
        "text": item["text"],
        "start": _number(item.get("start")),
        "end": _number(item.get("end")),
        "type": kind if isinstance(kind, str) and _WORD.match(kind) else "",
        "signature": signature if _is_match(signature) else "",
    }


def _is_complete(content: Mapping[str, object], _context: Context) -> Content:
    status, indent = content.get("status"), content.get("indent")
    cleaned: Content = {"status": status if status in _CODE_STATES else "unknown"}
    if status == "incomplete":
        cleaned["indent"] = indent if isinstance(indent, str) and not indent.strip(" \t") and len(indent) <= 400 else ""
    return cleaned


def _history(content: Mapping[str, object], context: Context) -> Content:
    given = content.get("history")
    entries = given[:_MATCHES] if isinstance(given, list) else []
    return {"history": [_entry(entry, context) for entry in entries if isinstance(entry, list) and len(entry) == 3]}


def _entry(entry: list[object], context: Context) -> list[object]:
    session, line, said = entry
    if isinstance(said, list):  # what was entered, and what came of it, if anything
        told: object = [clean_text(text, context) if isinstance(text, str) else None for text in said[:2]]
    else:
        told = _text(said, context)
    return [_number(session, -(1 << 31)), _number(line), told]


def _comms(content: Mapping[str, object], _context: Context) -> Content:
    given = content.get("comms")
    pairs = given.items() if isinstance(given, dict) else ()
    known: Content = {}
    for name, about in pairs:
        target = about.get("target_name") if isinstance(about, dict) else None
        if _WORD.match(name) and not name.startswith(HOST_PREFIX) and isinstance(target, str) and _WORD.match(target):
            known[name] = {"target_name": target}
    return {"comms": known}


def _info(content: Mapping[str, object], context: Context) -> Content:
    """Say which Python it is; everything else that a front end goes by is fixed."""
    language = content.get("language_info")
    told = language.get("version") if isinstance(language, dict) else None
    version = told if isinstance(told, str) and _VERSION.match(told) else "3"
    features = content.get("supported_features")
    known = [word for word in ("kernel subshells", "debugger") if isinstance(features, list) and word in features]
    implementation, protocol = content.get("implementation_version"), content.get("protocol_version")
    return {
        "protocol_version": protocol if isinstance(protocol, str) and _VERSION.match(protocol) else "5.3",
        "implementation": "ipython",
        "implementation_version": implementation
        if isinstance(implementation, str) and _VERSION.match(implementation)
        else "0",
        "language_info": {
            "name": "python", "version": version, "mimetype": "text/x-python",
            "codemirror_mode": {"name": "ipython", "version": 3}, "pygments_lexer": "ipython3",
            "nbconvert_exporter": "python", "file_extension": ".py",
        },
        "banner": _text(content.get("banner"), context)[:_LONGEST],
        "help_links": [],
        "debugger": "debugger" in known,
        "supported_features": known,
    }  # fmt: skip


def _debugged(content: Mapping[str, object], context: Context) -> Content:
    """The debug adapter protocol: front ends show its texts as text, but for the bundle of a rich inspection."""
    cleaned = clean_json(dict(content), context)
    whole = cleaned if isinstance(cleaned, dict) else {}
    body = whole.get("body")
    if isinstance(body, dict) and "data" in body:
        data, metadata = clean_bundle(body["data"], body.get("metadata"), context) or ({}, {})
        whole["body"] = body | {"data": data, "metadata": metadata}
    return whole


def _subshells(content: Mapping[str, object]) -> Content:
    cleaned: Content = {}
    told = content.get("subshell_id")
    if isinstance(told, str) and _WORD.match(told):
        cleaned["subshell_id"] = told
    elif isinstance(told, list):
        cleaned["subshell_id"] = [one for one in told if isinstance(one, str) and _WORD.match(one)]
    return cleaned
