"""Where Debian packages come from: the host's own mirrors, where the host is a Debian."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_OPTIONS = re.compile(r'Acquire::(https?::|Check-Date |Check-Valid-Until |Retries )[^\n]*";')


@dataclass(frozen=True)
class Source:
    """One archive of apt's sources.

    Attributes:
        uri: Address of the archive.
        suite: Suite, as ``bookworm-security``.
        components: As ``main``.
    """

    uri: str
    suite: str
    components: tuple[str, ...]


def read_sources(folder: Path = Path("/etc/apt")) -> list[Source]:
    """Read apt's sources, in both formats.

    Args:
        folder: Apt's configuration folder.
    """
    found: list[Source] = []
    for path in (folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))):
        if path.is_file():
            found += _one_line(path.read_text(encoding="utf-8", errors="replace"))
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        found += _deb822(path.read_text(encoding="utf-8", errors="replace"))
    return found


def guest_sources(suite: str, codename: str, host: Iterable[Source]) -> list[str]:
    """Return the ``deb`` lines for the guest's suite from the archives that the host uses.

    Args:
        suite: The guest's Debian release.
        codename: The host's own release, empty when it is not a Debian.
        host: The host's sources.

    Returns:
        One line each for the release, its updates and its security fixes, as far as the host has them; nothing where
        the host does not say where Debian is, so that mmdebstrap's defaults apply.
    """
    lines: list[str] = []
    for pocket in ("", "-updates", "-security"):
        for source in host:
            # A password in an address must not end up in a guest.
            usable = source.uri.startswith(("http://", "https://", "file:")) and "@" not in source.uri
            if codename and usable and source.suite == codename + pocket and "main" in source.components:
                lines.append(f"deb {source.uri} {suite}{pocket} main")
                break
    return lines if lines and lines[0].endswith(f" {suite} main") else []


def host_codename(release: Path = Path("/etc/os-release")) -> str:
    """Return the host's Debian release name, empty when the host is something else."""
    if not release.is_file():
        return ""
    values = dict(line.split("=", 1) for line in release.read_text(encoding="utf-8").splitlines() if "=" in line)
    return values.get("VERSION_CODENAME", "").strip('"') if values.get("ID", "").strip('"') == "debian" else ""


def host_options() -> str:
    """Return the host's apt settings that decide whether its mirrors can be reached: proxy, certificates, checks.

    They serve the build and are removed from the image at its end.
    """
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    return "".join(f"{line}\n" for line in dump.stdout.splitlines() if _OPTIONS.fullmatch(line))


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*\]", "", line.split("#", 1)[0]).split()
        if len(words) >= 3 and words[0] == "deb":
            yield Source(words[1].rstrip("/"), words[2], tuple(words[3:]))


def _deb822(text: str) -> Iterator[Source]:
    for stanza in re.split(r"\n[ \t]*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields: dict[str, list[str]] = {}
        key = ""
        for line in lines:
            if line[:1].isspace():
                fields.get(key, []).extend(line.split())
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.lower()
                fields[key] = value.split()
        if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
            continue
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield Source(uri.rstrip("/"), suite, tuple(fields.get("components", ())))
