"""``agentvm snapshot``: what it prints, and what it leaves."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from fake_snapshots import GOLDEN, golden_finder, golden_of, make_golden, memory_of, take
from typer.testing import CliRunner

from agentvm_kernel import cli
from agentvm_kernel.compare import command as compare_command
from agentvm_kernel.compare.comparison import Comparison
from agentvm_kernel.errors import AgentVMError, ConfigError, SnapshotError
from agentvm_kernel.image.store import Image, ImageStore
from agentvm_kernel.snapshots.notes import Cell, Notes
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.snapshots.tree import Tree


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SnapshotStore:
    """The store of the user that the command runs as, as the supervisor has it open."""
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("AGENTVM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AGENTVM_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("agentvm_kernel.vm.libvirt_connection.qemu_owner", lambda _uri: None)
    make_golden(tmp_path / "cache" / "golden")
    (tmp_path / "golden").symlink_to(tmp_path / "cache" / "golden")
    (tmp_path / "config.toml").write_text("[snapshots]\nquota_gb = 0.5\n")
    return SnapshotStore(
        tmp_path / "state" / "snapshots", quota=5 * 10**8, owner=None,
        find_golden=golden_finder(tmp_path / "cache" / "golden"),
    )  # fmt: skip


@pytest.fixture
def tree(store: SnapshotStore, tmp_path: Path) -> Tree:
    """A chain of three and a branch."""
    tree = store.tree("work/notes.ipynb")
    now = time.time()
    first = take(tree, golden_of(tmp_path), "clean", created=now - 8 * 86400, text="before")
    second = take(tree, first.snapshot, created=now - 3 * 86400, blocks={1: 1})
    take(tree, second.snapshot, "trained", created=now - 300, blocks={2: 2})
    take(tree, first.snapshot, created=now)
    return tree


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, ["snapshot", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def test_nothing_is_listed_and_made_where_nothing_is(store: SnapshotStore, tmp_path: Path) -> None:
    assert "no snapshots yet" in run("list").stdout
    assert run_json("list") == {"used": 0, "quota": 500_000_000, "trees": []}
    assert run("verify").exit_code == 0
    assert not (tmp_path / "state").exists()


def test_list_shows_trees_labels_ages_and_sizes(store: SnapshotStore, tree: Tree) -> None:
    take(store.tree("other"), tree.find("clean").snapshot.golden, "else")
    shown = run("list").stdout
    for text in ("work/notes.ipynb", "other", "clean", "trained", "8d", "3d", "5m", "of 500 MB used", "else"):
        assert text in shown
    assert "other" not in run("list", "--notebook", "work/notes.ipynb").stdout
    with pytest.raises(SnapshotError, match="has no snapshots"):
        run("list", "--notebook", "none")


def test_listed_json_has_everything(store: SnapshotStore, tree: Tree) -> None:
    found = run_json("list")
    assert (found["used"], found["quota"]) == (store.used, store.quota)
    assert [one["label"] for one in found["trees"][0]["snapshots"]] == ["clean", "", "trained", ""]
    first = tree.find("clean")
    assert found["trees"][0]["snapshots"][0] == {
        "id": first.id, "parent": "", "label": "clean", "size": first.size, "written": 256, "text": "before",
        "kind": "manual", "cell": {"run": 0, "count": None, "code": ""}, "busy": False, "pause_ms": 0.0,
        "created": first.notes.created,
    }  # fmt: skip


def test_text_from_notebooks_cannot_steer_the_terminal(store: SnapshotStore, tmp_path: Path) -> None:
    tree = store.tree("evil\x1b[2J[red]")
    notes = Notes(text="\x1b]0;x\x07[/bold]", cell=Cell(code="\x1b[31m[red]x[/]\nsecond"), busy=True)
    with tree.new(golden_of(tmp_path), notes) as new:
        (new.folder / "device-state").touch()
        (new.folder / "memory.delta").write_bytes(b"AVMDELT1" + bytes(16))
    for shown in (run("list").stdout, run("show", new.id).stdout):
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "[red]" in shown
    assert "second" not in run("list").stdout
    assert "froze a running cell" in run("list").stdout


def test_show_has_files_lineage_and_children(tree: Tree) -> None:
    second = tree.snapshots()[1]
    found = run_json("show", second.id[:6])
    assert found["lineage"] == [GOLDEN, tree.find("clean").id, second.id]
    assert found["disk_layers"] == 0
    assert found["children"] == [tree.find("trained").id]
    assert set(found["files"]) == {"device-state", "memory.delta"}
    assert "work/notes.ipynb" in run("show", "clean").stdout


def test_a_snapshot_is_named_in_one_way_only(store: SnapshotStore, tree: Tree, tmp_path: Path) -> None:
    other = take(store.tree("other"), golden_of(tmp_path), "clean")
    with pytest.raises(SnapshotError, match="2 snapshots"):
        run("show", "clean")
    assert run_json("show", "clean", "--notebook", "other")["id"] == other.id
    for nothing in ("nothing", other.id[:3], ""):
        with pytest.raises(SnapshotError, match="no snapshot"):
            run("show", nothing)


def test_rm_merges_and_removes(tree: Tree) -> None:
    second = tree.snapshots()[1]
    assert run("rm", second.id, "trained").stdout.count("Removed") == 2
    assert second.id not in [one.id for one in tree.snapshots()]
    with pytest.raises(SnapshotError, match="no snapshot"):
        tree.find("trained")


def test_rm_spares_what_a_supervisor_uses(tree: Tree) -> None:
    name = tree.find("trained").id
    tree.pin(name)
    with pytest.raises(SnapshotError, match="in use"):
        run("rm", "trained")
    assert "0 B freed" in run("prune", "--older-than", "100w").stdout
    tree.unpin(name)
    run("rm", "trained")


def test_label_changes_label_and_text(tree: Tree) -> None:
    run("label", "clean", "spotless", "-m", "after")
    assert tree.find("spotless").notes.text == "after"
    run("label", "spotless", "")
    assert tree.snapshots()[0].notes.label == ""
    assert tree.snapshots()[0].notes.text == "after"


def test_prune_keeps_the_newest_the_young_and_the_labelled(tree: Tree) -> None:
    before = [one.id for one in tree.snapshots()]
    with pytest.raises(SnapshotError, match="Say what"):
        run("prune")
    with pytest.raises(SnapshotError, match="no duration"):
        run("prune", "--older-than", "1y")
    assert before[1] in run("prune", "--keep", "1", "--dry-run").stdout
    assert before[3] not in run("prune", "--keep", "1", "--dry-run").stdout
    assert "Would" not in run("prune", "--keep", "2", "--dry-run").stdout
    assert "Would" not in run("prune", "--older-than", "4d", "--dry-run").stdout
    assert [one.id for one in tree.snapshots()] == before
    shown = run("prune", "--older-than", "2d")
    assert f"Removed {before[1]}" in shown.stdout
    assert [one.id for one in tree.snapshots()] == [before[0], before[2], before[3]]
    assert memory_of(tree.find("trained").snapshot) == {0: 1, 1: 1, 2: 2}
    run("prune", "--keep", "0")
    assert [one.notes.label for one in tree.snapshots()] == ["clean", "trained"]


def test_prune_of_one_notebook_leaves_the_others(store: SnapshotStore, tree: Tree, tmp_path: Path) -> None:
    other = take(store.tree("other"), golden_of(tmp_path))
    run("prune", "--keep", "0", "--notebook", "work/notes.ipynb")
    assert store.tree("other").snapshots() == [other]
    assert len(tree.snapshots()) == 2


def test_verify_names_what_is_damaged(tree: Tree) -> None:
    assert run("verify").exit_code == 0
    stored = tree.find("trained")
    stored.snapshot.device_state.chmod(0o600)
    stored.snapshot.device_state.write_text("Device state of trained")
    result = run("verify")
    assert result.exit_code == 1
    assert f"{stored.id} device-state has another content" in result.stdout
    assert run("verify", "clean").exit_code == 0
    stored.snapshot.delta.unlink()
    assert run_json("verify", stored.id) == [{"id": stored.id, "problems": tree.verify(stored.id)}]
    assert "damaged: memory.delta" in run("list").stdout
    assert "damage" in run_json("show", stored.id)
    assert run_json("list")["trees"][0]["damaged"][0]["id"] == stored.id
    with pytest.raises(SnapshotError, match="damaged"):
        run("export", stored.id, "/tmp/never.tar")
    run("rm", stored.id)
    assert tree.damaged() == []


def test_export_and_import_say_what_they_did(tree: Tree, tmp_path: Path) -> None:
    file = tmp_path / "trained.tar.gz"
    assert GOLDEN in run("export", "trained", str(file)).stdout
    result = run("import", str(file), "--notebook", "copy")
    assert result.stdout.count("Imported") == 3
    assert "only as safe as the virtual machine" in result.stderr
    assert run_json("show", "trained", "--notebook", "copy")["written"] == 256


def test_what_was_cleaned_up_is_said(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "state" / "snapshots" / ".new-abcdefabcdef").mkdir()
    assert "abcdefabcdef" in run("prune", "--keep", "9").stderr


def test_quota_must_make_sense(store: SnapshotStore, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[snapshots]\nquota_gb = 0\n")
    with pytest.raises(ConfigError, match="quota_gb"):
        run("list")


def test_errors_are_two_lines_and_no_markup(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["agentvm", "snapshot", "show", "[/]x[red]"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert "There is no snapshot '[/]x[red]'" in capsys.readouterr().err
    assert issubclass(SnapshotError, AgentVMError)


def test_an_image_that_snapshots_build_on_is_not_removed_by_accident(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = golden_of(tmp_path).manifest.image
    removed: list[str] = []
    image = Image(digest, "minimal", tmp_path)
    monkeypatch.setattr(ImageStore, "images", lambda _self: [image])
    monkeypatch.setattr(ImageStore, "remove", lambda _self, name: removed.append(name))
    result = CliRunner().invoke(cli.app, ["image", "rm", digest])
    assert isinstance(result.exception, AgentVMError)
    assert "4 snapshots" in result.exception.message
    assert removed == []
    assert CliRunner().invoke(cli.app, ["image", "rm", digest, "--force"]).exit_code == 0
    assert removed == [digest]


def compared(**parts: dict[str, object]) -> Comparison:
    nothing = {"added": [], "removed": [], "changed": [], "count": 0, "truncated": False}
    names = ("files", "packages", "processes", "variables")
    values = {name: nothing | parts.get(name, {}) for name in names}
    return Comparison.model_validate({"a": "a" * 12, "b": "b" * 12} | values)


def test_diff_asks_for_the_two_that_are_meant_and_shows_what_differs(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str]] = []
    found = compared(
        files={
            "added": [{"path": "/new [b]", "size": 5000}], "removed": [{"path": "/old", "size": 7}],
            "changed": [{"path": "/both", "size_before": 1, "size_after": 2}], "count": 300, "truncated": True,
        },
        packages={
            "added": [{"source": "debian", "name": "curl", "version": "8"}],
            "changed": [{"source": "python", "name": "numpy", "before": "1", "after": "2"}], "count": 2,
        },
        processes={"added": ["sleep 9 (pid 7)"], "count": 1},
    )  # fmt: skip

    async def compare(notebook: str, a: str, b: str) -> Comparison:
        asked.append((notebook, a, b))
        return found

    monkeypatch.setattr(compare_command, "_compare", compare)
    lines = [line.split() for line in run("diff", "clean", "trained").stdout.splitlines()]
    clean, _, trained, _ = tree.snapshots()
    assert asked == [("work/notes.ipynb", clean.id, trained.id)]
    assert lines == [
        ["files:", "300", "changed,", "not", "all", "of", "them", "listed"],
        ["what", "before", "after"], ["+", "/new", "[b]", "5", "kB"], ["-", "/old", "7", "B"],
        ["~", "/both", "1", "B", "2", "B"],
        ["packages:", "2", "changed"], ["what", "before", "after"], ["+", "curl", "(debian)", "8"],
        ["~", "numpy", "1", "2"],
        ["processes:", "1", "changed"], ["what", "before", "after"], ["+", "sleep", "9", "(pid", "7)"],
        ["variables:", "nothing", "changed"],
        ["As", "the", "guests", "say;", "nobody", "vouches", "for", "it."],
    ]  # fmt: skip
    assert run_json("diff", "clean", "trained", "--json") == found.model_dump(mode="json")


def test_diff_is_of_one_notebook_and_of_sound_snapshots(tree: Tree, store: SnapshotStore, tmp_path: Path) -> None:
    take(store.tree("other.ipynb"), golden_of(tmp_path), "foreign")
    with pytest.raises(SnapshotError, match="different notebooks"):
        run("diff", "clean", "foreign")
    with pytest.raises(SnapshotError, match="no snapshot"):
        run("diff", "clean", "nothing")
    (tree.find("trained").snapshot.folder / "device-state").write_bytes(b"")
    with pytest.raises(SnapshotError, match="damaged"):
        run("diff", "clean", "trained")
