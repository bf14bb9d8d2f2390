"""``agentvm kernelspec``: what Jupyter finds afterwards, and what is left alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import Result
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from typer.testing import CliRunner

from agentvm_kernel import cli
from agentvm_kernel.errors import AgentVMError, ConfigError
from agentvm_kernel.kernel.app import AgentVMKernelApp


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and environment: Jupyter looks for kernelspecs nowhere else."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("AGENTVM_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr("jupyter_core.paths.ENV_JUPYTER_PATH", [str(tmp_path / "environment/share/jupyter")])
    monkeypatch.setattr("jupyter_core.paths.SYSTEM_JUPYTER_PATH", [])
    monkeypatch.setattr("jupyter_core.paths.site.ENABLE_USER_SITE", False)
    (tmp_path / "config.toml").write_text("[profiles.tiny]\nvcpus = 1\nmemory_mib = 512\ndisk_gb = 4\n")
    return tmp_path


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, ["kernelspec", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def found(name: str) -> KernelSpec:
    return KernelSpecManager().get_kernel_spec(name)


def foreign(home: Path, name: str, text: str = '{"argv": ["other"], "display_name": "Other", "language": "x"}') -> Path:
    folder = home / "jupyter" / "kernels" / name
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(text)
    return folder


def test_a_profiles_kernel_is_what_jupyter_starts(home: Path) -> None:
    run("add", "--user", "--profile", "tiny")
    spec = found("agentvm-tiny")
    assert spec.argv == [sys.executable, "-P", "-m", "agentvm_kernel", "-f", "{connection_file}"]
    assert (spec.env, spec.display_name) == ({"AGENTVM_PROFILE": "tiny"}, "Python (AgentVM, tiny)")
    assert (spec.interrupt_mode, spec.metadata["debugger"]) == ("message", True)
    assert {path.name for path in Path(spec.resource_dir).iterdir()} >= {"logo-svg.svg", "logo-64x64.png"}
    assert Path(spec.resource_dir).is_relative_to(home / "jupyter")


def test_name_title_image_and_place_can_be_chosen(home: Path) -> None:
    run("add", "--profile", "light", "--image", "minimal", "--prefix", str(home / "p"), "--display-name", "Mine")
    spec = json.loads((home / "p/share/jupyter/kernels/agentvm-light-minimal/kernel.json").read_text())
    assert spec["env"] == {"AGENTVM_PROFILE": "light", "AGENTVM_IMAGE": "minimal"}
    assert spec["display_name"] == "Mine"
    run("add", "--profile", "light", "--sys-prefix", "--name", "mine_2")
    assert (home / "environment/share/jupyter/kernels/mine_2").is_dir()
    run("add", "--image", "minimal")
    assert (home / "environment/share/jupyter/kernels/agentvm-minimal").is_dir(), "an environment is the default place"


def test_an_output_mode_is_an_argument_of_the_kernel(home: Path) -> None:
    run("add", "--user", "--output", "strict")
    spec = found("agentvm-strict")
    assert spec.argv[-1] == "--output=strict"
    app = AgentVMKernelApp()
    app.parse_command_line(spec.argv[3:])
    assert app.output == "strict"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--profile"),
        (["--profile", "huge"], "no profile 'huge'"),
        (["--image", "huge"], "no image flavour 'huge'"),
        (["--profile", "light", "--name", "../x"], "no valid name"),
        (["--profile", "light", "--name", "Light"], "no valid name"),
        (["--profile", "light", "--name", "x" * 65], "no valid name"),
        (["--profile", "light", "--display-name", "a\x1b[31m"], "cannot be shown"),
        (["--profile", "light", "--user", "--sys-prefix"], "three places"),
        (["--profile", "light", "--prefix", "/dev/null"], "Not a directory"),
    ],
)
def test_what_is_not_valid_is_refused_and_nothing_made(home: Path, arguments: list[str], says: str) -> None:
    with pytest.raises(AgentVMError, match=says) as caught:
        run("add", *arguments)
    assert caught.value.hint
    assert not list(home.rglob("kernel.json"))


@pytest.mark.parametrize("text", ['{"argv": ["other"], "display_name": "Other", "language": "x"}', "broken", "[]"])
def test_a_kernelspec_of_somebody_else_is_left_alone(home: Path, text: str) -> None:
    folder = foreign(home, "other", text)
    for arguments in (["add", "--profile", "light", "--name", "other"], ["remove", "other"]):
        with pytest.raises(ConfigError, match="other") as caught:
            run(*arguments)
        assert "--force" in caught.value.hint
    assert (folder / "kernel.json").read_text() == text
    run("add", "--user", "--profile", "light", "--name", "other", "--force")
    assert found("other").env == {"AGENTVM_PROFILE": "light"}


def test_one_elsewhere_is_not_hidden_by_one_of_the_same_name(home: Path) -> None:
    foreign(home, "other")
    with pytest.raises(ConfigError, match="already"):
        run("add", "--profile", "light", "--name", "other", "--sys-prefix")


def test_what_add_has_made_is_listed_replaced_and_removed(home: Path) -> None:
    run("add", "--user", "--profile", "tiny")
    run("add", "--user", "--profile", "tiny", "--display-name", "Again")
    assert found("agentvm-tiny").display_name == "Again"
    foreign(home, "other")
    listed = json.loads(run("list", "--json").stdout)
    assert [(row["name"], row["profile"], row["remark"]) for row in listed] == [("agentvm-tiny", "tiny", "")]
    (home / "config.toml").write_text("")
    assert "no such profile any more" in run("list").stdout
    run("remove", "agentvm-tiny")
    assert json.loads(run("list", "--json").stdout) == []
    with pytest.raises(ConfigError, match="no kernelspec 'agentvm-tiny'"):
        run("remove", "agentvm-tiny")


def test_the_one_that_came_with_the_package_stays_without_force(home: Path) -> None:
    text = (Path(__file__).parents[2] / "kernelspec" / "kernel.json").read_text()
    folder = foreign(home, "agentvm", text)
    assert json.loads(run("list", "--json").stdout)[0]["remark"] == "not made by add"
    with pytest.raises(ConfigError, match="not one that"):
        run("remove", "agentvm")
    run("remove", "agentvm", "--force")
    assert not folder.exists()
