"""Settings: file, environment, defaults; a mistake is one clear error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentvm_kernel.config import Paths, Settings, load_settings
from agentvm_kernel.errors import ConfigError


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    for name in [name for name in os.environ if name.startswith("AGENTVM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTVM_CONFIG", str(tmp_path / "config.toml"))
    return Paths.of_user()


def test_without_a_file_the_defaults_hold(paths: Paths) -> None:
    assert load_settings(paths) == Settings()


def test_the_environment_goes_over_the_file(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.config.write_text('image = "minimal"\nprofile = "light"\n')
    monkeypatch.setenv("AGENTVM_PROFILE", "isolated")
    settings = load_settings(paths)
    assert (settings.image, settings.profile) == ("minimal", "isolated")


def test_own_profiles_stand_beside_the_built_in_ones(paths: Paths) -> None:
    paths.config.write_text("[profiles.tiny]\nvcpus = 1\nmemory_mib = 512\ndisk_gb = 4\n")
    settings = load_settings(paths)
    assert settings.find_profile("tiny")[1].memory_mib == 512
    assert settings.find_profile("")[0] == "standard"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("profile = ", "config.toml"),
        ("colour = 1", "colour"),
        ("[profiles.tiny]\nvcpus = 0\nmemory_mib = 512\ndisk_gb = 4\n", "profiles.tiny.vcpus"),
        ('accelerator = "warp"', "accelerator"),
    ],
)
def test_a_mistake_in_the_file_is_named(paths: Paths, text: str, named: str) -> None:
    paths.config.write_text(text)
    with pytest.raises(ConfigError, match=named) as caught:
        load_settings(paths)
    assert caught.value.hint


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings().find_profile("huge")
    assert "light" in caught.value.hint


def test_a_relative_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTVM_STATE_DIR", "state")
    with pytest.raises(ConfigError, match="AGENTVM_STATE_DIR"):
        Paths.of_user()


def test_an_ordinary_users_folders_follow_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AGENTVM_STATE_DIR", "AGENTVM_CACHE_DIR", "AGENTVM_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = Paths.of_user()
    assert paths.cache == tmp_path / "c/agentvm"
    assert paths.state == tmp_path / ".local/state/agentvm"
    assert paths.socket.is_relative_to(paths.state)
