"""Who may ask the server extension for what: every route, without a login, with a wrong one, and with junk."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from jupyter_server.auth.authorizer import AllowAllAuthorizer
from server_bed import ServerBed, server_bed

from agentvm_kernel.server.handler import MOST_BODY, PREFIX, RoutesHandler, handlers
from agentvm_kernel.server.routes import ROUTES, Route

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALL_VERBS = ("GET", "POST", "PUT", "PATCH", "DELETE")
UNKNOWN = "00000000-0000-0000-0000-000000000000"
VALID: dict[str, dict[str, Any]] = {
    "take_snapshot": {},
    "plan_rollback": {"to": "~"},
    "roll_back": {"to": "~"},
    "fork": {"count": 1, "code": "1"},
    "adopt": {"fork": 1},
    "set_network": {"allow": ["a.example"]},
    "set_limits": {"cpu": 1},
    "set_timetravel": {"on": True},
    "do_with_vm": {"do": "stop"},
    "watch": {"kernels": []},
    "relabel": {"label": "x"},
    "prune": {"keep": 0},
}
READS = {"plan_rollback", "watch"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bed() -> AsyncIterator[ServerBed]:
    folder = Path(tempfile.mkdtemp(prefix="avm-"))
    async with server_bed(folder) as found:
        yield found
    shutil.rmtree(folder)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kernel(bed: ServerBed) -> str:
    return await bed.kernel()


def path_of(route: Route, kernel: str, snapshot: str = "0123456789ab") -> str:
    values = {"kernel": kernel}
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], snapshot), route.path)


def routes() -> list[Any]:
    return [pytest.param(route, id=f"{route.verb} {route.path}") for route in ROUTES]


def kernel_routes() -> list[Any]:
    return [one for one in routes() if "{kernel}" in one.values[0].path]


async def typed(bed: ServerBed, kernel: str) -> int:
    """How often a magic was typed: each is a run of its own, and numbers of runs never go back."""
    reply = await bed.run(kernel, "1")
    return int(reply["metadata"]["agentvm"]["run"])


async def nothing_happens(bed: ServerBed, kernel: str, *asked: Any) -> list[Any]:
    """Ask, and see that nothing was typed into the kernel, and the supervisor not asked to change anything."""
    before = await typed(bed, kernel)
    bed.supervisor.asked.clear()
    answers = [await one for one in asked]
    changes = [one for one in bed.supervisor.asked if not one.startswith("GET ") and not one.endswith("/cell")]
    assert changes == []
    assert await typed(bed, kernel) == before + 1
    return answers


async def test_the_application_serves_the_table_and_nothing_else(bed: ServerBed) -> None:
    served = {
        rule.matcher.regex.pattern.removesuffix("$")
        for rules in bed.app.web_app.default_router.rules
        for rule in getattr(rules.target, "rules", ())
        if rule.target is RoutesHandler
    }
    wanted = {f"/base{pattern}" for pattern, _, _ in handlers(bed.app)}  # type: ignore[arg-type]
    assert served == wanted
    assert {(route.verb, route.path) for route in ROUTES} == {
        (verb, route.path)
        for _, _, own in handlers(bed.app)
        for verb, route in own["routes"].items()  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("route", routes())
async def test_who_has_not_logged_in_gets_nothing(bed: ServerBed, kernel: str, route: Route) -> None:
    path, body = path_of(route, kernel), VALID.get(route.handler.__name__)
    # Whoever can see the login page has a token against forged requests.
    async with aiohttp.ClientSession() as stranger, stranger.get(f"{bed.url}login") as response:
        xsrf = response.cookies["_xsrf"].value
    logins: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": "token wrong"},
        {"Authorization": f"Bearer {bed.token[:-1]}"},
        {"Cookie": f"_xsrf={xsrf}", "X-XSRFToken": xsrf},
    )
    asked = [bed.ask(verb, path, body, headers=headers) for headers in logins for verb in ALL_VERBS]
    for answer in await nothing_happens(bed, kernel, *asked):
        assert answer.status == 403, answer
        assert set(answer.body) == {"code", "message", "hint"}, answer


@pytest.mark.parametrize("route", routes())
async def test_a_login_by_cookie_needs_the_token_against_forged_requests(
    bed: ServerBed, kernel: str, route: Route
) -> None:
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as browser:
        async with browser.get(f"{bed.url}?token={bed.token}") as response:
            assert response.status in {200, 404}
        url = bed.url.rstrip("/") + PREFIX + path_of(route, kernel)
        body = VALID.get(route.handler.__name__)

        async def ask(headers: dict[str, str]) -> int:
            async with browser.request(route.verb, url, json=body, headers=headers) as response:
                return response.status

        # The last is that of a picture in a page.
        forged: tuple[dict[str, str], ...] = ({}, {"X-XSRFToken": "forged"}, {"Referer": f"{bed.url}lab"})
        assert await nothing_happens(bed, kernel, *map(ask, forged)) == [403, 403, 403]
        if route.path in {"/watch", "/host"}:
            xsrf = next(cookie.value for cookie in jar if cookie.key == "_xsrf")
            assert await ask({"X-XSRFToken": xsrf}) == 200
            assert await ask({"X-XSRFToken": xsrf, "Origin": "https://evil.example"}) == 404


class Readers(AllowAllAuthorizer):
    """Lets everybody read, and nobody do anything else."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return action == "read"


@pytest.mark.parametrize("route", kernel_routes())
async def test_who_may_only_read_has_nothing_done(
    bed: ServerBed, kernel: str, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = Readers(parent=bed.app)  # type: ignore[no-untyped-call]
    monkeypatch.setitem(bed.app.web_app.settings, "authorizer", readers)
    paths = (path_of(route, kernel), path_of(route, kernel, "present"))
    asked = [bed.ask(route.verb, path, VALID.get(route.handler.__name__)) for path in paths]
    for answer in await nothing_happens(bed, kernel, *asked):
        assert (answer.status == 403) == (route.verb != "GET" or "compare" in route.path), answer


@pytest.mark.parametrize("route", kernel_routes())
async def test_a_kernel_of_another_server_is_not_found(bed: ServerBed, kernel: str, route: Route) -> None:
    body = VALID.get(route.handler.__name__)
    lease = next(iter(bed.supervisor._leases))
    names = (UNKNOWN, lease, f"kernel-{kernel}", "local-1", kernel.upper() + "x")
    asked = [bed.ask(route.verb, path_of(route, name), body) for name in names]
    for name, answer in zip(names, await nothing_happens(bed, kernel, *asked), strict=True):
        assert (answer.status, answer.body["code"]) == (404, "no_kernel"), (name, answer)


async def test_another_kernel_than_ours_is_left_alone(bed: ServerBed) -> None:
    plain = await bed.app.kernel_manager.start_kernel(kernel_name="plain")
    await bed.run(plain, "ran = []; get_ipython().events.register('pre_execute', lambda: ran.append(1))")
    for route in [one.values[0] for one in kernel_routes()]:
        answer = await bed.ask(route.verb, path_of(route, plain), VALID.get(route.handler.__name__))
        if route.handler.__name__ == "get_machine":
            assert (answer.status, answer.body["state"]) == (200, "foreign")
        else:
            assert (answer.status, answer.body["code"]) == (409, "foreign_kernel"), answer
    assert (await bed.run(plain, "assert ran == [1], ran"))["content"]["status"] == "ok"  # this cell alone
    await bed.app.kernel_manager.shutdown_kernel(plain, now=True)


@pytest.mark.parametrize("route", [one for one in routes() if one.values[0].body is not None])
async def test_junk_is_refused_before_anything_is_done(bed: ServerBed, kernel: str, route: Route) -> None:
    path, valid = path_of(route, kernel), VALID[route.handler.__name__]
    junk: list[tuple[int, bytes]] = [
        (400, b"{"),
        (400, b"[]"),
        (400, b"null"),
        (400, b'"%vm stop"'),
        (400, b"\xff\xfe"),
        (400, b'{"to": "\\ud800"}'),
        (400, b'{"surprise": 1}'),
        (413, b" " * (MOST_BODY + 1)),
    ]
    answers = await nothing_happens(bed, kernel, *(bed.ask(route.verb, path, raw=raw) for _, raw in junk))
    for (status, raw), answer in zip(junk, answers, strict=True):
        assert answer.status == status, (raw[:20], answer)
        assert answer.body["message"]
    extra = await bed.ask(route.verb, path, {**valid, "surprise": 1})
    assert (extra.status, extra.body["code"]) == (400, "request")


@pytest.mark.parametrize("verb", ALL_VERBS)
async def test_verbs_that_a_path_has_not_are_refused(bed: ServerBed, kernel: str, verb: str) -> None:
    for route in ROUTES:
        if (verb, route.path) not in {(one.verb, one.path) for one in ROUTES}:
            answer = await bed.ask(verb, path_of(route, kernel), {})
            assert (answer.status, answer.body["code"]) == (405, "http_405")


async def test_answers_are_no_pages_and_are_not_kept(bed: ServerBed) -> None:
    async with bed.http.get(f"{bed.url}agentvm/api/host", headers={"Authorization": f"token {bed.token}"}) as response:
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]


async def test_events_are_told_only_to_who_has_logged_in(bed: ServerBed) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with bed.http.ws_connect(f"{bed.url}api/events/subscribe"):
            pass
    assert refused.value.status == 403
