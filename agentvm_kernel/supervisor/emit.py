"""Events of an answer that stays open, on their way to the client."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel


class Emit:
    """Takes events; they go out in order."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[BaseModel] = asyncio.Queue()

    def __call__(self, event: BaseModel) -> None:
        """Send an event."""
        self.events.put_nowait(event)

    async def sent(self) -> None:
        """Wait until the client has taken what there is: for who has more than it may be able to take."""
        await self.events.join()
