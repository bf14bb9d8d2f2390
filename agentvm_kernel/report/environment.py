"""What an image was built with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from agentvm_kernel.errors import ImageError
from agentvm_kernel.image.store import ImageStore
from agentvm_kernel.report.cleaning import plain

_MOST: Final = 20_000

Packages = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Environment:
    """An image.

    Attributes:
        digest: The image's digest, which is that of its manifest.
        flavour: What it was built as; empty if it is gone.
        facts: More about it.
        packages: Titles, and names with versions.
    """

    digest: str
    flavour: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    packages: tuple[tuple[str, Packages], ...] = ()


def environments(digests: Iterable[str], store: ImageStore) -> list[Environment]:
    """Return what images were built with; of one that is gone or was changed, that.

    Args:
        digests: The images'.
        store: Where they are, if they still are.
    """
    known = {image.digest: image for image in store.images()}
    found: list[Environment] = []
    for digest in dict.fromkeys(digests):
        try:
            found.append(_environment(digest, known[digest].manifest() if digest in known else None))
        except ImageError as error:
            found.append(Environment(digest, "", (("digest", digest), ("manifest", plain(error.message)))))
    return found


def _environment(digest: str, manifest: dict[str, Any] | None) -> Environment:
    if manifest is None:
        gone = "the image is not on this host any more, so that its packages are not known"
        return Environment(digest, "", (("digest", digest), ("manifest", gone)))
    flavour = str(manifest.get("inputs", {}).get("flavour", {}).get("name", ""))
    facts = [("digest", digest), ("flavour", flavour)]
    facts += [(name, str(manifest[name])) for name in ("kernel", "python") if name in manifest]
    kinds = (("Python packages", "python_packages"), ("Debian packages", "debian_packages"))
    packages = tuple((title, _versions(manifest.get(name))) for title, name in kinds)
    return Environment(
        digest, flavour, tuple((name, plain(value)) for name, value in facts),
        tuple((title, found) for title, found in packages if found),
    )  # fmt: skip


def _versions(value: Any) -> Packages:
    if not isinstance(value, dict):
        return ()
    return tuple((plain(str(name)), plain(str(version))) for name, version in sorted(value.items())[:_MOST])
