"""Settings: file, environment, defaults; a mistake is one clear error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from agentvm_kernel import cli
from agentvm_kernel.config import Paths, load_settings, read_configuration
from agentvm_kernel.config_reference import reference
from agentvm_kernel.errors import ConfigError
from agentvm_kernel.profiles import Profile
from agentvm_kernel.settings import Output, Pool, Settings
from agentvm_kernel.tomllines import lines_of


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


def test_cards_are_to_be_had_with_the_system_daemon(paths: Paths) -> None:
    paths.config.write_text('uri = "qemu:///system"\n[network]\nnat = true\n')
    assert load_settings(paths).network.nat


def test_own_profiles_stand_beside_the_built_in_ones(paths: Paths) -> None:
    paths.config.write_text("[profiles.tiny]\nvcpus = 1\nmemory_mib = 512\ndisk_gb = 4\n")
    settings = load_settings(paths)
    assert settings.find_profile("tiny")[1].memory_mib == 512
    assert settings.find_profile("")[0] == "standard"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[network]\nnat = true",
            'config.toml:2: network.nat is true, but uri is "embed". Set uri = "qemu:///system", or remove nat.',
        ),
        (
            "uri = 'qemu:///system'\n[network]\nmode = 'isolated'\nnat = true",
            'config.toml:4: network.nat is true, but mode is "isolated", which means no network.',
        ),
        ("image = 'minimal'\nprofile = ", "config.toml:2: Invalid value (at end of document)."),
        ("image = 'minimal'\nprofile = light\n", "config.toml:2: Invalid value (column 11)."),
        ("[pool", "config.toml:1: Expected ']' at the end of a table declaration"),
        ("colour = 1", "config.toml:1: There is no 'colour'. Valid are: accelerator,"),
        ("\n# pool\npoool = 1", "config.toml:3: There is no 'poool'. Did you mean pool? Valid are"),
        ("[pool]\n\nblank = 1", "config.toml:3: There is no 'blank' in pool. Did you mean blanks? Valid are: blanks,"),
        ("[pool]\nwarm = 65", "config.toml:2: pool.warm is 65, but must be a whole number from 0 to 64."),
        ("pool = {warm = 'x'}", 'config.toml:1: pool.warm is "x", but must be a whole number from 0 to 64.'),
        ("pool.warm = 0.5", "config.toml:1: pool.warm is 0.5, but must be a whole number from 0 to 64."),
        ("pool = 3", "config.toml:1: pool is 3, but must be a table."),
        ("max_vms = [\n  1,\n]", "config.toml:1: max_vms is [1], but must be a whole number from 1 to 1024."),
        ("idle_exit = 0", "config.toml:1: idle_exit is 0, but must be a number above 0."),
        ("idle_exit = 2000-01-01", "config.toml:1: idle_exit is datetime.date(2000, 1, 1), but must be a number"),
        ('accelerator = "warp"', 'accelerator is "warp", but must be "auto", "kvm" or "tcg".'),
        ('image = "A B"', 'image is "A B", but must be a text that matches ^[a-z0-9-]{1,64}$.'),
        (f"uri = {list('x' * 99)}", 'uri is ["x", "x"'),
        ('profile = "lite"', 'config.toml:1: There is no profile "lite". Did you mean light? Known are: intensive,'),
        ("[profiles.tiny]\nvcpus = 0\nmemory_mib = 512\ndisk_gb = 4", "config.toml:2: profiles.tiny.vcpus is 0, but"),
        (
            "image = 'a'\n[profiles.tiny]\nvcpus = 1\nmemory_mib = 512",
            "toml:2: profiles.tiny.disk_gb is missing; it",
        ),
        (
            "[profiles.'My Own']\nvcpus = 1",
            "config.toml:1: profiles.My Own has a name that is not valid: it must",
        ),
    ],
)
def test_a_mistake_is_said_with_its_line_and_what_would_be_valid(paths: Paths, text: str, said: str) -> None:
    paths.config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(paths)
    assert said in caught.value.message
    assert caught.value.hint


def test_all_mistakes_are_said_at_once(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.config.write_text("max_vms = 0\n[pool]\nwarm = 100\n")
    monkeypatch.setenv("AGENTVM_TRANSPORT", "pigeon")
    with pytest.raises(ConfigError) as caught:
        load_settings(paths)
    assert caught.value.message.splitlines() == [
        'AGENTVM_TRANSPORT: transport is "pigeon", but must be "auto", "vsock" or "serial".',
        f"{paths.config}:1: max_vms is 0, but must be a whole number from 1 to 1024.",
        f"{paths.config}:3: pool.warm is 100, but must be a whole number from 0 to 64.",
    ]


def test_a_file_that_cannot_be_read_is_named(paths: Paths) -> None:
    paths.config.write_bytes(b"image = 'minimal'\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"config\.toml:2: This is no UTF-8"):
        load_settings(paths)
    paths.config.unlink()
    paths.config.mkdir()
    with pytest.raises(ConfigError, match=r"config\.toml: Is a directory"):
        load_settings(paths)


def test_the_origin_of_each_setting_is_known(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.config.write_text('image = "minimal"\nprofile = "light"\n\n[pool]\n# more\nwarm = 3\n')
    monkeypatch.setenv("AGENTVM_IMAGE", "standard")
    loaded = read_configuration(paths)
    assert (loaded.settings.image, loaded.settings.pool.warm) == ("standard", 3)
    assert loaded.origins == {
        ("image",): "AGENTVM_IMAGE",
        ("profile",): f"{paths.config}:2",
        ("pool",): f"{paths.config}:4",
        ("pool", "warm"): f"{paths.config}:6",
    }


KEYS = st.text("abc", min_size=1, max_size=3)
TABLES = st.recursive(
    st.dictionaries(KEYS, st.integers() | st.lists(st.integers()) | st.text('ab, ]"#', max_size=5), max_size=4),
    lambda inner: st.dictionaries(KEYS, inner | st.integers(), max_size=3),
)


@given(TABLES)
def test_every_key_has_the_line_on_which_it_stands(values: dict[str, object]) -> None:
    lines: list[str] = []
    expected: dict[tuple[str, ...], int] = {}

    def write(table: dict[str, object], path: tuple[str, ...]) -> None:
        tables = {key: value for key, value in table.items() if isinstance(value, dict)}
        for key, value in table.items():
            if key not in tables:
                expected[*path, key] = len(lines) + 1
                text = json.dumps(value)
                lines.extend((f"{key} = {text.replace(', ', ',' + chr(10)) if text[0] == '[' else text}").split("\n"))
        for key, inner in tables.items():
            lines.append("")
            expected[*path, key] = len(lines) + 1
            lines.append(f"[{'.'.join((*path, key))}]")
            write(inner, (*path, key))

    write(values, ())
    assert lines_of("\n".join(lines)) == expected


@pytest.mark.parametrize(
    ("configured", "notebook", "kernelspec", "holds"),
    [
        ("standard", "a.ipynb", "", "standard"),
        ("standard", "a.ipynb", "strict", "strict"),
        ("standard", "a.ipynb", "trusted", "standard"),
        ("trusted", "a.ipynb", "standard", "standard"),
        ("strict", "mine/a.ipynb", "", "trusted"),
        ("strict", "mine/a.ipynb", "standard", "standard"),
        ("standard", "mine/new/a.ipynb", "", "strict"),
    ],
)
def test_a_kernelspec_can_only_let_less_output_through(
    configured: str, notebook: str, kernelspec: str, holds: str
) -> None:
    output = Output.model_validate({"mode": configured, "notebooks": {"mine/new/*": "strict", "mine/*": "trusted"}})
    assert output.policy(notebook, kernelspec).mode == holds


def test_an_unknown_output_mode_is_named() -> None:
    with pytest.raises(ConfigError, match="no output mode 'open'"):
        Output().policy("a.ipynb", "open")


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, ["config", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_checks_and_shows(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "defaults hold" in run("check").stdout
    paths.config.write_text("[profiles.own]\nvcpus = 1\nmemory_mib = 512\ndisk_gb = 4\n")
    assert "valid" in run("check").stdout
    shown = json.loads(run("show", "--json").stdout)["settings"]
    assert shown["profiles.own.memory_mib"] == {"value": 512, "from": f"{paths.config}:3"}
    assert shown["pool.warm"] == {"value": Settings().pool.warm, "from": "default"}
    assert f"{paths.config}:3" in run("show").stdout
    for wrong in ("pool = 1", "[network]\ndeny = ['a_b']", "[network]\nreachable = ['nowhere']"):
        paths.config.write_text(wrong)
        with pytest.raises(ConfigError):
            run("check")


def test_the_documentation_lists_exactly_what_there_is() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text().partition("agentvm config reference` -->\n\n")[2] == run("reference").stdout
    assert all(f"`{name}`" in reference() for name in (*Profile.model_fields, *Pool.model_fields))


def test_the_documentations_example_is_valid(paths: Paths) -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    paths.config.write_text(page.read_text().partition("```toml\n")[2].partition("```")[0])
    assert load_settings(paths).find_profile("")[1].cell_deadline == 30


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
