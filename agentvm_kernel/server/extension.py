"""The application that Jupyter Server starts with itself."""

from __future__ import annotations

from jupyter_server.extension.application import ExtensionApp

from agentvm_kernel.config import Paths
from agentvm_kernel.server.handler import handlers
from agentvm_kernel.server.news import EVENT_SCHEMA, SCHEMA
from agentvm_kernel.server.services import Services


class AgentVMExtension(ExtensionApp):
    """Leads pages to the supervisor and to the kernels; the supervisor is asked when a page asks, and not before."""

    name = "agentvm_kernel"
    description = "See and steer the virtual machines under notebooks."

    _services: Services | None = None

    def initialize_handlers(self) -> None:
        """Add the routes and the events."""
        server = self.serverapp
        assert server is not None
        events = server.event_logger
        assert events is not None
        events.register_event_schema(SCHEMA)
        self._services = Services(
            server.kernel_manager,
            Paths.of_user(),
            lambda data: events.emit(schema_id=EVENT_SCHEMA, data=data),
        )
        self.handlers.extend(handlers(self._services))

    async def stop_extension(self) -> None:
        """Leave nothing behind."""
        if self._services is not None:
            await self._services.close()
