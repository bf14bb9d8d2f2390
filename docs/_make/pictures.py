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
  text { font: 14px system-ui, sans-serif } .small { font-size: 12.5px } .title { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .ink { fill: #e6edf3 } .faint { fill: #9198a1 } .head { fill: #9198a1 }
    .line { stroke: #9198a1 } .wall { stroke: #ff7b72 }
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
        """Draw what other boxes lie in, with its title at the left."""
        self._parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
        self.text(x + 12, y + 20, title, "ink title", "start")

    def arrow(self, points: str, text: str = "", at: tuple[float, float] = (0, 0), *, both: bool = False) -> None:
        """Draw a line through points (``"x,y x,y"``) with a head at its end, and words beside it."""
        start = ' marker-start="url(#head)"' if both else ""
        self._parts.append(f'<polyline class="line" points="{points}" marker-end="url(#head)"{start}/>')
        if text:
            self.text(*at, text)

    def line(self, points: str, style: str = "line") -> None:
        """Draw a line without a head."""
        self._parts.append(f'<polyline class="{style}" points="{points}" fill="none"/>')

    def __str__(self) -> str:
        return self._head + "\n".join(self._parts) + "\n</svg>\n"


def primitives() -> Picture:
    """Two primitives: what there is, and what becomes of it."""
    picture = Picture(
        960, 330, "An image is booted once; clones of its golden snapshot are VMs, and VMs are snapshotted"
    )
    picture.box(20, 40, 170, 90, "image", "root filesystem, kernel,", "initramfs; named by", "its digest", kind="kept")
    picture.box(
        270, 40, 180, 90, "golden snapshot", "memory, device state,", "disk: booted, Python up", "and idle", kind="kept"
    )
    picture.box(
        540,
        40,
        180,
        90,
        "VM",
        "a QEMU of its own: private",
        "view of that memory, empty",
        "layer over that disk",
        kind="hostile",
    )
    picture.box(
        780,
        40,
        160,
        90,
        "snapshot",
        "device state, and what",
        "was written since: pages",
        "and a disk layer",
        kind="kept",
    )
    picture.arrow("190,85 268,85", "boot, once", (230, 76))
    picture.arrow("450,85 538,85", "clone", (494, 76))
    picture.arrow("720,85 778,85", "snapshot", (749, 30))
    picture.arrow("860,130 860,170 630,170 630,132", "clone: rollback, %%fork, %undo", (745, 188))
    picture.arrow("780,115 748,115 748,150 360,150 360,132", "descends from", (560, 144))
    picture.box(270, 225, 180, 85, "blank", "a started QEMU: that", "memory, nothing loaded,", "paused", kind="plain")
    picture.box(540, 225, 180, 85, "warm VM", "golden, with an identity,", "has answered once;", "paused", kind="plain")
    picture.arrow("450,267 538,267", "in advance", (494, 258))
    picture.arrow("560,225 560,132", "fill", (541, 215))
    picture.arrow("450,245 500,245 500,205 560,205 560,200", "", (0, 0))
    picture.arrow("690,225 690,132", "resume", (720, 215))
    picture.text(20, 250, "kept ready by the supervisor:", "ink title small", "start")
    picture.text(20, 270, "what takes long is done before", "faint small", "start")
    picture.text(20, 287, "it is asked for", "faint small", "start")
    return picture


def processes() -> Picture:
    """Four processes, and the boundary between them."""
    picture = Picture(
        960, 590, "Browser, Jupyter server, kernel process and supervisor are trusted; QEMU and all in it are not"
    )
    picture.text(20, 28, "trusted: your account on the host", "faint title", "start")
    picture.box(20, 45, 150, 75, "browser", "JupyterLab, the panel", kind="trusted")
    picture.box(260, 45, 190, 75, "Jupyter server", "with our extension: panel,", "events", kind="trusted")
    picture.box(
        560,
        45,
        380,
        75,
        "supervisor, one per user",
        "pool, leases, snapshots, gateway, metrics,",
        "audit log, anomalies",
        kind="trusted",
    )
    picture.box(
        210,
        210,
        290,
        95,
        "kernel process, one per notebook",
        "checks and routes each message; host magics;",
        "limits on output; output firewall",
        "",
        kind="trusted",
    )
    picture.arrow("170,82 258,82", "HTTP", (214, 74), both=True)
    picture.arrow("450,70 558,70", "HTTP, own socket", (505, 62), both=True)
    picture.arrow("330,120 330,208", "ZeroMQ, signed", (385, 170), both=True)
    picture.arrow("500,240 640,240 640,122", "HTTP, own socket: lease,", (725, 232), both=True)
    picture.text(725, 249, "snapshot, rollback, forks")
    picture.line("20,345 940,345", "wall")
    picture.text(940, 338, "trust boundary", "faint small", "end")
    picture.zone(
        180, 370, 760, 200, "QEMU, one per VM: no network card, seccomp sandbox; started through libvirt", "hostile"
    )
    picture.zone(200, 405, 720, 150, "guest: kernel, root, everything", "hostile")
    picture.box(
        220,
        440,
        180,
        95,
        "agent and relay",
        "carries messages,",
        "runs programs, copies",
        "files; standard library",
        kind="plain",
    )
    picture.box(490, 440, 150, 95, "ipykernel", "unmodified; runs your", "cells as user agent", kind="plain")
    picture.box(730, 440, 170, 95, "forwarder", "TCP and names of", "unmodified programs", kind="plain")
    picture.arrow("300,305 300,438", "link", (278, 362), both=True)
    picture.arrow("400,487 488,487", "ZeroMQ", (444, 479), both=True)
    picture.arrow("690,122 690,368", "libvirt, QMP;", (738, 300))
    picture.text(738, 317, "control port")
    picture.arrow("830,438 830,122", "egress port", (870, 300))
    picture.arrow("900,45 900,12 700,12", "by name, what is allowed: internet", (800, 30))
    picture.text(20, 480, "attacker controlled:", "faint title", "start")
    picture.text(20, 500, "all that comes up", "faint small", "start")
    picture.text(20, 517, "through the boundary", "faint small", "start")
    return picture


def cell() -> Picture:
    """What happens to a cell."""
    picture = Picture(
        960,
        560,
        "A cell goes through the kernel process to ipykernel, and its output back through the firewall",
    )
    names = (
        ("browser", "trusted"),
        ("Jupyter server", "trusted"),
        ("kernel process", "trusted"),
        ("guest agent", "hostile"),
        ("ipykernel", "hostile"),
    )
    places = (90, 270, 480, 700, 870)
    kinds: dict[str, Kind] = {"trusted": "trusted", "hostile": "hostile"}
    for (name, kind), x in zip(names, places, strict=True):
        picture.box(x - 75, 15, 150, 36, name, kind=kinds[kind])
        picture.line(f"{x},51 {x},545")
    picture.line("590,10 590,550", "wall")
    a, b, c, d, e = places
    picture.arrow(f"{a},85 {b - 2},85", "execute_request", ((a + b) / 2, 78))
    picture.arrow(f"{b},105 {c - 2},105", "signed", ((b + c) / 2, 98))
    _note(picture, 120, "is it a host magic? then it ends here.", "Is one running, or the VM on its way? it waits.")
    picture.arrow(f"{c},190 {d - 2},190", "link, stream “shell”", (645, 183))
    picture.arrow(f"{d},210 {e - 2},210", "ZeroMQ", ((d + e) / 2, 203))
    _note(picture, 205, "deadline runs; the supervisor is told which cell", "it is: audit log, network, anomalies")
    picture.arrow(f"{e},275 {d + 2},275", "busy, output …", ((d + e) / 2, 268))
    picture.arrow(f"{d},295 {c + 2},295", "stream “iopub”", (645, 288))
    _note(
        picture,
        310,
        "is it a message, of a kind that may come now, to",
        "a request that was sent? Taken apart and written",
    )
    _note(picture, 347, "anew: output firewall, limit and rate of output", "")
    picture.arrow(f"{c},400 {b + 2},400", "cleaned", ((b + c) / 2, 393))
    picture.arrow(f"{b},420 {a + 2},420", "shown", ((a + b) / 2, 413))
    picture.arrow(f"{e},445 {d + 2},445", "execute_reply", ((d + e) / 2, 438))
    picture.arrow(f"{d},465 {c + 2},465", "stream “shell”", (645, 458))
    _note(picture, 468, "adds what the host measured; with time travel,", "a snapshot comes before the next cell")
    picture.arrow(f"{c},530 {b + 2},530", "reply", ((b + c) / 2, 523))
    picture.arrow(f"{b},540 {a + 2},540", "", (0, 0))
    return picture


def _note(picture: Picture, y: int, first: str, second: str) -> None:
    """Write what the kernel process does, left of its line."""
    for number, text in enumerate(filter(None, (first, second))):
        picture.text(470, y + 17 + 17 * number, text, "faint small", "end")


def rollback() -> Picture:
    """What a rollback and a fork do."""
    picture = Picture(
        960, 400, "A rollback lets a clone of an older snapshot take over; a fork makes several clones of the present"
    )
    picture.text(20, 30, "%rollback clean", "ink title", "start")
    picture.box(20, 50, 110, 40, "golden", kind="kept")
    picture.box(180, 50, 110, 40, "clean", kind="kept")
    picture.box(340, 50, 110, 40, "later", kind="kept")
    picture.arrow("180,70 132,70")
    picture.arrow("340,70 292,70")
    picture.box(500, 40, 180, 60, "VM a: the notebook's", "paused, then ended", kind="hostile")
    picture.arrow("500,70 452,70")
    picture.box(500, 115, 180, 60, "VM b: takes over", "another QEMU process", kind="hostile")
    picture.arrow("500,145 235,145 235,92")
    for number, text in enumerate((
        "1  VM a is paused: it goes on if anything fails", "2  a blank becomes “clean”: pages, disk, devices",
        "3  it gets a clock, names and keys of its own", "4  the lease is VM b's; the snapshots stay",
    )):  # fmt: skip
        picture.text(700, 60 + 30 * number, text, "faint small", "start")
    picture.line("20,200 940,200")
    picture.text(20, 235, "%%fork 3, then %adopt 2", "ink title", "start")
    picture.box(20, 275, 110, 40, "golden", kind="kept")
    picture.box(180, 265, 130, 60, "fork point", "a snapshot of now", kind="kept")
    picture.arrow("180,295 132,295")
    picture.box(400, 225, 180, 40, "VM: the notebook's", kind="hostile")
    for number in range(3):
        picture.box(400, 275 + 38 * number, 180, 32, f"VM: fork {number + 1}", kind="hostile")
        picture.arrow(f"400,{291 + 38 * number} 350,{291 + 38 * number} 350,295 312,295")
    picture.arrow("400,245 350,245 350,295 312,295")
    for number, text in enumerate((
        "1  the present is snapshotted: milliseconds", "2  each fork is a clone, with random numbers of its own",
        "3  all run the cell; one that dies costs only itself", "4  done, they are paused; one can be adopted:",
        "    it takes over, the others end",
    )):  # fmt: skip
        picture.text(600, 250 + 28 * number, text, "faint small", "start")
    return picture


PICTURES: Final = {"primitives": primitives, "processes": processes, "cell": cell, "rollback": rollback}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(str(draw()))
