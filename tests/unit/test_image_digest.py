"""What an image's digest depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_image import REPOSITORY, make_sources

from agentvm_kernel.errors import ImageError
from agentvm_kernel.image import recipe
from agentvm_kernel.image.recipe import Sources, digest, image_inputs, layer_inputs


def digests(sources: Sources, flavour: str = "minimal") -> tuple[str, str]:
    made = sources.flavour(flavour)
    return digest(layer_inputs(sources, made)), digest(image_inputs(sources, made))


def append(name: str) -> Callable[[Sources], None]:
    def change(sources: Sources) -> None:
        path = sources.guest.parent / name
        path.write_text(path.read_text() + "\n# changed\n")

    return change


def replace(old: str, new: str) -> Callable[[Sources], None]:
    def change(sources: Sources) -> None:
        path = sources.guest / "image" / "recipe.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def add(name: str) -> Callable[[Sources], None]:
    def change(sources: Sources) -> None:
        path = sources.guest.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new\n")

    return change


LAYER = {
    "a package": replace('"sudo",', '"sudo", "file",'),
    "a Python package": replace("ipywidgets>=8.1", "ipywidgets>=8.2"),
    "the suite": replace('suite = "trixie"', 'suite = "forky"'),
    "the kernel package": replace("linux-image-cloud-amd64", "linux-image-amd64"),
    "setup.sh": append("guest/image/setup.sh"),
    "mkfs.sh": append("guest/image/mkfs.sh"),
    "kernel.sh": append("guest/image/kernel.sh"),
    "an installed file": append("guest/image/files/etc/hosts"),
    "a new installed file": add("guest/image/files/etc/new"),
}
IMAGE_ONLY = {
    "init": append("guest/image/init"),
    "guest code": append("guest/agentvm_guest/init.py"),
    "new guest code": add("guest/agentvm_guest/new.py"),
    "shared code": append("agentvm_kernel/link/frame.py"),
    "errors": append("agentvm_kernel/errors.py"),
    "a module": replace('"pvpanic_pci",', ""),
}
IRRELEVANT = {
    "host code": append("agentvm_kernel/cli.py"),
    "byte code": add("guest/agentvm_guest/__pycache__/init.cpython-313.pyc"),
    "another flavour": replace('"nodejs"', '"nodejs", "golang"'),
    "a comment in the recipe": replace("# Loaded by", "# Read by"),
    "another order of packages": replace('"curl",\n  "e2fsprogs",', '"e2fsprogs",\n  "curl",'),
}


@pytest.mark.parametrize("change", LAYER.values(), ids=LAYER.keys())
def test_package_part_changes_layer_and_image(tmp_path: Path, change: Callable[[Sources], None]) -> None:
    sources = make_sources(tmp_path)
    before = digests(sources)
    change(sources)
    after = digests(sources)
    assert after[0] != before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("change", IMAGE_ONLY.values(), ids=IMAGE_ONLY.keys())
def test_guest_code_changes_the_image_and_keeps_the_layer(tmp_path: Path, change: Callable[[Sources], None]) -> None:
    sources = make_sources(tmp_path)
    before = digests(sources)
    change(sources)
    after = digests(sources)
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("change", IRRELEVANT.values(), ids=IRRELEVANT.keys())
def test_what_is_not_in_the_image_does_not_matter(tmp_path: Path, change: Callable[[Sources], None]) -> None:
    sources = make_sources(tmp_path)
    before = digests(sources)
    change(sources)
    assert digests(sources) == before


def test_format_changes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = make_sources(tmp_path)
    before = digests(sources)
    monkeypatch.setattr(recipe, "FORMAT", recipe.FORMAT + 1)
    assert all(old != new for old, new in zip(before, digests(sources), strict=True))


def test_digest_does_not_depend_on_where_the_sources_lie(tmp_path: Path) -> None:
    assert digests(make_sources(tmp_path / "a")) == digests(make_sources(tmp_path / "b"))


def test_standard_has_everything_minimal_has() -> None:
    flavours = Sources.installed().flavours()
    assert set(flavours["standard"].packages) > set(flavours["minimal"].packages)
    assert set(flavours["standard"].pip) > set(flavours["minimal"].pip)
    assert {"nodejs", "build-essential"} <= set(flavours["standard"].packages)


def test_checkout_uses_its_own_guest_folder() -> None:
    assert Sources.installed().guest == REPOSITORY / "guest"


def test_wheel_carries_the_guest_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_guest").mkdir()
    monkeypatch.setattr(recipe.agentvm_kernel, "__file__", str(tmp_path / "__init__.py"))
    assert Sources.installed() == Sources(tmp_path / "_guest", tmp_path)


def test_unknown_flavour_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="minimal, standard"):
        make_sources(tmp_path).flavour("huge")


@pytest.mark.parametrize("text", ["[", "suite = 1", "[flavours.minimal]\n", 'flavours = "x"'])
def test_unusable_recipe_is_an_image_error(tmp_path: Path, text: str) -> None:
    sources = make_sources(tmp_path)
    (sources.guest / "image" / "recipe.toml").write_text(text)
    with pytest.raises(ImageError, match=r"recipe\.toml is not usable"):
        sources.flavours()


def test_flavour_that_extends_itself_is_an_image_error(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    replace('extends = "minimal"', 'extends = "standard"')(sources)
    with pytest.raises(ImageError, match="not usable"):
        sources.flavours()
