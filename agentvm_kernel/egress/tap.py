"""What is done to HTTP on its way, besides the checks that all of it passes."""

from __future__ import annotations

import h11

from agentvm_kernel.egress.channel import Channel


class Tap:
    """Sees and changes the exchanges of one connection; this one leaves them as they are. Called by `HttpRelay`."""

    def request(self, request: h11.Request) -> h11.Request:
        """Return what is sent to the host.

        Args:
            request: What the guest asks, checked.

        Raises:
            AgentVMError: it is refused.
        """
        return request

    def request_data(self, data: bytes) -> None:
        """See a piece of the request's body.

        Raises:
            AgentVMError: the exchange must not go on.
        """

    def request_end(self) -> None:
        """See that the request is complete."""

    def informational(self, response: h11.InformationalResponse) -> h11.InformationalResponse:
        """Return what is sent to the guest of what comes before the answer.

        Raises:
            AgentVMError: the exchange must not go on.
        """
        return response

    def response(self, response: h11.Response) -> h11.Response:
        """Return what is sent to the guest: an answer of the same framing."""
        return response

    def response_data(self, data: bytes) -> bytes:
        """Return what can be sent on of the answer's body by now; all pieces together keep their length.

        Raises:
            AgentVMError: the exchange must not go on.
        """
        return data

    def response_end(self) -> bytes:
        """Return what was held back of the answer's body, which is complete.

        Raises:
            AgentVMError: the exchange must not go on.
        """
        return b""

    def upgraded(self, channel: Channel) -> Channel:
        """Return how the guest is reached once it and the host speak something else.

        Args:
            channel: The guest's connection.
        """
        return channel
