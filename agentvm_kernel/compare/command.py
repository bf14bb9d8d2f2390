"""``agentvm snapshot diff``: what differs between two snapshots."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

import typer
from rich.text import Text

from agentvm_kernel.compare.comparison import Comparison
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.snapshots.command import find_sound, open_store
from agentvm_kernel.snapshots.quota import readable_size
from agentvm_kernel.supervisor.messages import LeaseRequest
from agentvm_kernel.terminal import add_row, console, table

_Ref = Annotated[str, typer.Argument(metavar="REF", help="Label, id, or at least 4 digits of its beginning.")]

_MARKS: Final = {"added": "+", "removed": "-", "changed": "~"}

_out = console()


def diff(
    a: _Ref,
    b: _Ref,
    notebook: Annotated[str, typer.Option("--notebook", help="Name of the notebook; all by default.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what differs between two snapshots: files, packages, processes, variables. Their guests say it.

    Each is cloned for a moment, without a network, and asked. A file counts as changed if its size or the time of its
    last change differs.
    """
    store = open_store()
    (tree, first), (other, second) = (find_sound(store, reference, notebook) for reference in (a, b))
    if tree.id != other.id:
        raise SnapshotError("The two are of different notebooks.", "Only snapshots of one notebook can be compared.")
    found = asyncio.run(_compare(tree.notebook, first.id, second.id))
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        _show(found)


async def _compare(notebook: str, a: str, b: str) -> Comparison:
    """Compare with a lease of our own: it is there whether the notebook runs or not."""
    from agentvm_kernel.compare.comparer import Comparer  # noqa: PLC0415 - other commands need not wait for them
    from agentvm_kernel.run.lease import grant_of  # noqa: PLC0415
    from agentvm_kernel.supervisor.client import SupervisorClient  # noqa: PLC0415

    request = LeaseRequest(owner="agentvm snapshot diff", notebook=notebook, mode="isolated")
    async with SupervisorClient(Paths.of_user()) as client, client.lease(request) as lease:
        granted = await grant_of(lease, lambda _stage, _done: None)
        return await Comparer(client).compare(granted.lease, a, b)


def _show(found: Comparison) -> None:
    parts = (("files", found.files), ("packages", found.packages), ("processes", found.processes))
    for title, part in (*parts, ("variables", found.variables)):
        more = ", not all of them listed" if part.truncated else ""
        _out.print(Text(f"{title}: {part.count or 'nothing'} changed{more}", style="bold"))
        shown = table("", "what", "before", "after")
        for name, mark in _MARKS.items():
            for one in getattr(part, name):
                add_row(shown, mark, *_cells(name, one))
        if part.count:
            _out.print(shown)
    _out.print(Text("As the guests say; nobody vouches for it."))


def _cells(name: str, one: object) -> tuple[str, str, str]:
    """Return what it is, how it was and how it is now."""
    if isinstance(one, str):
        return one, "", ""
    values = dict(one)  # type: ignore[call-overload]
    what = str(values.pop("path", "") or values.pop("name"))
    source = values.pop("source", "")
    texts = [readable_size(value) if isinstance(value, int) else value for value in values.values()]
    what = f"{what} ({source})" if source == "debian" else what
    if name == "changed":
        return what, texts[0], texts[1]
    said = ", ".join(filter(None, texts))
    return (what, said, "") if name == "removed" else (what, "", said)
