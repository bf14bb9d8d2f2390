"""jupyter_kernel_test over the fake supervisor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.register_assert_rewrite("kernel_conformance")

from kernel_conformance import check_conformance  # noqa: E402
from kernel_fixtures import kernel_environment  # noqa: E402, F401


def test_conforms_exactly_as_plain_ipykernel_does(
    kernel_environment: Mapping[str, str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in kernel_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # histories of other kernels would be plain ipykernel's, too
    check_conformance()
