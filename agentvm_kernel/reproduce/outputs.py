"""What a cell shows, in a form in which two of them can be compared: texts by stream, displays by MIME type."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from agentvm_kernel.firewall.bundles import joined
from agentvm_kernel.run.provenance import KEY

WIDGET: Final = "application/vnd.jupyter.widget-view+json"
_MOST: Final = 10_000
_CHANCE: Final = {
    # As `agentvm_kernel.kernel.network.note` puts it: what the host knows of when a cell ends.
    "refusals": re.compile(
        r"^Refused by the network policy: [^\n]{1,2000}\n(?:[^\n]{1,300}\n){0,5}?%net log shows all\.\n", re.MULTILINE
    ),
    # Said on slow hosts only, at the first plot.
    "font-cache": re.compile(r"^Matplotlib is building the font cache; this may take a moment\.\n", re.MULTILINE),
}
"""What stands on standard error or not as chance has it."""

Kind = Literal["stdout", "stderr", "display", "error"]


@dataclass(frozen=True)
class Part:
    """One thing that a cell shows.

    Attributes:
        kind: What of: all that went to a stream, a display or result, an error.
        data: Texts by MIME type; a stream's and an error's is ``text/plain``.
    """

    kind: Kind
    data: Mapping[str, str]


def parts_of(outputs: Iterable[Mapping[str, Any]]) -> list[Part]:
    """Return what a cell shows: its streams, each as one text, then displays and errors as they came.

    The line of what the cell cost is left out, and so is what stands on standard error or not by chance. In which
    order programs write to two streams is chance, too, and so is into how many outputs a front end divides them.

    Args:
        outputs: As a notebook has them.
    """
    streams: dict[str, list[str]] = {"stdout": [], "stderr": []}
    others: list[Part] = []
    for output in outputs:
        kind = output.get("output_type")
        if is_footer(output):
            continue
        if kind == "stream":
            streams["stderr" if output.get("name") == "stderr" else "stdout"].append(joined(output.get("text")) or "")
        elif kind == "error":
            others.append(Part("error", {"text/plain": _error(output)}))
        elif kind in {"display_data", "execute_result"} and isinstance(output.get("data"), Mapping):
            others.append(Part("display", {str(mime): _text(str(mime), one) for mime, one in output["data"].items()}))
    texts = {name: _as_seen("".join(pieces)) for name, pieces in streams.items()}
    for pattern in _CHANCE.values():
        texts["stderr"] = pattern.sub("", texts["stderr"])
    found = [Part(name, {"text/plain": texts[name]}) for name in ("stdout", "stderr") if texts[name]]
    return [*found, *others][:_MOST]


def is_footer(output: Mapping[str, Any]) -> bool:
    """Return whether an output is the line of what the cell cost, as its metadata says."""
    metadata = output.get("metadata")
    said = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    return isinstance(said, Mapping) and said.get("facts") is True


def chances(outputs: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return what stands on standard error by chance, by its name."""
    said = "".join(joined(one.get("text")) or "" for one in outputs if one.get("name") == "stderr")
    return {name: pattern.findall(said) for name, pattern in _CHANCE.items()}


def has_error(outputs: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a cell shows an error."""
    return any(output.get("output_type") == "error" for output in outputs)


def _error(output: Mapping[str, Any]) -> str:
    trace = output.get("traceback")
    lines = [str(line) for line in trace] if isinstance(trace, list) else []
    return "\n".join([f"{output.get('ename')}: {output.get('evalue')}", *lines])


def _text(mime: str, value: Any) -> str:
    if mime == WIDGET:
        return ""  # its model has another id each time
    text = joined(value)
    if text is not None and not mime.endswith("json"):
        return "".join(text.split()) if mime.startswith("image/") and mime != "image/svg+xml" else text
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False)


def _as_seen(text: str) -> str:
    """Return lines as a terminal leaves them where a carriage return took back what stood there."""
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
