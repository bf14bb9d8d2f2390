"""What a Jupyter user expects, in a real VM; the tests themselves are those of tests/unit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
pytest.register_assert_rewrite("kernel_behaviour")

from kernel_behaviour import *  # noqa: E402, F403
from kernel_client import Notebook, notebook  # noqa: E402


@pytest.fixture(scope="module")
def kernel_environment(vm_environment: dict[str, str]) -> Mapping[str, str]:
    return vm_environment


@pytest.fixture(scope="module")
def nb(kernel_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(kernel_environment) as running:
        running.run("'the first cell waits for the VM'")
        yield running
