"""jupyter_kernel_test against the kernel in a real VM and against plain ipykernel, compared test by test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
pytest.register_assert_rewrite("kernel_conformance")

from kernel_conformance import check_conformance  # noqa: E402


# The suite waits a tenth of a second for what comes after a reply, which is not enough beside other tests.
@pytest.mark.alone
def test_conforms_exactly_as_plain_ipykernel_does(
    vm_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in vm_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # histories of other kernels would be plain ipykernel's, too
    check_conformance()
