"""``agentvm kernelspec``: kernels in Jupyter's list with another profile, image or output mode."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

import agentvm_kernel
from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import ConfigError
from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.kernel_command import is_kernel
from agentvm_kernel.terminal import add_row, console, table

if TYPE_CHECKING:
    from jupyter_client.kernelspec import KernelSpecManager

kernelspec_app = typer.Typer(help="Kernels for Jupyter's list: add, list, remove.", no_args_is_help=True)

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LONGEST_TITLE: Final = 100
_MARK: Final = "agentvm"
"""In the metadata of what `add` has made."""

_Force = Annotated[bool, typer.Option("--force", help="Even if it is not one that `agentvm kernelspec add` made.")]

_out = console()


@dataclass(frozen=True)
class Spec:
    """A kernelspec that starts this project's kernel, or takes its name.

    Attributes:
        name: Its name.
        folder: Where it is.
        content: What its ``kernel.json`` holds; empty if that cannot be read.
    """

    name: str
    folder: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, name: str, folder: Path) -> Spec:
        """Read one, whatever it holds."""
        try:
            content = json.loads((folder / "kernel.json").read_text())
        except (OSError, ValueError):
            content = {}
        return cls(name, folder, content if isinstance(content, dict) else {})

    @property
    def is_added(self) -> bool:
        """Whether `add` has made it."""
        metadata = self.content.get("metadata")
        return isinstance(metadata, dict) and _MARK in metadata

    @property
    def is_ours(self) -> bool:
        """Whether it starts this project's kernel."""
        return is_kernel(self.content.get("argv"))

    def chosen(self, variable: str) -> str:
        """Return what it sets an environment variable to; empty if it does not."""
        env = self.content.get("env")
        return str(env.get(variable, "")) if isinstance(env, dict) else ""


def _manager() -> KernelSpecManager:
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415 - loads much that other commands need not

    return KernelSpecManager(ensure_native_kernel=False)


def _specs() -> list[Spec]:
    return [Spec.read(name, Path(folder)) for name, folder in sorted(_manager().find_kernel_specs().items())]


@kernelspec_app.command()
def add(
    profile: Annotated[str, typer.Option(help="Name of the profile.")] = "",
    image: Annotated[str, typer.Option(help="Flavour of the image.")] = "",
    output: Annotated[Mode | None, typer.Option(help="Let no more output through than this.")] = None,
    name: Annotated[str, typer.Option(help="Its name; by default from what is special about it.")] = "",
    display_name: Annotated[str, typer.Option(help="What Jupyter shows.")] = "",
    prefix: Annotated[Path | None, typer.Option(help="Install below PREFIX/share/jupyter.")] = None,
    user: Annotated[bool, typer.Option("--user", help="Install for this user (default outside environments).")] = False,
    sys_prefix: Annotated[
        bool, typer.Option("--sys-prefix", help="Install in this Python environment (default inside one).")
    ] = False,
    force: _Force = False,
) -> None:
    """Add a kernel with a profile, an image or an output mode of its own."""
    chosen = [part for part in (profile, image, output) if part]
    if not chosen:
        raise ConfigError("Say what is special about it: --profile, --image or --output.", "See `agentvm config show`.")
    _check(profile, image)
    name = _checked_name(name or "-".join(("agentvm", *chosen)))
    _check_free(name, force)
    title = _checked_title(display_name or f"Python (AgentVM, {', '.join(chosen)})")
    content = _content(profile, image, output, title)
    where = _place(prefix, user=user, sys_prefix=sys_prefix)
    try:
        with _folder(content) as source:
            made = _manager().install_kernel_spec(str(source), name, **where)
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}.", "Choose another place with --user, --sys-prefix or --prefix."
        ) from error
    print(f"Added {name}: {made}")


def _check(profile: str, image: str) -> None:
    from agentvm_kernel.image.recipe import Sources  # noqa: PLC0415 - not needed by other commands

    if profile:
        load_settings(Paths.of_user()).find_profile(profile)
    if image:
        Sources.installed().flavour(image)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!a} is no valid name.",
            "Valid are small letters, digits, dots, hyphens and underscores; up to 64.",
        )
    return name


def _checked_title(title: str) -> str:
    if not title.isprintable() or len(title) > _LONGEST_TITLE:
        raise ConfigError(
            f"{title[:80]!a} cannot be shown as a name.", f"Use up to {_LONGEST_TITLE} characters that can be seen."
        )
    return title


def _check_free(name: str, force: bool) -> None:
    taken = next((spec for spec in _specs() if spec.name == name), None)
    if taken is not None and not taken.is_added and not force:
        raise ConfigError(
            f"There is a kernelspec {name} in {taken.folder} already, which `agentvm kernelspec add` has not made.",
            "Choose another --name, or use --force.",
        )


def _content(profile: str, image: str, output: Mode | None, title: str) -> dict[str, Any]:
    base: dict[str, Any] = json.loads((_base_folder() / "kernel.json").read_text())
    env = {"AGENTVM_PROFILE": profile, "AGENTVM_IMAGE": image}
    # The Python of this environment, whichever Jupyter starts it.
    argv = [sys.executable, *base["argv"][1:], *([f"--output={output}"] if output else [])]
    return base | {
        "argv": argv,
        "display_name": title,
        "env": {key: value for key, value in env.items() if value},
        "metadata": base["metadata"] | {_MARK: {"profile": profile, "image": image}},
    }


def _place(prefix: Path | None, *, user: bool, sys_prefix: bool) -> dict[str, Any]:
    if (prefix is not None) + user + sys_prefix > 1:
        raise ConfigError("--prefix, --user and --sys-prefix are three places.", "Choose one.")
    if prefix is not None:
        return {"prefix": str(prefix)}
    if sys_prefix or (not user and sys.prefix != sys.base_prefix):
        return {"prefix": sys.prefix}
    return {"user": True}


def _base_folder() -> Path:
    """Return the kernelspec to derive from: a wheel carries it inside the package, a checkout beside it."""
    package = Path(agentvm_kernel.__file__).parent
    carried = package / "_kernelspec"
    return carried if carried.is_dir() else package.parent / "kernelspec"


@contextmanager
def _folder(content: dict[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "spec"
        shutil.copytree(_base_folder(), folder)
        (folder / "kernel.json").write_text(json.dumps(content, indent=2) + "\n")
        yield folder


@kernelspec_app.command("list")
def list_specs(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the kernelspecs that start this project's kernel."""
    settings = load_settings(Paths.of_user())
    rows = []
    for spec in (one for one in _specs() if one.is_ours):
        profile = spec.chosen("AGENTVM_PROFILE")
        lost = profile and profile not in settings.known_profiles
        rows.append(
            {
                "name": spec.name,
                "display_name": str(spec.content.get("display_name", "")),
                "profile": profile,
                "image": spec.chosen("AGENTVM_IMAGE"),
                "folder": str(spec.folder),
                "remark": "there is no such profile any more" if lost else "" if spec.is_added else "not made by add",
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    shown = table("name", "shown as", "profile", "image", "folder", "")
    for row in rows:
        add_row(shown, *row.values())
    _out.print(shown)


@kernelspec_app.command()
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Their names.")], force: _Force = False
) -> None:
    """Remove kernelspecs that `add` has made."""
    specs = {spec.name: spec for spec in _specs()}
    for name in names:
        if name not in specs:
            known = ", ".join(spec.name for spec in specs.values() if spec.is_added)
            raise ConfigError(f"There is no kernelspec {name!a:.80}.", f"Made by add are: {known}." if known else "")
        if not specs[name].is_added and not force:
            raise ConfigError(
                f"The kernelspec {name} in {specs[name].folder} is not one that `agentvm kernelspec add` made.",
                "Use --force to remove it nevertheless.",
            )
        removed = _manager().remove_kernel_spec(name)
        print(f"Removed {name}: {removed}")
