"""The frame for HTML with scripts, in a real browser: it runs, follows its content, and reaches nothing."""

from __future__ import annotations

import http.server
import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import trustme

from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.frame import framed, framed_script
from agentvm_kernel.firewall.height import OUTER

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")

CONTEXT = Context(Mode.STANDARD, lambda _reason, _words: None)
TRIES = """
<img src="@/image"><link rel=stylesheet href="@/style"><script src="@/script"></script>
<iframe src="@/frame"></iframe><iframe srcdoc="<img src='@/inner'><script>location='@/inner-away'</script>"></iframe>
<meta http-equiv=refresh content="0;url=@/refresh"><style>p{background:url(@/background)}</style><p>x</p>
<script>
const away = [
  () => fetch('@/fetch', {mode: 'no-cors'}), () => navigator.sendBeacon('@/beacon', 'x'),
  () => new WebSocket('@/socket'.replace('http', 'ws')), () => import('@/import'), () => {new Image().src = '@/made'},
  () => new EventSource('@/events'), () => {top.location = '@/top'}, () => {parent.location = '@/parent'},
  () => open('@/open'), () => {top.document.title = 'taken'}, () => {parent.document.title = 'taken'},
  () => {parent.parent.postMessage(3000, '*')},
];
for (const go of away) { try { Promise.resolve(go()).catch(() => 0) } catch (e) {} }
setTimeout(() => { location = '@/away' }, 50);
setTimeout(() => { document.body.innerHTML = '<form action="@/form"></form>'; document.forms[0].submit() }, 100);
setTimeout(() => { parent.postMessage(555, '*') }, 400);
</script>
"""


PLAIN = [
    ("<body style='margin: 0'><div style='height: 123px'></div>", 123),
    ("<body style='margin: 0'><div style='height: 777px'></div>", 777),
    ("<div style='height: 126px'></div>", 142),
    ("<body style='margin: 0'><div style='float: left; height: 190px; width: 10px'></div>", 190),
    ("<body style='margin: 0'><div style='position: absolute; height: 210px; width: 10px'></div>", 210),
]
"""Documents with their heights."""

FULL = "<style>html, body {height: 100%; margin: 0}</style>"
STRETCHED = {
    "html and body": f"<!DOCTYPE html><html>{FULL}<body>PLOT</body></html>",
    "with margins": "<!DOCTYPE html><html><style>html, body {height: 100%}</style><body>PLOT</body></html>",
    "like Bokeh": f"{FULL}<style>html, body {{box-sizing: border-box; display: flow-root; padding: 0}}</style>"
    "<body><div style='display: contents'>PLOT</div></body>",
    "wrappers": f"{FULL}<style>.w {{height: 100%}}</style><body><div class=w><div class=w>PLOT</div></div>",
    "flex": f"{FULL}<style>body {{display: flex; flex-direction: column}}</style>"
    "<body><div style='flex: 1'>PLOT</div></body>",
    "least height": "<style>body {min-height: 100vh; margin: 0}</style><body>PLOT</body>",
}
"""Documents that are at least as high as their frame, whatever is in them."""

VIEWPORT = [
    "<body style='margin: 0'><div style='height: 100vh; background: teal'></div>",
    "<body><div style='height: 100vh; background: teal'></div>",
    "<body><div style='height: 150vh; background: teal'></div>",
    "<body style='margin: 0'><div style='height: 50vh; background: teal'></div>",
    FULL + "<body><div style='height: 100%; background: teal'></div>",
    FULL + "<body><div style='height: 60%; background: teal'></div>",
    FULL + "<body><div style='position: absolute; inset: 0'></div>",
    "<style>html, body {height: 100%}</style><body><canvas style='height: 100%; width: 100%'></canvas>",
]
"""Documents whose content has its height from the frame, and so has none of its own."""


# Three levels, as maps come: the frame's own two, and the map's document within the guest's.
MAP = (
    "<div><iframe srcdoc=\"&lt;link rel=stylesheet href='https://cdn.example/map.css'&gt;&lt;p id=map&gt;no map"
    "&lt;/p&gt;&lt;script src='https://cdn.example/map.js'&gt;&lt;/script&gt;"
    "&lt;script src='https://other.example/map.js'&gt;&lt;/script&gt;\"></iframe></div>"
)
SERVED = {
    "map.js": b"document.getElementById('map').append(' by ' + document.currentScript.src)",
    "map.css": b"p{color:red}",
}


@contextmanager
def cdn(running: Any) -> Iterator[tuple[Any, list[str]]]:
    """A browser that takes a server on loopback for two hosts of the internet, and what that server is asked for."""
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.headers['Host'].partition(':')[0]}{self.path}")
            self.send_response(200)
            self.send_header("Content-Type", "text/css" if self.path.endswith("css") else "text/javascript")
            self.end_headers()
            self.wfile.write(SERVED.get(self.path[1:], b""))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("cdn.example", "other.example").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        rules = ", ".join(f"MAP {name} 127.0.0.1:{server.server_port}" for name in ("cdn.example", "other.example"))
        flags = ["--no-sandbox", f"--host-resolver-rules={rules}", "--ignore-certificate-errors"]
        browser = running.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            yield browser.new_page(), asked
        finally:
            browser.close()
            server.shutdown()
            thread.join()


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that notes what it is asked for."""
    asked: list[str] = []

    class Canary(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canary) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(running: Any) -> Iterator[Any]:
    browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    yield page
    page.close()


def height(page: Any, pixels: int) -> None:
    page.wait_for_function(f"document.querySelector('iframe').offsetHeight === {pixels}")


def show(page: Any, html: str) -> None:
    """Show a document in a frame, and take note of the heights that the frame gets, and of when it got the last."""
    note = (
        "<script>window.heights = []; window.began = performance.now(); const watched = new MutationObserver(() =>"
        "{ heights.push(frame().offsetHeight); window.at = performance.now() });"
        "const frame = () => document.querySelector('iframe');"
        "watched.observe(document, {attributes: true, attributeFilter: ['style'], subtree: true})</script>"
    )
    page.set_content(note + framed(html, CONTEXT))


def settled(page: Any) -> list[int]:
    """Wait until a frame keeps its height; return the heights it had."""
    page.wait_for_function("performance.now() - Math.max(window.at ?? 0, began) > 1500")
    return list(page.evaluate("heights"))


@pytest.mark.parametrize(("html", "pixels"), PLAIN)
def test_a_frame_becomes_as_high_as_its_document(page: Any, html: str, pixels: int) -> None:
    show(page, f"{html}<script></script>")
    assert settled(page)[-1:] == [pixels]


@pytest.mark.parametrize("pixels", [450, 150, 1200])
@pytest.mark.parametrize("document", STRETCHED.values(), ids=STRETCHED)
def test_a_document_that_stretches_itself_gets_the_height_of_what_is_in_it(
    page: Any, document: str, pixels: int
) -> None:
    show(page, document.replace("PLOT", f"<div style='height: {pixels}px; background: teal'></div><script></script>"))
    heights = settled(page)
    assert pixels <= heights[-1] <= pixels + 40
    assert len(heights) <= 3


@pytest.mark.parametrize("document", STRETCHED.values(), ids=STRETCHED)
def test_a_chart_that_is_drawn_late_and_changes_is_followed(page: Any, document: str) -> None:
    script = (
        "const draw = pixels => { document.getElementById('plot').innerHTML ="
        " `<svg width='200' height='${pixels}' style='display: block'></svg>` };"
        "setTimeout(draw, 1000, 700); addEventListener('message', event => draw(event.data))"
    )
    show(page, document.replace("PLOT", f"<div id='plot'></div><script>{script}</script>"))
    page.wait_for_function("frame().offsetHeight >= 700 && frame().offsetHeight <= 740")
    for pixels in (250, 900, 60):
        inner = page.frames[-1]
        inner.evaluate(f"draw({pixels})")
        page.wait_for_function(f"frame().offsetHeight >= {pixels} && frame().offsetHeight <= {pixels + 40}")
    assert len(settled(page)) <= 12


def test_what_is_added_beside_the_flow_is_followed(page: Any) -> None:
    box = "<div style='position: absolute; top: 0; height: 600px; width: 9px'></div>"
    script = f'setTimeout(() => document.body.insertAdjacentHTML("beforeend", "{box}"), 500)'
    show(page, f"{FULL}<body><p>text</p><script>{script}</script>")
    height(page, 600)


@pytest.mark.parametrize("html", VIEWPORT)
def test_a_document_that_is_as_high_as_its_frame_settles(page: Any, html: str) -> None:
    show(page, html + "<script></script>")
    heights = settled(page)
    assert len(heights) <= 3
    assert 400 <= page.evaluate("frame().offsetHeight") <= 650


@pytest.mark.parametrize("factor", ["innerHeight + 16", "innerHeight * 0.8", "innerHeight * 1.2"])
def test_a_chart_that_draws_anew_after_each_change_of_the_frame_settles(page: Any, factor: str) -> None:
    draw = f"document.getElementById('plot').style.height = `${{{factor}}}px`"
    script = f"const draw = () => {{ {draw} }}; draw(); addEventListener('resize', () => setTimeout(draw, 150))"
    show(page, f"<body style='margin: 0'><div id='plot'></div><script>{script}</script>")
    heights = settled(page)
    assert len(heights) <= 8
    assert max(heights) <= 1300


def test_a_user_who_makes_the_page_wider_has_the_text_followed(page: Any) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    show(page, "<script></script><body>" + "words " * 500)
    narrow = settled(page)[-1]
    page.set_viewport_size({"width": 1200, "height": 800})
    page.wait_for_function(f"frame().offsetHeight < {narrow / 2}")


FLOOD = "<script>setInterval(() => { for (let n = 0; n < 50; n++) parent.postMessage(20 + Math.random() * 3000, '*') })"


def test_a_document_cannot_have_the_page_move_faster_than_it_can_be_read(page: Any) -> None:
    show(page, FLOOD + "</script>")
    page.wait_for_function("heights.length >= 20")
    changes, milliseconds = page.evaluate("[heights.length, performance.now() - began]")
    assert changes <= milliseconds / 100 + 2


def test_a_document_cannot_have_the_page_move_for_ever(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few = OUTER.replace("left = 200", "left = 7")
    assert few != OUTER
    monkeypatch.setattr("agentvm_kernel.firewall.frame.OUTER", few)
    show(page, FLOOD + "</script>")
    assert len(settled(page)) == 7


@pytest.mark.parametrize("forged", ["-5", "1e308", "4001", "'500'", "({valueOf: () => 500})", "[500]", "NaN", "1/0"])
def test_a_forged_height_is_a_number_within_bounds_or_none(page: Any, forged: str) -> None:
    script = f"<script>setTimeout(() => parent.postMessage({forged}, '*'), 500)</script>"
    show(page, f"<body style='margin: 0; height: 300px'>{script}")
    assert {*settled(page)} <= {20, 300, 4000}


def test_the_frame_takes_the_height_of_its_content_within_bounds(page: Any) -> None:
    page.set_content(framed("<body style='margin:0'><div style='height:777px'></div>", CONTEXT))
    height(page, 777)
    page.set_content(framed("<body style='margin:0'><div style='height:99999px'></div>", CONTEXT))
    height(page, 4000)


def test_a_script_draws_in_its_element(page: Any) -> None:
    page.set_content(
        framed_script("element.innerHTML = '<b>drawn</b></script>'; element.style.height='321px'", CONTEXT)
    )
    assert page.frame_locator("iframe").frame_locator("iframe").locator("b").inner_text() == "drawn"


def test_the_height_of_a_message_of_another_window_is_not_taken(page: Any) -> None:
    script = "<script>parent.parent.postMessage(3000,'*');setTimeout(()=>parent.postMessage(555,'*'),300)</script>"
    page.set_content(framed(script, CONTEXT))
    height(page, 555)


def test_nothing_is_asked_for_and_nothing_outside_changes(page: Any) -> None:
    with listening() as (address, asked):
        page.set_content("<title>mine</title>" + framed(TRIES.replace("@", address), CONTEXT))
        page.wait_for_timeout(1500)
        assert page.title() == "mine"
        assert asked == []


def test_the_server_would_notice_what_a_frame_without_a_policy_asks_for(page: Any) -> None:
    with listening() as (address, asked):
        page.set_content(
            f"<iframe sandbox='allow-scripts' srcdoc=\"<script>location='{address}/away'</script>\"></iframe>"
        )
        page.wait_for_timeout(1500)
        assert "/away" in asked


@pytest.mark.parametrize(
    ("hosts", "map_says", "asked"),
    [
        ((), "no map", set()),
        (("cdn.example",), "no map by https://cdn.example/map.js", {"cdn.example/map.js", "cdn.example/map.css"}),
        (
            ("*.example",),
            "no map by https://cdn.example/map.js by https://other.example/map.js",
            {"cdn.example/map.js", "cdn.example/map.css", "other.example/map.js"},
        ),
    ],
)
def test_a_map_is_drawn_with_what_allowed_hosts_have(
    running: Any, hosts: tuple[str, ...], map_says: str, asked: set[str]
) -> None:
    with cdn(running) as (page, seen):
        page.set_content(framed(MAP, replace(CONTEXT, frame_hosts=hosts)))
        place = page.frame_locator("iframe").frame_locator("iframe").frame_locator("iframe").locator("#map")
        playwright.expect(place).to_have_text(map_says)
        page.wait_for_load_state("networkidle")
        assert set(seen) == asked
