"""The kernel process over the fake supervisor and real guest agents on this host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

pytest.register_assert_rewrite("kernel_behaviour")

from kernel_behaviour import *  # noqa: E402, F403
from kernel_client import Notebook, notebook  # noqa: E402
from kernel_fixtures import kernel_environment  # noqa: E402, F401


@pytest.fixture(scope="module")
def nb(kernel_environment: Mapping[str, str]) -> Iterator[Notebook]:  # noqa: F811
    with notebook(kernel_environment) as running:
        yield running
