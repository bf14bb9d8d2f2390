"""What visits share that have a supervisor of their own: it can be killed, and ends after what uses it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from vms import own_supervisor

from agentvm_kernel.config import Paths

if TYPE_CHECKING:
    from lab_bed import Browser


@pytest.fixture(scope="module")
def paths() -> Iterator[Paths]:
    with own_supervisor() as ours:
        yield ours


@pytest.fixture(scope="module")
def browser(paths: Paths) -> Iterator[Browser]:
    """A browser, which ends before the supervisor does."""
    from lab_bed import chromium

    with chromium() as made:
        yield made
