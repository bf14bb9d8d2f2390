"""Bounds and intervals of a link; every buffer's size follows from these figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one end of a link allows.

    The memory that the other end can make this end hold is at most `memory_bound`; it follows from these figures alone.

    Attributes:
        window: Bytes that the other end may send on a stream before this end's consumer has taken them.
        max_message: Longest message in bytes, its part lengths included.
        max_parts: Most parts of a message.
        max_streams: Most streams open at once.
        heartbeat: Seconds between two pings.
        silence: Seconds without the answer to a ping after which the other end counts as dead.
        idle_frames: Frames without data (pings, credits, frames of another epoch) allowed between two heartbeats:
            they cost no credit, so that a flood of them has to be stopped by number.
        frames_per_second: Frames about streams that are taken per second, on the average; more have to wait, where the
            host's end reads. Each costs time, however short it is. ``None`` for no limit.
        sent_parts: Most parts of a message that this end sends; ``None`` for as many as may come.
    """

    window: int = 1 << 20
    max_message: int = 64 << 20
    max_parts: int = 1024
    max_streams: int = 64
    heartbeat: float = 5.0
    silence: float = 20.0
    idle_frames: int = 50_000
    frames_per_second: float | None = None
    sent_parts: int | None = None

    def memory_bound(self, streams: int) -> int:
        """Return how many bytes the other end can make this end hold.

        Each stream holds a full window. A stream whose consumer is inside ``receive`` holds, besides, a message in
        the making (a growing buffer has up to an eighth in reserve) and the copy that is handed out.

        Args:
            streams: How many streams are open and being received from.
        """
        message = 2 * self.max_message + self.max_message // 8
        read_buffer = 512 << 10
        return read_buffer + streams * (2 * self.window + message)
