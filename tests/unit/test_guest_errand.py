"""Work of the guest agent that may block."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from agentvm_guest.errand import Errand
from agentvm_guest.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_an_errand_ends_in_the_loop(loop: Loop) -> None:
    answers: list[dict[str, object]] = []

    def reply(answer: dict[str, object]) -> None:
        answers.append(answer)
        loop.stop()

    def fail() -> dict[str, object]:
        raise OSError(errno.EIO, "no")

    for work in (lambda: {"outcome": "mounted"}, fail):
        Errand(loop, work, reply)
        loop.run()
    assert answers == [{"ok": True, "outcome": "mounted"}, {"ok": False, "error": "[Errno 5] no"}]
