"""The hostile outputs of ``tests/security/hostile_outputs``, as cells that produce them and as what they try to do.

A group is a TOML file. Its cases are markup of one MIME type, whole MIME bundles as JSON, or code. Marks stand for what
is known only when they run: ``@ID@`` names the case; ``@JS@`` and ``@SHORT@`` are a script that reports that it ran;
``@URL@`` is an address on the canary, another origin than Jupyter's; ``@HOST@`` is its host and port.
"""

from __future__ import annotations

import base64
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "security" / "hostile_outputs"

_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="
_DEPTH = 600


@dataclass(frozen=True)
class Case:
    """One hostile output.

    Attributes:
        id: Its name, which is what it reports; letters, digits and hyphens.
        source: The cell that produces it.
    """

    id: str
    source: str


@dataclass(frozen=True)
class Target:
    """What hostile outputs try to reach.

    Attributes:
        canary: Host and port of a server on another origin than Jupyter's.
        jupyter: Address of the Jupyter server, without a slash at its end.
    """

    canary: str
    jupyter: str


def groups() -> list[str]:
    """Return the names of all groups."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def cases(group: str, target: Target) -> list[Case]:
    """Return the cases of a group, aimed at a target."""
    content = tomllib.loads((FOLDER / f"{group}.toml").read_text())
    return [
        _case(content, f"{group}-{name}".replace("_", "-"), text, target) for name, text in content["cases"].items()
    ]


def prepare(group: str) -> str:
    """Return the cell that goes before the cases of a group."""
    content = tomllib.loads((FOLDER / f"{group}.toml").read_text())
    return str(content.get("prepare", "from IPython.display import display"))


def _case(content: dict[str, Any], name: str, text: str, target: Target) -> Case:
    filled = _fill(text, name, target)
    match content.get("kind", "mime"):
        case "code":
            source = filled.strip()
        case "bundle":
            data = json.loads(filled)
            metadata = data.pop("metadata", {})
            # As text: a deep one is more than Python's parser takes.
            arguments = f"json.loads({json.dumps(data)!r}), metadata=json.loads({json.dumps(metadata)!r})"
            source = f"import json\ndisplay({arguments}, raw=True)"
        case _:
            source = f"display({{{content['mime']!r}: {filled!r}}}, raw=True)"
    return Case(name, source)


def _fill(text: str, name: str, target: Target) -> str:
    # Scripts have no double quotes, ampersands or angle brackets, so that they fit everywhere.
    script = (
        f"(function(i){{try{{(top.__canary=top.__canary||[]).push(i)}}catch(e){{}}"
        f"new Image().src='http://{target.canary}/{name}.png';"
        f"fetch('{target.jupyter}/canary-{name}',{{mode:'no-cors'}}).catch(function(){{}})}})('{name}')"
    )
    short = f"eval(atob(`{_base64(script)}`))"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" id="x" onload="{script}"><script>{short}</script></svg>'
    marks = {
        "@JS@": script,
        "@SHORT@": short,
        "@B64@": _base64(script),
        "@SVG64@": _base64(svg),
        "@HTML64@": _base64(f"<script>{script}</script>"),
        "@PNG64@": _PNG,
        "@PNG@": f"data:image/png;base64,{_PNG}",
        "@WAV@": f"data:audio/wav;base64,{_WAV}",
        "@MANY@": "x" * 100_000,
        "@DEEP@": "<div>" * _DEPTH,
        "@DEEPJSON@": "[" * _DEPTH + "]" * _DEPTH,
        "@URL@": f"http://{target.canary}/{name}",
        "@HOST@": target.canary,
        "@SERVER@": target.jupyter,
        "@ID@": name,
    }
    for mark, value in marks.items():
        text = text.replace(mark, value)
    return text


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
