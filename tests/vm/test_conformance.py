"""jupyter_kernel_test against the kernel in a real VM and against plain ipykernel, compared test by test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
pytest.register_assert_rewrite("kernel_conformance")

from kernel_conformance import check_conformance  # noqa: E402


def test_conforms_exactly_as_plain_ipykernel_does(
    vm_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vm_environment.items():
        monkeypatch.setenv(name, value)
    check_conformance()
