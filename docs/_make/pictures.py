"""Draws the pictures of docs/architecture.md: run it, and it writes docs/pictures/*.svg.

Each picture brings its own background and colours, for light and for dark pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal
from xml.sax.saxutils import escape

FOLDER: Final = Path(__file__).parents[1] / "pictures"

Kind = Literal["plain", "trusted", "hostile", "kept"]

_STYLE: Final = """
  .page { fill: #ffffff } .ink { fill: #1f2328 } .faint { fill: #57606a } .head { fill: #57606a }
  .line { stroke: #57606a; fill: none; stroke-width: 1.5 }
  .wall { stroke: #cf222e; stroke-width: 2; stroke-dasharray: 8 5 }
  .plain { fill: #f6f8fa; stroke: #8c959f } .trusted { fill: #ddf4ff; stroke: #0969da }
  .hostile { fill: #ffebe9; stroke: #cf222e } .kept { fill: #dafbe1; stroke: #1a7f37 }
  .say { paint-order: stroke; stroke: #ffffff; stroke-width: 5; stroke-linejoin: round }
  text { font: 14px system-ui, sans-serif } .small { font-size: 12.5px } .title { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .ink { fill: #e6edf3 } .faint { fill: #9198a1 } .head { fill: #9198a1 }
    .say { stroke: #0d1117 } .line { stroke: #9198a1 } .wall { stroke: #ff7b72 }
    .plain { fill: #161b22; stroke: #656c76 } .trusted { fill: #0c2d4d; stroke: #4493f8 }
    .hostile { fill: #3c1414; stroke: #ff7b72 } .kept { fill: #0f2d17; stroke: #3fb950 }
  }
"""


class Picture:
    """A drawing.

    Args:
        width: Pixels.
        height: Pixels.
        title: What it shows, for who cannot see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n'
            f"<style>{_STYLE}</style>\n"
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
            'orient="auto-start-reverse"><path class="head" d="M0 0 10 5 0 10z"/></marker>\n'
            f'<rect class="page" width="{width}" height="{height}" rx="8"/>\n'
        )
        self._parts: list[str] = []

    def text(self, x: float, y: float, text: str, style: str = "ink small", anchor: str = "middle") -> None:
        """Write a line."""
        self._parts.append(f'<text class="{style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>')

    def box(self, x: int, y: int, width: int, height: int, title: str, *lines: str, kind: Kind = "plain") -> None:
        """Draw a box with a title and lines below it, from its top."""
        self._parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
        self.text(x + width / 2, y + 22, title, "ink title")
        for number, line in enumerate(lines):
            self.text(x + width / 2, y + 42 + 17 * number, line, "faint small")

    def zone(self, x: int, y: int, width: int, height: int, title: str, kind: Kind) -> None:
        """Draw what other boxes lie in."""
        self._parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
        self.text(x + width / 2, y + 22, title, "ink title")

    def arrow(self, points: str, text: str = "", at: tuple[float, float] = (0, 0), *, both: bool = False) -> None:
        """Draw a line through points (``"x,y x,y"``) with a head at its end, and words beside it."""
        start = ' marker-start="url(#head)"' if both else ""
        self._parts.append(f'<polyline class="line" points="{points}" marker-end="url(#head)"{start}/>')
        if text:
            self.text(*at, text, "ink small say")

    def line(self, points: str, style: str = "line") -> None:
        """Draw a line without a head."""
        self._parts.append(f'<polyline class="{style}" points="{points}" fill="none"/>')

    def __str__(self) -> str:
        return self._head + "\n".join(self._parts) + "\n</svg>\n"


def primitives() -> Picture:
    """Two primitives: what there is, and what becomes of it."""
    picture = Picture(
        1060, 330, "An image is booted once; clones of its golden snapshot are VMs, and VMs are snapshotted"
    )
    picture.box(20, 30, 180, 95, "image", "root filesystem, kernel,", "initramfs; named by", "its digest", kind="kept")
    picture.box(
        290, 30, 190, 95, "golden snapshot", "memory, device state, disk:", "booted, Python up and idle", kind="kept"
    )
    picture.box(
        560,
        30,
        210,
        95,
        "VM",
        "a QEMU of its own: private",
        "view of that memory, empty",
        "layer over that disk",
        kind="hostile",
    )
    picture.box(
        850,
        30,
        190,
        95,
        "snapshot",
        "device state, and what was",
        "written since: pages and",
        "a disk layer",
        kind="kept",
    )
    picture.arrow("200,77 288,77", "boot, once", (244, 68))
    picture.arrow("480,77 558,77", "clone", (518, 68))
    picture.arrow("770,77 848,77", "snapshot", (809, 68))
    picture.arrow("850,110 815,110 815,150 385,150 385,127")
    picture.arrow("945,125 945,180 650,180 650,127", "clone: %rollback, %undo, %%fork", (828, 174))
    picture.box(290, 225, 190, 85, "blank", "a started QEMU with that", "memory; nothing loaded,", "paused")
    picture.box(560, 225, 210, 85, "warm VM", "golden, with an identity;", "has answered once; paused")
    picture.arrow("480,267 558,267", "in advance", (519, 258))
    picture.arrow("385,225 385,195 600,195 600,127", "fill", (500, 200))
    picture.arrow("720,225 720,127", "resume", (720, 216))
    picture.text(460, 155, "descends from", "ink small say")
    picture.text(20, 250, "kept ready by the supervisor:", "ink title small", "start")
    picture.text(20, 270, "what takes long is done before", "faint small", "start")
    picture.text(20, 287, "it is asked for", "faint small", "start")
    return picture


def processes() -> Picture:
    """Four processes, and the boundary between them."""
    picture = Picture(
        1000, 620, "Browser, Jupyter server, kernel process and supervisor are trusted; QEMU and all in it are not"
    )
    picture.text(20, 32, "trusted: your account on the host", "faint title", "start")
    picture.box(780, 12, 200, 34, "internet, by name")
    picture.box(20, 75, 150, 75, "browser", "JupyterLab, the panel", kind="trusted")
    picture.box(260, 75, 200, 75, "Jupyter server", "with our extension:", "panel, events", kind="trusted")
    picture.box(
        590,
        75,
        390,
        75,
        "supervisor, one per user",
        "pool, leases, snapshots, gateway, metrics,",
        "audit log, anomalies",
        kind="trusted",
    )
    picture.box(
        190,
        240,
        330,
        75,
        "kernel process, one per notebook",
        "checks and routes each message; host magics;",
        "limits on output; output firewall",
        kind="trusted",
    )
    picture.arrow("170,112 258,112", "HTTP", (214, 103), both=True)
    picture.arrow("460,112 588,112", "HTTP, Unix socket", (524, 103), both=True)
    picture.arrow("360,150 360,238", "ZeroMQ, signed", (360, 200), both=True)
    picture.arrow("520,277 640,277 640,152", "HTTP, Unix socket: lease,", (592, 200), both=True)
    picture.text(592, 217, "snapshot, rollback, forks", "ink small say")
    picture.arrow("860,75 860,48", "what is allowed", (925, 66))
    picture.line("20,375 980,375", "wall")
    picture.text(20, 368, "trust boundary", "faint small", "start")
    picture.zone(180, 400, 800, 200, "QEMU, one per VM: no network card, seccomp sandbox", "hostile")
    picture.zone(200, 435, 760, 150, "guest: kernel, root, everything", "hostile")
    picture.box(
        220,
        470,
        190,
        95,
        "agent and relay",
        "carries messages, runs",
        "programs, copies files",
        "(standard library only)",
    )
    picture.box(500, 470, 180, 95, "ipykernel", "unmodified; runs your", "cells as the user agent")
    picture.box(770, 470, 170, 95, "forwarder", "TCP and names of", "unmodified programs")
    picture.arrow("300,315 300,468", "link", (300, 348), both=True)
    picture.arrow("410,517 498,517", "ZeroMQ", (454, 508), both=True)
    picture.arrow("735,152 735,398", "libvirt, QMP, control port", (735, 320))
    picture.arrow("890,468 890,152", "egress port", (890, 320))
    picture.text(20, 500, "attacker controlled:", "faint title", "start")
    picture.text(20, 520, "all that comes up", "faint small", "start")
    picture.text(20, 537, "through the boundary", "faint small", "start")
    return picture


def cell() -> Picture:
    """What happens to a cell."""
    picture = Picture(
        1100, 560, "A cell goes through the kernel process to ipykernel, and its output back through the firewall"
    )
    a, b, c, d, e = 90, 265, 620, 840, 1010
    for name, x in (("browser", a), ("Jupyter server", b), ("kernel process", c), ("guest agent", d), ("ipykernel", e)):
        picture.line(f"{x},50 {x},548")
        picture.box(x - 75, 15, 150, 36, name, kind="hostile" if x > c else "trusted")
    picture.line("730,10 730,550", "wall")
    picture.arrow(f"{a},85 {b - 2},85", "execute_request", ((a + b) / 2, 78))
    picture.arrow(f"{b},105 {c - 2},105", "ZeroMQ, signed", ((b + c) / 2, 98))
    _notes(
        picture,
        135,
        "a host magic? it is carried out here, and that is all",
        "one is running, or the VM is on its way? it waits",
    )
    picture.arrow(f"{c},180 {d - 2},180", "link, stream “shell”", (730, 171))
    picture.arrow(f"{d},200 {e - 2},200", "ZeroMQ", ((d + e) / 2, 193))
    _notes(
        picture,
        205,
        "the deadline runs; the supervisor is told which cell it",
        "is, for the audit log, the network and anomalies",
    )
    picture.arrow(f"{e},265 {d + 2},265", "busy, output …", ((d + e) / 2, 258))
    picture.arrow(f"{d},285 {c + 2},285", "stream “iopub”", (730, 276))
    _notes(
        picture,
        305,
        "a message, of a kind that may come now, to a request",
        "that was sent? taken apart and written anew:",
        "output firewall, limit and rate of output",
    )
    picture.arrow(f"{c},370 {b + 2},370", "cleaned", ((b + c) / 2, 363))
    picture.arrow(f"{b},390 {a + 2},390", "shown", ((a + b) / 2, 383))
    picture.arrow(f"{e},415 {d + 2},415", "execute_reply", ((d + e) / 2, 408))
    picture.arrow(f"{d},435 {c + 2},435", "stream “shell”", (730, 426))
    _notes(
        picture,
        455,
        "what the cell cost, measured by the host, is added;",
        "with time travel a snapshot comes before the next cell",
    )
    picture.arrow(f"{c},505 {b + 2},505", "execute_reply", ((b + c) / 2, 498))
    picture.arrow(f"{b},525 {a + 2},525", "shown", ((a + b) / 2, 518))
    return picture


def _notes(picture: Picture, y: int, *lines: str) -> None:
    """Write what the kernel process does, left of its line."""
    for number, text in enumerate(lines):
        picture.text(610, y + 17 * number, text, "faint small", "end")


def rollback() -> Picture:
    """What a rollback and a fork do."""
    picture = Picture(
        1060, 400, "A rollback lets a clone of an older snapshot take over; a fork makes several clones of the present"
    )
    picture.text(20, 30, "%rollback clean", "ink title", "start")
    picture.box(20, 50, 110, 40, "golden", kind="kept")
    picture.box(180, 50, 110, 40, "clean", kind="kept")
    picture.box(340, 50, 110, 40, "later", kind="kept")
    picture.arrow("180,70 132,70")
    picture.arrow("340,70 292,70")
    picture.box(500, 40, 190, 60, "VM a, the notebook's", "paused, then ended", kind="hostile")
    picture.arrow("500,70 452,70")
    picture.box(500, 115, 190, 60, "VM b takes over", "another QEMU process", kind="hostile")
    picture.arrow("500,145 235,145 235,92", "clone of", (370, 150))
    _steps(
        picture,
        720,
        60,
        "1  VM a is paused; it goes on if anything fails",
        "2  a blank becomes “clean”: pages, disk, devices",
        "3  it gets a clock, names and keys of its own",
        "4  the lease is VM b's; all snapshots stay",
    )
    picture.line("20,200 1040,200")
    picture.text(20, 235, "%%fork 3, then %adopt 2", "ink title", "start")
    picture.box(20, 275, 110, 40, "golden", kind="kept")
    picture.box(180, 265, 130, 60, "fork point", "a snapshot of now", kind="kept")
    picture.arrow("180,295 132,295")
    picture.box(500, 222, 190, 34, "VM, the notebook's", kind="hostile")
    picture.arrow("500,239 400,239 400,295 312,295")
    for number in range(3):
        y = 264 + 42 * number
        picture.box(500, y, 190, 34, f"VM, fork {number + 1}", kind="hostile")
        picture.arrow(f"500,{y + 17} 400,{y + 17} 400,295 312,295")
    _steps(
        picture,
        720,
        245,
        "1  the present is snapshotted, in milliseconds",
        "2  each fork is a clone, with randomness of its own",
        "3  all run the cell; one that dies costs only itself",
        "4  when done, each is paused",
        "5  one is adopted and takes over; the others end",
    )
    return picture


def _steps(picture: Picture, x: int, y: int, *lines: str) -> None:
    for number, text in enumerate(lines):
        picture.text(x, y + 29 * number, text, "faint small", "start")


PICTURES: Final = {"primitives": primitives, "processes": processes, "cell": cell, "rollback": rollback}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(str(draw()))
