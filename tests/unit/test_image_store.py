"""Images are complete or absent, built once, found, listed and removed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_image import ROOTFS_SIZE, fake_layer, make_sources

from agentvm_kernel.errors import ImageError
from agentvm_kernel.image import ImageStore
from agentvm_kernel.image import store as store_module


def quiet(_stage: str, _done: float | None) -> None:
    """Take progress and say nothing."""


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "cache", sources=make_sources(tmp_path), build_layer=fake_layer)


def unfinished(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name.startswith(".unfinished-")]


def test_built_image_has_its_files_and_is_found(store: ImageStore, tmp_path: Path) -> None:
    assert store.find("minimal") is None
    image = store.build("minimal", quiet)
    assert store.find("minimal") == image
    assert store.images() == [image]
    assert image.folder == tmp_path / "cache" / "images" / image.digest
    assert image.kernel.read_bytes() == b"kernel"
    assert image.rootfs.stat().st_size == ROOTFS_SIZE
    assert image.initramfs.read_bytes().startswith(b"070701")
    assert sorted(path.name for path in image.folder.iterdir()) == [
        "initramfs.cpio",
        "manifest.json",
        "rootfs.ext4",
        "vmlinuz",
    ]


def test_manifest_names_packages_inputs_and_files(store: ImageStore) -> None:
    image = store.build("minimal", quiet)
    manifest = image.manifest()
    assert manifest["debian_packages"] == {"bash:amd64": "5"}
    assert manifest["python_packages"] == {"ipykernel": "7.4.0"}
    assert manifest["kernel"] == "6.12"
    assert manifest["inputs"]["flavour"]["name"] == "minimal"
    assert "image/setup.sh" in manifest["inputs"]["files"]
    for name, said in manifest["files"].items():
        content = (image.folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (said["size"], said["sha256"])
    assert set(manifest["files"]) == {"vmlinuz", "initramfs.cpio", "rootfs.ext4"}


def test_files_are_read_only_and_reach_as_far_as_the_user_does(store: ImageStore) -> None:
    image = store.build("minimal", quiet)
    folder, file = (0o755, 0o444) if os.geteuid() == 0 else (0o700, 0o400)
    assert image.folder.stat().st_mode & 0o777 == folder
    assert image.folder.parent.stat().st_mode & 0o777 == folder
    assert {path.stat().st_mode & 0o777 for path in image.folder.iterdir()} == {file}


def test_second_build_reuses_the_first(store: ImageStore) -> None:
    stages: list[str] = []
    image = store.build("minimal", quiet)
    assert store.build("minimal", lambda stage, _done: stages.append(stage)) == image
    assert stages == []


def test_new_guest_code_makes_a_new_image_over_the_same_layer(store: ImageStore, tmp_path: Path) -> None:
    old = store.build("minimal", quiet)
    (tmp_path / "guest" / "agentvm_guest" / "init.py").write_text("# newer\n")
    assert store.find("minimal") is None
    stages: list[str] = []
    new = store.build("minimal", lambda stage, _done: stages.append(stage))
    assert "installing packages" not in stages
    assert new.digest != old.digest
    assert new.rootfs.stat().st_ino == old.rootfs.stat().st_ino
    assert set(store.images()) == {old, new}


def test_what_was_found_once_is_looked_for_again_after_a_change(store: ImageStore, tmp_path: Path) -> None:
    image = store.build("minimal", quiet)
    assert store.find("minimal") == image
    module = tmp_path / "guest" / "agentvm_guest" / "init.py"
    code = module.read_text()
    module.write_text(code + "# changed\n")
    assert store.find("minimal") is None
    module.write_text(code)
    assert store.find("minimal") == image
    store.remove(image.digest)
    assert store.find("minimal") is None


def test_without_hard_links_the_files_are_copied(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    image = store.build("minimal", quiet)
    assert image.rootfs.stat().st_nlink == 1
    assert hashlib.sha256(image.rootfs.read_bytes()).hexdigest() == image.manifest()["files"]["rootfs.ext4"]["sha256"]


def test_progress_tells_stage_and_share(store: ImageStore) -> None:
    seen: list[tuple[str, float | None]] = []
    store.build("minimal", lambda stage, done: seen.append((stage, done)))
    assert ("installing packages", 0.5) in seen
    assert seen[-1] == ("writing the initramfs", None)


class Saboteur:
    """Fails the n-th of the steps that it is wrapped around."""

    def __init__(self, at: int) -> None:
        self.left = at

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(28, "No space left on device")
            return step(*arguments, **named)

        return run


def sabotage(monkeypatch: pytest.MonkeyPatch, saboteur: Saboteur) -> None:
    for owner, name in (
        (Path, "rename"),
        (Path, "chmod"),
        (Path, "write_bytes"),
        (Path, "write_text"),
        (os, "fsync"),
        (store_module, "_describe"),
        (store_module, "write_initramfs"),
    ):
        monkeypatch.setattr(owner, name, saboteur.around(getattr(owner, name)))


def failure_of(store: ImageStore) -> ImageError | None:
    try:
        store.build("minimal", quiet)
    except ImageError as error:
        return error
    return None


def test_a_failure_at_any_step_leaves_nothing_that_looks_like_an_image(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    failures = 0
    while True:
        cache = tmp_path / str(failures)
        store = ImageStore(cache, sources=sources, build_layer=fake_layer)
        with pytest.MonkeyPatch.context() as patch:
            saboteur = Saboteur(failures + 1)
            sabotage(patch, saboteur)
            error = failure_of(store)
        if saboteur.left > 0:
            assert error is None
            break
        assert error is not None
        assert "No space left" in error.message
        assert str(cache) in error.hint
        found = store.find("minimal")
        # Only the very last step, after the rename, may fail and leave an image; it is then a complete one.
        assert found is None or found.manifest()["files"]["vmlinuz"]["size"] == len(b"kernel")
        assert unfinished(cache) == []
        assert store.build("minimal", quiet) == store.find("minimal")
        failures += 1
    assert failures > 15


def test_a_killed_builder_leaves_nothing_and_the_next_one_cleans_up(store: ImageStore, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    script = f"""
import sys, threading
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fake_image import fake_layer
from agentvm_kernel.image import ImageStore
from agentvm_kernel.image.recipe import Sources

def stuck(sources, flavour, folder, log, progress):
    fake_layer(sources, flavour, folder, log, progress)
    print("half", flush=True)
    threading.Event().wait()

root = Path({str(tmp_path)!r})
sources = Sources(root / "guest", root / "agentvm_kernel")
ImageStore(root / "cache", sources=sources, build_layer=stuck).build("minimal", lambda stage, done: None)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "half\n"
        builder.send_signal(signal.SIGKILL)
    assert unfinished(cache) != []
    assert store.images() == []
    assert store.find("minimal") is None
    image = store.build("minimal", quiet)
    assert unfinished(cache) == []
    assert store.images() == [image]


def test_of_two_builders_at_once_one_builds(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    started, waiting = threading.Event(), threading.Event()
    builds: list[str] = []
    images: list[object] = []

    def slow(*arguments: Any) -> None:
        builds.append("build")
        started.set()
        assert waiting.wait(60)
        fake_layer(*arguments)

    def second_progress(stage: str, _done: float | None) -> None:
        if stage.startswith("waiting"):
            waiting.set()

    store = ImageStore(tmp_path / "cache", sources=sources, build_layer=slow)
    first = threading.Thread(target=lambda: images.append(store.build("minimal", quiet)))
    first.start()
    assert started.wait(60)
    images.append(store.build("minimal", second_progress))
    first.join()
    assert builds == ["build"]
    assert images[0] == images[1]


def test_remove_takes_the_image_and_a_layer_that_nothing_needs(store: ImageStore, tmp_path: Path) -> None:
    old = store.build("minimal", quiet)
    (tmp_path / "guest" / "agentvm_guest" / "init.py").write_text("# newer\n")
    new = store.build("minimal", quiet)
    layers = tmp_path / "cache" / "layers"
    store.remove(old.digest)
    assert store.images() == [new]
    assert len(list(layers.iterdir())) == 1
    store.remove(new.digest[:12])
    assert store.images() == []
    assert list(layers.iterdir()) == []
    assert unfinished(tmp_path / "cache") == []


@pytest.mark.parametrize("digest", ["", "abc", "f" * 64, "../../etc"])
def test_removing_what_is_not_there_is_an_error(store: ImageStore, digest: str) -> None:
    store.build("minimal", quiet)
    with pytest.raises(ImageError, match="names 0 images"):
        store.remove(digest)
    assert len(store.images()) == 1


def test_a_changed_manifest_is_not_trusted(store: ImageStore) -> None:
    image = store.build("minimal", quiet)
    path = image.folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["debian_packages"]["bash:amd64"] = "6"
    path.chmod(0o644)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ImageError, match="was changed"):
        store.find("minimal")


def test_a_broken_image_is_listed_to_be_removed_and_does_not_stop_a_build(store: ImageStore) -> None:
    image = store.build("minimal", quiet)
    path = image.folder / "manifest.json"
    path.chmod(0o644)
    path.write_text("{")
    assert store.find("minimal") is None
    assert [(found.digest, found.flavour) for found in store.images()] == [(image.digest, "")]
    store.remove(image.digest)
    assert store.build("minimal", quiet) == image


def test_everything_is_on_disk_before_it_gets_its_name(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    published: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def record(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def check(folder: Path, target: Path) -> Path:
        assert {path.stat().st_ino for path in (folder, *folder.iterdir())} <= synced
        published.append(target.parent.name)
        return rename(folder, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "rename", check)
    store.build("minimal", quiet)
    assert published == ["layers", "images"]


def test_an_image_that_vanished_is_an_image_error(store: ImageStore) -> None:
    image = store.build("minimal", quiet)
    store.remove(image.digest)
    with pytest.raises(ImageError, match="is gone"):
        image.manifest()


def test_unknown_flavour_is_refused_before_anything_is_made(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no image flavour 'huge'"):
        store.build("huge", quiet)
    assert not (tmp_path / "cache").exists()


def test_flavours_are_listed(store: ImageStore) -> None:
    assert store.flavours() == ["minimal", "standard"]
