"""The declarative recipe of the guest image, and the digests that name what is built from it."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import agentvm_kernel
from agentvm_kernel.errors import ImageError

# Raise it when the builder itself changes in a way that no input shows.
FORMAT = 1

# The files of guest/image that go into the root file system; the others go into the initramfs or only steer the build.
_ROOT_SCRIPTS = ("kernel.sh", "setup.sh", "mkfs.sh")
_RECIPE = "recipe.toml"


@dataclass(frozen=True)
class Flavour:
    """What one flavour of the image is made of.

    Attributes:
        name: The flavour's name.
        suite: Debian's release.
        python: Debian's Python version in it, ``major.minor``.
        kernel: Debian package that depends on the guest kernel.
        modules: Kernel modules that the initramfs loads.
        packages: Debian packages, sorted.
        pip: Requirements of the notebook's Python environment, sorted.
    """

    name: str
    suite: str
    python: str
    kernel: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    pip: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """The folders an image is made from.

    Attributes:
        guest: The folder with ``image`` and ``agentvm_guest``.
        package: The folder of ``agentvm_kernel``, whose standard-library part runs in the guest too.
    """

    guest: Path
    package: Path

    @classmethod
    def installed(cls) -> Sources:
        """Return this installation's folders: a wheel carries ``guest`` inside the package, a checkout beside it."""
        package = Path(agentvm_kernel.__file__).parent
        carried = package / "_guest"
        return cls(carried if carried.is_dir() else package.parent / "guest", package)

    def recipe_files(self) -> Iterator[tuple[str, Path]]:
        """Yield name and path of every file of ``guest/image``."""
        return _files(self.guest / "image", "image")

    def root_files(self) -> Iterator[tuple[str, Path]]:
        """Yield name and path of every file that is copied into the root file system, named as there."""
        return _files(self.guest / "image" / "files", "")

    def guest_code(self) -> Iterator[tuple[str, Path]]:
        """Yield name and path of every file of guest code, named as below ``/run/agentvm/lib``."""
        yield from _files(self.guest / "agentvm_guest", "agentvm_guest")
        for name in ("__init__.py", "errors.py"):
            yield f"agentvm_kernel/{name}", self.package / name
        yield from _files(self.package / "link", "agentvm_kernel/link")

    def stamp(self) -> tuple[object, ...]:
        """Return something that changes whenever a file does, without reading the files."""
        files = (path.stat() for _, path in (*self.recipe_files(), *self.guest_code()))
        return tuple((file.st_ino, file.st_mtime_ns, file.st_size) for file in files)

    def flavours(self) -> dict[str, Flavour]:
        """Read the recipe.

        Raises:
            ImageError: the recipe is missing or not valid.
        """
        path = self.guest / "image" / _RECIPE
        try:
            recipe = tomllib.loads(path.read_text(encoding="utf-8"))
            return {name: _flavour(recipe, name) for name in recipe["flavours"]}
        except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, RecursionError) as error:
            raise ImageError(
                f"The image recipe {path} is not usable: {error!r}.", "Reinstall agentvm-kernel or correct the file."
            ) from error

    def flavour(self, name: str) -> Flavour:
        """Return one flavour.

        Raises:
            ImageError: there is none of that name.
        """
        flavours = self.flavours()
        if name not in flavours:
            raise ImageError(f"There is no image flavour {name!r}.", f"Known flavours: {', '.join(sorted(flavours))}.")
        return flavours[name]


def layer_inputs(sources: Sources, flavour: Flavour) -> dict[str, Any]:
    """Return what goes into the root layer: packages, set-up scripts, files.

    Guest code and the initramfs are not part of it, so that changing them does not install Debian anew.
    """
    scripts = ((f"image/{name}", sources.guest / "image" / name) for name in _ROOT_SCRIPTS)
    said = {key: value for key, value in asdict(flavour).items() if key not in ("name", "modules")}
    return {"format": FORMAT, "flavour": said, "files": _hashes([*scripts, *sources.root_files()])}


def image_inputs(sources: Sources, flavour: Flavour) -> dict[str, Any]:
    """Return everything that goes into an image of this flavour.

    The recipe counts as what it says about this flavour, so that another flavour's packages do not matter.
    """
    recipe = ((name, path) for name, path in sources.recipe_files() if name != f"image/{_RECIPE}")
    files = _hashes([*recipe, *sources.guest_code()])
    return {"format": FORMAT, "flavour": asdict(flavour), "files": files}


def digest(inputs: dict[str, Any]) -> str:
    """Return the SHA-256 digest of inputs, in hexadecimal."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _flavour(recipe: dict[str, object], name: str) -> Flavour:
    flavours = recipe["flavours"]
    if not isinstance(flavours, dict):
        raise TypeError("flavours is not a table")
    table = flavours[name]
    base = _flavour(recipe, table["extends"]) if "extends" in table else None
    return Flavour(
        name=name,
        suite=str(recipe["suite"]),
        python=str(recipe["python"]),
        kernel=str(table.get("kernel", base.kernel if base else recipe["kernel"])),
        modules=_strings(recipe["modules"]),
        packages=tuple(sorted({*_strings(table["packages"]), *(base.packages if base else ())})),
        pip=tuple(sorted({*_strings(table["pip"]), *(base.pip if base else ())})),
    )


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{value!r} is not a list of strings")
    return tuple(value)


def _files(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(Path(name) / path.relative_to(folder)), path


def _hashes(files: Iterable[tuple[str, Path]]) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files}
