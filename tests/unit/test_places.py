"""Which files of the host a notebook's magics may use: a stranger's cells copy no key, and write no settings."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import ConfigError
from agentvm_kernel.magics.registry import Registry
from agentvm_kernel.run.places import PlaceError, granted, permitted


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a notebook's folder, a key, and settings; the notebook's is where cells run."""
    for folder in ("notebooks/data/.cache", ".ssh", "shared/.git", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".ssh/id").write_text("secret")
    (tmp_path / "notebooks/leads").symlink_to(tmp_path / ".ssh")
    (tmp_path / "notebooks/prices.csv").write_text("1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AGENTVM_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


@pytest.mark.parametrize(
    "path", ["prices.csv", "data", "data/new/made.csv", "./data/../prices.csv", "~/notebooks/data"]
)
def test_what_lies_below_the_notebooks_folder_may_be_used(home: Path, path: str) -> None:
    expanded = path.replace("~", str(home))
    assert permitted(path) == (home / "notebooks" / expanded).resolve()


@pytest.mark.parametrize(
    "path",
    [
        "../other/x", "~/other/x", "/etc/passwd", "~/.ssh/id", "~/.bashrc", "..", "/", ".", "~", "leads/id", "leads",
        "data/../../other/x", "../notebooks2/x",
    ],
)  # fmt: skip
def test_what_lies_elsewhere_may_not(home: Path, path: str) -> None:
    with pytest.raises(PlaceError, match="is not below the notebook's folder") as caught:
        permitted(path)
    assert f"folders in [files] of {home}/config.toml" in caught.value.hint


@pytest.mark.parametrize("path", [".envrc", "data/.cache/x", ".git/hooks/pre-commit", "data/../.envrc"])
def test_what_is_hidden_may_not(home: Path, path: str) -> None:
    assert home
    with pytest.raises(PlaceError, match="is hidden"):
        permitted(path)


def test_the_configuration_adds_folders_and_files(home: Path) -> None:
    (home / "config.toml").write_text('[files]\nfolders = ["~/shared", "~/.ssh/id"]\n')
    for path in ("~/shared", "~/shared/x/y", "~/.ssh/id", "leads/id"):
        assert permitted(path) == Path(path).expanduser().resolve()
    for path in ("~/shared/.git/config", "~/.ssh/other", "~/.ssh", "~/other"):
        with pytest.raises(PlaceError):
            permitted(path)


def test_a_command_of_the_users_grants_a_path_while_it_runs(home: Path) -> None:
    with granted("~/.ssh/id"):
        assert permitted("~/.ssh/id") == home / ".ssh/id"
        for path in ("~/.ssh", "~/.ssh/other"):
            with pytest.raises(PlaceError):
                permitted(path)
    with pytest.raises(PlaceError):
        permitted("~/.ssh/id")


def test_what_a_killed_command_has_left_grants_nothing(home: Path) -> None:
    with granted("~/.ssh/id"):
        (grant,) = (Paths.of_user().runtime / "granted").iterdir()
    grant.touch()
    with pytest.raises(PlaceError):
        permitted(home / ".ssh/id")


def test_a_kernel_that_was_started_at_the_root_has_no_folder_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(PlaceError):
        permitted(home / "other/x")


def test_a_folder_in_the_configuration_is_an_absolute_path(home: Path) -> None:
    (home / "config.toml").write_text('[files]\nfolders = ["shared"]\n')
    with pytest.raises(ConfigError, match="'shared' is no absolute path"):
        load_settings(Paths.of_user())


@pytest.mark.parametrize("code", ["%push ~/.ssh/id", "%pull x ~/.bashrc", "%workspace ~", "%report ~/other/n.ipynb"])
def test_no_magic_goes_there(home: Path, code: str) -> None:
    assert home
    magic = Registry().find(code)
    assert magic is not None
    with pytest.raises(PlaceError):
        asyncio.run(magic.run(None))  # type: ignore[arg-type]
