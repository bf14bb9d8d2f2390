"""A real JupyterLab on loopback, and a real Chromium that looks at it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
from playwright.sync_api import Browser, Error, FrameLocator, Locator, Page, Request, sync_playwright

CHROMIUM = shutil.which("chromium")

# Nothing that Chromium does by itself: every request is the notebook's.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]

# Every output is drawn at once, as far down as it may be; nothing asks for news.
_SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}

_SILENCE = 2.0
"""Seconds after which nothing more is expected of a page."""

_DRIVER = (Path(__file__).parent / "lab_driver.js").read_text()


@dataclass(frozen=True)
class Jupyter:
    """A running Jupyter server.

    Attributes:
        url: Its address, without a slash at its end.
        token: Who knows it may do everything.
        folder: Where its notebooks lie.
        log: What it says.
    """

    url: str
    token: str
    folder: Path
    log: Path

    def asked_by(self, names: set[str]) -> set[str]:
        """Return which cases have reached this server: they ask for what does not exist, which is logged."""
        return set(re.findall(r"(?:GET|HEAD|POST) /[^ ]*?canary-([\w-]+)", self.log.read_text())) & names

    @property
    def kernels(self) -> list[str]:
        """The ids of its kernels."""
        return [str(one["id"]) for one in json.loads(self._ask("GET", "kernels"))]

    def end_kernels(self) -> None:
        """End its kernels, as somebody else does whom no page has asked."""
        for kernel in self.kernels:
            self._ask("DELETE", f"kernels/{kernel}")

    def _ask(self, verb: str, path: str) -> bytes:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", headers=headers, method=verb)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())


@contextmanager
def jupyter(
    folder: Path,
    environment: Mapping[str, str],
    earlier: Jupyter | None = None,
    python: str = sys.executable,
    options: Sequence[str] = (),
) -> Iterator[Jupyter]:
    """Run a Jupyter server with JupyterLab, Notebook and nbclassic; it and its kernels end with the context.

    Args:
        folder: A folder for all that it writes: an empty one, or an earlier server's.
        environment: What its kernels need besides the environment of this process.
        earlier: One that has ended, in whose place it comes: at the same address, with the same token.
        python: The Python that has all this.
        options: More of its command line.
    """
    notebooks, log = folder / "notebooks", folder / "server.log"
    settings = folder / "settings"
    notebooks.mkdir(exist_ok=True)
    settings.mkdir(exist_ok=True)
    (settings / "overrides.json").write_text(json.dumps(_SETTINGS))
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own["IPYTHONDIR"] = str(folder / "ipython")
    found = earlier or Jupyter(f"http://127.0.0.1:{_free_port()}", secrets.token_hex(16), notebooks, log)
    command = [
        *(python, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={found.url.rpartition(':')[2]}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={found.token}", f"--ServerApp.root_dir={notebooks}"),
        *(f"--LabApp.app_settings_dir={settings}", "--LabApp.extension_manager=readonly"),
        "--JupyterNotebookApp.expose_app_in_browser=True",
        *options,
    ]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env={**os.environ, **environment, **own}, stdout=output, stderr=output, cwd=folder
        ) as process,
    ):
        try:
            _wait_until_up(found, process)
            yield found
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                # Its kernels are down; a thread that one of Jupyter's libraries has not ended may hold the rest up.
                process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_up(server: Jupyter, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{server.url}/api", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"Jupyter did not start:\n{server.log.read_text()}") from None
            time.sleep(0.2)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Debian's Chromium."""
    assert CHROMIUM
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def lab(browser: Browser, server: Jupyter, script: str = "") -> Iterator[Lab]:
    """Open JupyterLab in a fresh browser profile; a script goes before all of its own."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.add_init_script(script)
    try:
        page = context.new_page()
        page.goto(f"{server.url}/lab?token={server.token}&reset", timeout=120_000)
        opened = Lab(page)
        opened.prepare()
        yield opened
    finally:
        context.close()


class Traffic:
    """What a page asks for.

    Args:
        page: The page, before it is sent anywhere.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._open: list[Request] = []
        self._last = time.monotonic()
        page.on("request", self._asked)
        page.on("requestfinished", self._answered)
        page.on("requestfailed", self._answered)

    def settle(self) -> None:
        """Wait until it has what it asked for, and asks for nothing but the server's state.

        Raises:
            AssertionError: it goes on asking.
        """
        deadline = time.monotonic() + 180
        while self._open or time.monotonic() - self._last < _SILENCE:
            assert time.monotonic() < deadline, f"the page goes on asking: {[one.url for one in self._open]}"
            self._page.wait_for_timeout(100)

    def _asked(self, request: Request) -> None:
        # Front ends look at these every few seconds.
        if not re.search(r"/api/(kernels|sessions|terminals|contents)", request.url):
            self._open.append(request)
            self._last = time.monotonic()

    def _answered(self, request: Request) -> None:
        if request in self._open:
            self._open.remove(request)
            self._last = time.monotonic()


class Lab:
    """JupyterLab in a page.

    Args:
        page: The page; `prepare` loads the driver.
    """

    def __init__(self, page: Page) -> None:
        self.page = page

    def prepare(self) -> None:
        """Load the driver, once JupyterLab is there; again after the page was loaded again."""
        self.page.wait_for_function("window.jupyterapp !== undefined", timeout=120_000)
        self.page.evaluate("() => window.jupyterapp.restored")
        self.page.evaluate(_DRIVER)

    def open(self, path: str, kernel: str | None = None) -> None:
        """Open a notebook.

        Args:
            path: Its path below the server's folder.
            kernel: What shall run it; none is started if this is None.
        """
        self.page.evaluate("([path, kernel]) => bed.open(path, kernel)", [path, kernel])

    def run(self) -> list[str]:
        """Run each cell and save the notebook; return what the page failed to do."""
        return list(self.page.evaluate("() => bed.run()"))

    def run_one(self, name: str, *, wait: bool = True) -> None:
        """Run a cell.

        Args:
            name: Its name.
            wait: Return when it has ended.
        """
        self.page.evaluate(f"name => {{ const done = bed.runOne(name); return {'done' if wait else 'null'}; }}", name)

    def save(self) -> None:
        """Save the notebook."""
        self.page.evaluate("() => bed.save()")

    def shut_down(self) -> None:
        """End the notebook's kernel."""
        self.page.evaluate("() => bed.shutDown()")

    def settle(self) -> None:
        """Wait until the page has drawn what it got and asks for nothing any more."""
        self.page.evaluate("() => bed.drawn()")
        self.page.wait_for_load_state("networkidle", timeout=120_000)

    def close(self) -> None:
        """Close the notebook, saved, and end its kernel."""
        self.page.evaluate("() => bed.close()")

    def fired(self, names: Sequence[str]) -> dict[str, set[str]]:
        """Return which of the named cases took effect in the page, by kind of effect."""
        return {
            kind: set(found) for kind, found in self.page.evaluate("names => bed.fired(names)", list(names)).items()
        }

    def find(self, cell: Locator, selector: str) -> Locator | None:
        """Wait until a cell's output has what a selector names, in the page or in a frame; return all of it.

        Args:
            cell: The cell.
            selector: A CSS selector.
        """
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for place in (cell.locator(".jp-Cell-outputArea"), *self._frames(cell)):
                if (found := place.locator(selector)).count():
                    return found
            self.page.wait_for_timeout(100)
        return None

    @staticmethod
    def _frames(cell: Locator) -> list[FrameLocator]:
        frames = cell.locator(".jp-Cell-outputArea iframe")
        outer = [frames.nth(number).content_frame for number in range(frames.count())]
        return outer + [frame.locator("iframe").content_frame for frame in outer]

    def kept(self, name: str) -> list[dict[str, object]]:
        """Return what the notebook holds of a cell's outputs, drawn or not."""
        return list(self.page.evaluate("name => bed.kept(name)", name))

    def sources(self) -> list[str]:
        """Return the sources of the notebook's cells."""
        return list(self.page.evaluate("() => bed.sources()"))


def write_notebook(path: Path, cells: Mapping[str, str], kernel: str = "python3") -> None:
    """Write a notebook whose cells may all fail without ending the run.

    Args:
        path: Where to.
        cells: Their sources by name; the driver finds a cell by its name.
        kernel: The kernel that the notebook names.
    """
    nodes = [
        nbformat.v4.new_code_cell(source, metadata={"tags": ["raises-exception"], "case": name})
        for name, source in cells.items()
    ]
    spec = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=nodes, metadata=spec), path)


__all__ = [
    "CHROMIUM",
    "FLAGS",
    "Browser",
    "Error",
    "Jupyter",
    "Lab",
    "Traffic",
    "chromium",
    "jupyter",
    "lab",
    "write_notebook",
]
