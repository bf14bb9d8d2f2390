"""The frame for HTML with scripts, in a real browser: it runs, follows its content, and reaches nothing."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.frame import framed, framed_script

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


@pytest.fixture
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def height(page: Any, pixels: int) -> None:
    page.wait_for_function(f"document.querySelector('iframe').offsetHeight === {pixels}")


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
