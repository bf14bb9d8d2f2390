"""The hypervisor that takes note of machines does all else as the one behind it."""

from __future__ import annotations

from agentvm_kernel.supervisor.witness import Witness
from agentvm_kernel.vm.hypervisor import Hypervisor


def test_everything_that_a_hypervisor_has_is_passed_on() -> None:
    public = {name for name in vars(Hypervisor) if not name.startswith("_")}
    assert public - set(vars(Witness)) == set()
