"""jupyter_kernel_test over the fake supervisor."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

pytest.register_assert_rewrite("kernel_conformance")

from kernel_conformance import check_conformance  # noqa: E402
from kernel_fixtures import kernel_environment  # noqa: E402, F401


def test_conforms_exactly_as_plain_ipykernel_does(
    kernel_environment: Mapping[str, str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in kernel_environment.items():
        monkeypatch.setenv(name, value)
    check_conformance()
