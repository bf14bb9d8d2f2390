"""The images on this host: finding, building and removing them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentvm_kernel.durable import sync
from agentvm_kernel.errors import ImageError
from agentvm_kernel.image import layer
from agentvm_kernel.image.initramfs import write_initramfs
from agentvm_kernel.image.mmdebstrap import Progress
from agentvm_kernel.image.recipe import Flavour, Sources, digest, image_inputs, layer_inputs

INITRAMFS, MANIFEST = "initramfs.cpio", "manifest.json"
_PARTS = (layer.KERNEL, INITRAMFS, layer.ROOTFS)
_LAYER = "layer.json"
_UNFINISHED = ".unfinished-"
_DIGEST = re.compile(r"[0-9a-f]{64}")

LayerBuilder = Callable[[Sources, Flavour, Path, Path, Progress], None]


@dataclass(frozen=True)
class Image:
    """A complete image: immutable, read-only files in a folder named after their content.

    Attributes:
        digest: SHA-256 of the manifest, which holds the SHA-256 of each file; the folder's name.
        flavour: The flavour it was built as.
        folder: Where the files are.
    """

    digest: str
    flavour: str
    folder: Path

    @property
    def kernel(self) -> Path:
        """The guest kernel (bzImage)."""
        return self.folder / layer.KERNEL

    @property
    def initramfs(self) -> Path:
        """The initramfs, with the guest code in it."""
        return self.folder / INITRAMFS

    @property
    def rootfs(self) -> Path:
        """The root file system: raw ext4 over the whole disk, sparse."""
        return self.folder / layer.ROOTFS

    def manifest(self) -> dict[str, Any]:
        """Return what the image is made of: inputs, packages with versions, files with sizes and digests.

        Raises:
            ImageError: the manifest is not the one that the image is named after.
        """
        try:
            content = (self.folder / MANIFEST).read_bytes()
        except OSError as error:
            raise ImageError(f"The image {self.digest[:12]} is gone: {error}.", "Build it again.") from error
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise ImageError(f"The image in {self.folder} was changed.", "Remove it and build it again.")
        manifest: dict[str, Any] = json.loads(content)
        return manifest


class ImageStore:
    """The images of one cache folder.

    An image is made of a *root layer* (Debian and its packages, minutes) and an initramfs with the guest code
    (milliseconds). Layers are kept, and images hold hard links to their files. Both are built in a folder of another
    name and renamed when all is on disk, so what has its name is complete.

    Args:
        cache: The user's cache folder.
        sources: What images are made from; this installation's when left out.
        build_layer: Builds a root layer; another one in tests.
    """

    def __init__(
        self, cache: Path, *, sources: Sources | None = None, build_layer: LayerBuilder = layer.build_layer
    ) -> None:
        self._cache = cache
        self._images = cache / "images"
        self._layers = cache / "layers"
        self._sources = sources or Sources.installed()
        self._build_layer = build_layer
        self._found: dict[str, tuple[object, Image]] = {}
        # As root, QEMU runs under a user of its own, which must be able to read.
        self._folder_mode, self._file_mode = (0o755, 0o444) if os.geteuid() == 0 else (0o700, 0o400)

    def digest(self, flavour: str) -> str:
        """Return the digest over everything that goes into an image of this flavour.

        It says whether an image is up to date. An image is *named* by the digest of what came out, because the same
        recipe gives other package versions at another time.

        Raises:
            ImageError: there is no such flavour.
        """
        return digest(image_inputs(self._sources, self._sources.flavour(flavour)))

    def flavours(self) -> list[str]:
        """Return the names of the flavours that can be built."""
        return sorted(self._sources.flavours())

    def images(self) -> list[Image]:
        """Return all complete images, the newest first."""
        found = [_read(folder) for folder in self._images.glob("[0-9a-f]*")]
        return [image for _, image in sorted(filter(None, found), key=lambda pair: pair[0], reverse=True)]

    def find(self, flavour: str) -> Image | None:
        """Return the complete, up-to-date image of a flavour, if there is one; of a digest, the complete image.

        Every acquire of a VM asks this: as long as no file has changed, the last answer is given again.

        Raises:
            ImageError: there is no such flavour, or the image was changed.
        """
        stamp = (self._sources.stamp(), self._images.stat().st_mtime_ns if self._images.exists() else 0)
        known = self._found.get(flavour)
        if known is not None and known[0] == stamp:
            return known[1]
        if _DIGEST.fullmatch(flavour):
            return next((image for image in self.images() if image.digest == flavour and image.manifest()), None)
        wanted = self.digest(flavour)
        for image in self.images():
            if image.flavour == flavour and digest(image.manifest()["inputs"]) == wanted:
                self._found[flavour] = (stamp, image)
                return image
        return None

    def build(self, flavour: str, progress: Progress) -> Image:
        """Build the image of a flavour, unless it is there; of several builders at once, one builds.

        Args:
            flavour: What to build.
            progress: Called with the stage, in a few words, and the share of it that is done where that is known.

        Raises:
            ImageError: there is no such flavour, the host lacks something, or a step failed.
        """
        self.digest(flavour)
        try:
            with self._locked(progress):
                self._remove_unfinished()
                return self.find(flavour) or self._build(self._sources.flavour(flavour), progress)
        except OSError as error:
            raise ImageError(
                f"Building the image failed: {error}.", f"Check room and rights in {self._cache}."
            ) from error

    def remove(self, digest: str) -> None:
        """Remove an image, and its root layer when no other image needs that.

        Args:
            digest: The image's digest, or enough of its start to be unambiguous.

        Raises:
            ImageError: no image, or more than one, has a digest that begins so.
        """
        with self._locked(lambda _stage, _done: None):
            self._remove_unfinished()
            found = [image for image in self.images() if len(digest) >= 6 and image.digest.startswith(digest)]
            if len(found) != 1:
                raise ImageError(f"{digest!r} names {len(found)} images.", "`agentvm image list` shows the digests.")
            _remove(found[0].folder)
            for folder in self._layers.glob("[0-9a-f]*"):
                if (folder / layer.ROOTFS).stat().st_nlink == 1:
                    _remove(folder)

    def _build(self, flavour: Flavour, progress: Progress) -> Image:
        inputs = image_inputs(self._sources, flavour)
        root = self._find_or_build_layer(flavour, progress)
        progress("writing the initramfs", None)
        with self._unfinished(self._images) as folder:
            for name in (layer.KERNEL, layer.ROOTFS):
                _link(root / name, folder / name)
            write_initramfs(
                folder / INITRAMFS,
                init=(self._sources.guest / "image" / "init").read_bytes(),
                busybox=(root / layer.BUSYBOX).read_bytes(),
                modules=root / layer.MODULES,
                wanted=flavour.modules,
                code=self._sources.guest_code(),
            )
            description = json.loads((root / _LAYER).read_bytes())
            description["files"] = {name: description["files"].get(name) or _describe(folder / name) for name in _PARTS}
            manifest = {"layer": root.name, "inputs": inputs, **description}
            content = json.dumps(manifest, indent=1, sort_keys=True).encode()
            (folder / MANIFEST).write_bytes(content)
            name = hashlib.sha256(content).hexdigest()
            return Image(name, flavour.name, self._publish(folder, self._images / name))

    def _find_or_build_layer(self, flavour: Flavour, progress: Progress) -> Path:
        target = self._layers / digest(layer_inputs(self._sources, flavour))
        if target.is_dir():
            return target
        log = self._log(flavour.name)
        with self._unfinished(self._layers) as folder:
            self._build_layer(self._sources, flavour, folder, log, progress)
            progress("checking the image", None)
            description = json.loads((folder / layer.PACKAGES).read_bytes())
            description["files"] = {name: _describe(folder / name) for name in (layer.KERNEL, layer.ROOTFS)}
            (folder / _LAYER).write_text(json.dumps(description), encoding="utf-8")
            return self._publish(folder, target)

    def _log(self, flavour: str) -> Path:
        folder = self._cache / "logs"
        self._make_folder(folder)
        log = folder / f"image-{flavour}.log"
        log.write_text("", encoding="utf-8")
        return log

    @contextmanager
    def _locked(self, progress: Progress) -> Iterator[None]:
        for folder in (self._cache, self._images, self._layers):
            self._make_folder(folder)
        with (self._cache / "images.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another build to end", None)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(self._folder_mode)

    @contextmanager
    def _unfinished(self, shelf: Path) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=shelf))
        try:
            folder.chmod(self._folder_mode)
            yield folder
        finally:
            if folder.is_dir():
                shutil.rmtree(folder)

    def _remove_unfinished(self) -> None:
        for shelf in (self._images, self._layers):
            for folder in shelf.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(folder)

    def _publish(self, folder: Path, target: Path) -> Path:
        """Put a filled folder on disk for good, and only then under its name."""
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
                continue
            path.chmod(self._file_mode)
            sync(path)
        sync(folder)
        folder.rename(target)
        sync(target.parent)
        return target


def _read(folder: Path) -> tuple[float, Image] | None:
    """Return an image and its age; of a broken one, which can still be removed, the flavour is unknown."""
    try:
        content = (folder / MANIFEST).read_bytes()
        changed = folder.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        flavour = str(json.loads(content)["inputs"]["flavour"]["name"])
    except (ValueError, KeyError, TypeError):
        flavour = ""
    return changed, Image(folder.name, flavour, folder)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "on_disk": path.stat().st_blocks * 512, "sha256": content}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Some file systems have no hard links.
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", "--", source, target], check=True)


def _remove(folder: Path) -> None:
    """Remove a folder so that an interruption leaves no half of it under its name."""
    doomed = folder.with_name(f"{_UNFINISHED}{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed)
