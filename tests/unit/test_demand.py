"""How a rate is estimated."""

from __future__ import annotations

import pytest

from agentvm_kernel.supervisor.demand import HALF_LIFE, Demand


class Clock:
    time = 1000.0

    def __call__(self) -> float:
        return self.time


def test_steady_requests_give_their_rate() -> None:
    clock = Clock()
    demand = Demand(clock)
    for _ in range(2000):
        clock.time += 0.5
        demand.note()
    assert demand.rate == pytest.approx(2.0, rel=0.02)


def test_the_rate_halves_with_every_half_life() -> None:
    clock = Clock()
    demand = Demand(clock)
    for _ in range(8):
        demand.note()
    rate = demand.rate
    clock.time += HALF_LIFE
    assert demand.rate == pytest.approx(rate / 2)
    clock.time += 100 * HALF_LIFE
    assert demand.rate == pytest.approx(0)


def test_idle_counts_from_the_last_request() -> None:
    clock = Clock()
    demand = Demand(clock)
    clock.time += 5
    assert demand.idle == 5
    demand.note()
    clock.time += 3
    assert demand.idle == 3
