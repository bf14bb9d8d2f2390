"""The image of the recorded machine: found by its digest, or built anew and held against what is recorded of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentvm_kernel.errors import ImageError
from agentvm_kernel.image.store import Image, ImageStore
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.recorded import RecordedImage

_KINDS: Final = ("python_packages", "debian_packages")
_SHOWN: Final = 50


@dataclass(frozen=True)
class Used:
    """The image that is used.

    Attributes:
        recorded: Digest of the recorded one; empty if none is known.
        digest: Of the one that is used.
        flavour: Its flavour.
        differences: In what its packages differ from the recorded ones, in words.
    """

    recorded: str
    digest: str
    flavour: str
    differences: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether it is the recorded one."""
        return self.digest == self.recorded

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        names = ("recorded", "digest", "flavour")
        return {**{name: getattr(self, name) for name in names}, "differences": list(self.differences)}


def find_image(
    digest: str,
    recorded: RecordedImage,
    flavour: str,
    store: ImageStore,
    on_progress: Callable[[str, float | None], None],
) -> Used:
    """Return the image to use: that of the digest if it can be had, else that which the recipe builds now; blocks.

    Args:
        digest: Of the recorded image; empty if none is known.
        recorded: What is recorded of it.
        flavour: Of which flavour it is, where the record does not say.
        store: The images of this host.
        on_progress: Called while one is built.

    Raises:
        ImageError: none can be built.
        ReproduceError: the flavour is none.
    """
    flavour = recorded.flavour or flavour or "standard"
    present = {image.digest: image for image in store.images()}
    if digest in present and store.find(digest):
        return Used(digest, digest, present[digest].flavour)
    if flavour not in store.flavours():
        raise ReproduceError(
            f"The notebook was run in an image of the flavour {flavour!a:.40}, which is not known here.",
            f"Choose another with --image: {', '.join(store.flavours())}.",
        )
    current = store.find(flavour) or store.build(flavour, on_progress)
    differences = () if current.digest == digest else _differences(digest, recorded, current)
    return Used(digest, current.digest, flavour, differences)


def _differences(digest: str, recorded: RecordedImage, current: Image) -> tuple[str, ...]:
    if not digest:
        return ("which image was used is not recorded",)
    before = recorded.packages
    if not before:
        return ("the packages of the recorded image are not known: it is not on this host, and not in the record",)
    lines = compare_packages(before, _packages(current))
    return lines or ("all packages are the same; the guest's own programs or the recipe differ",)


def _packages(image: Image) -> dict[str, Mapping[str, str]]:
    try:
        manifest = image.manifest()
    except ImageError:
        return {}
    return {kind: found for kind in _KINDS if isinstance(found := manifest.get(kind), dict)}


def compare_packages(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """Return in what packages differ, in words.

    Args:
        before: Versions by kind and name.
        now: The same.
    """
    lines = []
    for kind in _KINDS:
        title = kind.partition("_")[0].capitalize()
        first, second = before.get(kind, {}), now.get(kind, {})
        for name in sorted({*first, *second}):
            if first.get(name) != second.get(name):
                one, other = (_version(versions.get(name)) for versions in (first, second))
                lines.append(f"{title} package {name!a:.100}: recorded {one}, now {other}")
    more = len(lines) - _SHOWN
    return tuple(lines[:_SHOWN] + ([f"and {more} packages more"] if more > 0 else []))


def _version(version: str | None) -> str:
    return "none" if version is None else json.dumps(version)[1:-1][:100]
