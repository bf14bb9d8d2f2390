"""Serves the table of routes to pages that have logged in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.server.errors import status_of
from agentvm_kernel.server.routes import ROUTES, Call, Route
from agentvm_kernel.server.services import Services
from agentvm_kernel.server.views import Failure
from agentvm_kernel.validation import parsed

PREFIX: Final = "/agentvm/api"
MOST_BODY: Final = 1 << 20


class RoutesHandler(APIHandler):
    """Every route; who may not use the server gets no further than the decorators, whatever the route."""

    auth_resource = "agentvm"

    def initialize(self, routes: dict[str, Route], services: Services) -> None:
        """Take what the application gives each request.

        Args:
            routes: The routes of the path, by verb.
            services: What they are carried out with.
        """
        self._routes = routes
        self._services = services

    @web.authenticated
    @authorized
    async def get(self, **parameters: str) -> None:
        """Serve a route."""
        await self._serve(parameters)

    @web.authenticated
    @authorized
    async def post(self, **parameters: str) -> None:
        """Serve a route."""
        await self._serve(parameters)

    @web.authenticated
    @authorized
    async def put(self, **parameters: str) -> None:
        """Serve a route."""
        await self._serve(parameters)

    @web.authenticated
    @authorized
    async def patch(self, **parameters: str) -> None:
        """Serve a route."""
        await self._serve(parameters)

    @web.authenticated
    @authorized
    async def delete(self, **parameters: str) -> None:
        """Serve a route."""
        await self._serve(parameters)

    async def _serve(self, parameters: dict[str, str]) -> None:
        route = self._routes.get(self.request.method or "")
        if route is None:
            raise web.HTTPError(405)
        if route.verb == "GET":
            await self._check_reader(route)
        self._track_activity = route.is_work
        if len(self.request.body) > MOST_BODY:
            raise web.HTTPError(413)
        query = {name: self.get_query_argument(name) for name in self.request.query_arguments}
        call = Call(self._services, parameters, query)
        try:
            bodies = [] if route.body is None else [parsed(route.body, self.request.body or b"{}")]
            answer = await route.handler(call, *bodies)
        except AgentVMError as error:
            self._refuse(status_of(error), Failure(code=error.code, message=error.message, hint=error.hint))
        except Exception:  # the outermost: whatever it is, the page is told, and the log has it
            self.log.exception("%s %s failed", route.verb, route.path)
            self._refuse(
                500, Failure(code="internal", message="This failed.", hint="The Jupyter server's log says why.")
            )
        else:
            self.finish(answer.model_dump_json())

    async def _check_reader(self, route: Route) -> None:
        """Demand of readers what Jupyter demands of others: some of what is read costs much, or does something.

        Jupyter lets a cookie do where a page of this server asks; so can a picture in a notebook.
        """
        self.check_xsrf_cookie()
        if not (self.token_authenticated or self.settings.get("disable_check_xsrf", False)):
            web.RequestHandler.check_xsrf_cookie(self)
        if route.is_work:
            may = self.authorizer.is_authorized(self, self.current_user, "write", self.auth_resource)
            if not await ensure_async(may):
                raise web.HTTPError(403)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with an error that came before or instead of a route."""
        self._refuse(status_code, Failure(code=f"http_{status_code}", message=HTTPStatus(status_code).phrase))

    def _refuse(self, status: int, failure: Failure) -> None:
        self.set_status(status)
        self.finish(failure.model_dump_json())


def handlers(services: Services, routes: Iterable[Route] = ROUTES) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return tornado's handlers, relative to the server's base URL.

    Args:
        services: What the routes are carried out with.
        routes: The routes.
    """
    by_path: dict[str, dict[str, Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, {})[route.verb] = route
    return [
        (PREFIX + _pattern(path), RoutesHandler, {"routes": verbs, "services": services})
        for path, verbs in by_path.items()
    ]


def _pattern(path: str) -> str:
    return re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
