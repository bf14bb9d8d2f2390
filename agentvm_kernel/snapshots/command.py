"""``agentvm snapshot``: look at the snapshots, and clean up among them, whether a supervisor runs or not."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.snapshots.quota import readable_size
from agentvm_kernel.snapshots.reading import Damaged, Stored
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.snapshots.tree import Tree
from agentvm_kernel.terminal import UNITS, add_row, console, plain, readable_time, table
from agentvm_kernel.vm.snapshot import Snapshot

snapshot_app = typer.Typer(
    help="Snapshots: list, show, label, remove, prune, verify, export, import.", no_args_is_help=True
)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Notebook = Annotated[str, typer.Option("--notebook", help="Name of the notebook; all by default.")]
_Ref = Annotated[str, typer.Argument(metavar="REF", help="Label, id, or at least 4 digits of its beginning.")]

_out = console()
_err = Console(stderr=True)
_DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
_SHORTEST_PREFIX = 4


def open_store(*, changing: bool = False) -> SnapshotStore:
    """Return the user's snapshots.

    Args:
        changing: They are to be changed, not only looked at.
    """
    paths = Paths.of_user()
    settings = load_settings(paths)
    owner = None
    if changing:
        from agentvm_kernel.vm.libvirt_connection import qemu_owner  # noqa: PLC0415 - loads libvirt

        owner = qemu_owner(settings.uri)
    store = SnapshotStore(
        paths.state / "snapshots", quota=settings.snapshots.quota, owner=owner,
        find_golden=lambda name: Snapshot.load(paths.cache / "golden" / name),
    )  # fmt: skip
    if changing:
        for line in store.open():
            _err.print(Text(plain(line)))
    return store


def count_built_on(image: str) -> int:
    """Return how many snapshots of notebooks build on an image.

    Args:
        image: Its digest.
    """
    return sum(one.snapshot.manifest.image == image for tree in open_store().trees() for one in tree.snapshots())


def _trees(store: SnapshotStore, notebook: str) -> list[Tree]:
    trees = store.trees()
    if not notebook:
        return trees
    chosen = [tree for tree in trees if notebook in {tree.notebook, tree.id}]
    if not chosen:
        names = ", ".join(sorted(tree.notebook or tree.id for tree in trees))
        raise SnapshotError(
            f"The notebook {notebook!r} has no snapshots.", f"There are some of: {names}." if names else ""
        )
    return chosen


def _everything(store: SnapshotStore, notebook: str) -> list[tuple[Tree, Stored | Damaged]]:
    found: list[tuple[Tree, Stored | Damaged]] = []
    for tree in _trees(store, notebook):
        contents = tree.contents()
        found += [(tree, one) for one in contents.sound]
        found += [(tree, broken) for broken in contents.damaged]
    return found


def _find(store: SnapshotStore, reference: str, notebook: str) -> tuple[Tree, Stored | Damaged]:
    """Return the one snapshot that is meant, sound or not."""
    everything = _everything(store, notebook)
    found = [(tree, one) for tree, one in everything if reference and reference in {_label(one), one.id}]
    if not found and len(reference) >= _SHORTEST_PREFIX:
        found = [(tree, one) for tree, one in everything if one.id.startswith(reference)]
    if not found:
        raise SnapshotError(f"There is no snapshot {reference!r:.80}.", "See `agentvm snapshot list`.")
    if len(found) > 1:
        which = ", ".join(f"{one.id} ({tree.notebook})" for tree, one in found)
        raise SnapshotError(f"{reference!r:.80} is {len(found)} snapshots: {which}.", "Give the id, or --notebook.")
    return found[0]


def find_sound(store: SnapshotStore, reference: str, notebook: str) -> tuple[Tree, Stored]:
    """Return the one snapshot that is meant, with its tree.

    Args:
        store: All snapshots.
        reference: Label, id, or at least 4 digits of its beginning.
        notebook: Name of its notebook; empty for any.

    Raises:
        SnapshotError: there is none, or more than one, or it is damaged.
    """
    tree, one = _find(store, reference, notebook)
    return tree, _sound(one)


def _label(one: Stored | Damaged) -> str:
    return one.notes.label if isinstance(one, Stored) else one.label


def _sound(one: Stored | Damaged) -> Stored:
    if isinstance(one, Damaged):
        raise SnapshotError(f"The snapshot {one.id} is damaged: {one.reason}.", "`agentvm snapshot rm` removes it.")
    return one


@snapshot_app.command("list")
def list_snapshots(notebook: _Notebook = "", as_json: _Json = False) -> None:
    """List the snapshots, the oldest first."""
    store = open_store()
    trees = _trees(store, notebook)
    if as_json:
        print(
            json.dumps(
                {"used": store.used, "quota": store.quota, "trees": [_tree_values(tree) for tree in trees]}, indent=2
            )
        )
        return
    if not trees:
        _out.print("There are no snapshots yet; %snapshot in a notebook takes one.", highlight=False)
        return
    for tree in trees:
        _out.print(Text(plain(tree.notebook) or f"tree {tree.id}, whose notebook is unknown", style="bold"))
        _out.print(_table(tree))
    _out.print(f"{readable_size(store.used)} of {readable_size(store.quota)} used.", highlight=False)


def _table(tree: Tree) -> Table:
    shown = table("id", "label", ">age", ">size", "parent", "cell", "")
    contents = tree.contents()
    for one in contents.sound:
        mark = "froze a running cell" if one.notes.busy else ""
        age = readable_time(time.time() - one.notes.created)
        add_row(
            shown, one.id, one.notes.label, age, readable_size(one.size), one.parent,
            _first_line(one.notes.cell.code), mark,
        )  # fmt: skip
    for broken in contents.damaged:
        size = readable_size(broken.size)
        add_row(shown, broken.id, broken.label, "", size, broken.parent, "", f"damaged: {broken.reason}")
    return shown


@snapshot_app.command()
def show(reference: _Ref, notebook: _Notebook = "", as_json: _Json = False) -> None:
    """Show one snapshot."""
    tree, one = _find(open_store(), reference, notebook)
    values = _values(one) | {"notebook": tree.notebook, "children": tree.contents().children(one.id)}
    if isinstance(one, Stored):
        manifest = one.snapshot.manifest
        values |= {
            "lineage": [older.id for older in one.snapshot.lineage],
            "disk_layers": one.snapshot.depth,
            "image": manifest.image,
            "hypervisor": manifest.hypervisor,
            "hardware": manifest.hardware,
            "files": {name: file.model_dump() for name, file in manifest.files.items()},
        }
    if as_json:
        print(json.dumps(values, indent=2))
        return
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value)
        _out.print(Text.assemble((key, "bold"), " ", plain(text)))


@snapshot_app.command()
def label(
    reference: _Ref,
    name: Annotated[str, typer.Argument(metavar="LABEL", help="Its label from now on; '' for none.")],
    text: Annotated[str | None, typer.Option("-m", help="What there is to say of it.")] = None,
    notebook: _Notebook = "",
) -> None:
    """Give a snapshot another label; one with a label is never pruned."""
    tree, one = _find(open_store(changing=True), reference, notebook)
    tree.relabel(one.id, name, text)
    print(f"{one.id} has the label {name}." if name else f"{one.id} has no label.")


@snapshot_app.command("rm")
def remove(
    references: Annotated[list[str], typer.Argument(metavar="REF...", help="Labels or ids.")], notebook: _Notebook = ""
) -> None:
    """Remove snapshots; what descends from them stays as it is."""
    store = open_store(changing=True)
    for reference in references:
        tree, one = _find(store, reference, notebook)
        tree.remove(one.id)
        print(f"Removed {one.id}.")


@snapshot_app.command()
def prune(
    keep: Annotated[int | None, typer.Option(min=0, help="Keep so many of the newest in each notebook.")] = None,
    older_than: Annotated[str, typer.Option(help="Only what is older: 90s, 30m, 12h, 7d, 2w.")] = "",
    notebook: _Notebook = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove snapshots that have no label and are not in use."""
    if keep is None and not older_than:
        raise SnapshotError(
            "Say what is to go: --keep N, --older-than TIME, or both.", "`--keep 0` is all without a label."
        )
    before = time.time() - _seconds(older_than) if older_than else float("inf")
    store = open_store(changing=True)
    trees = {tree.id: tree.contents() for tree in _trees(store, notebook)}
    unlabelled = [[one.id for one in contents.sound if not one.notes.label] for contents in trees.values()]
    kept = {name for names in unlabelled for name in names[::-1][: keep or 0]}

    def wanted(one: Stored) -> bool:
        return one.snapshot.folder.parent.name in trees and one.id not in kept and one.notes.created < before

    plan = store.prune(wanted, dry_run=dry_run)
    for one in plan.gone:
        print(f"{'Would remove' if dry_run else 'Removed'} {one.id}.")
    print(f"{readable_size(max(plan.freed, 0))} {'would be' if dry_run else ''} freed.".replace("  ", " "))


@snapshot_app.command()
def verify(
    references: Annotated[list[str] | None, typer.Argument(metavar="[REF...]", help="All by default.")] = None,
    notebook: _Notebook = "",
    as_json: _Json = False,
) -> None:
    """Read snapshots and compare them with their digests; exit 1 if one is damaged."""
    store = open_store()
    if references:
        chosen = [_find(store, reference, notebook) for reference in references]
    else:
        chosen = _everything(store, notebook)
    found = {one.id: tree.verify(one.id) for tree, one in chosen}
    if as_json:
        print(json.dumps([{"id": name, "problems": problems} for name, problems in found.items()], indent=2))
    for name, problems in {} if as_json else found.items():
        _out.print(Text(f"{name} {plain('; '.join(problems)) or 'ok'}"))
    raise typer.Exit(int(any(found.values())))


@snapshot_app.command("export")
def export_one(
    reference: _Ref,
    file: Annotated[Path, typer.Argument(help="File to create; compressed if its name ends in .gz or .tgz.")],
    notebook: _Notebook = "",
) -> None:
    """Write a snapshot and what it descends from into a file. It holds all that was in the VM's memory: secrets too."""
    from agentvm_kernel.snapshots.exporting import export_snapshot  # noqa: PLC0415 - not needed by other commands

    store = open_store()
    tree, one = find_sound(store, reference, notebook)
    written = export_snapshot(store, tree, one.id, file)
    size = readable_size(file.stat().st_size)
    print(f"{file}: {len(written)} snapshots, {size}. It needs the golden snapshot {written[0].snapshot.golden.id}.")


@snapshot_app.command("import")
def import_file(file: Annotated[Path, typer.Argument(help="What export wrote.")], notebook: _Notebook = "") -> None:
    """Take in the snapshots of a file.

    The file is checked, but the state of the virtual devices in it is read by QEMU: a snapshot from somebody else is
    only as safe as the sandbox that QEMU and its guest run in.
    """
    store = open_store(changing=True)
    for one in store.import_archive(file, notebook):
        _out.print(Text(f"Imported {one.id} {plain(one.notes.label)}".rstrip()))
    _err.print(
        "What comes from others is only as safe as the virtual machine: QEMU reads its device state, in its sandbox.",
        highlight=False,
    )


def _tree_values(tree: Tree) -> dict[str, Any]:
    contents = tree.contents()
    return {
        "id": tree.id,
        "notebook": tree.notebook,
        "snapshots": [_values(one) for one in contents.sound],
        "damaged": [_values(one) for one in contents.damaged],
    }


def _values(one: Stored | Damaged) -> dict[str, Any]:
    values: dict[str, Any] = {"id": one.id, "parent": one.parent, "label": _label(one), "size": one.size}
    if isinstance(one, Damaged):
        return values | {"damage": one.reason}
    return values | {"written": one.written} | one.notes.model_dump(exclude={"label", "way"})


def _first_line(code: str) -> str:
    line = next(iter(code.strip().splitlines()), "")
    return line if len(line) <= 40 else f"{line[:39]}…"


def _seconds(duration: str) -> int:
    match = _DURATION.fullmatch(duration)
    if not match:
        raise SnapshotError(
            f"{duration!r:.40} is no duration.", "Valid are a number and s, m, h, d or w: 90s, 12h, 7d."
        )
    return int(match[1]) * UNITS[match[2]]
