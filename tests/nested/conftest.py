"""Real vhost-vsock: here where it can be opened, else one virtualisation level down, in an emulated VM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from _pytest._code.code import TerminalRepr

from agentvm_kernel.errors import AgentVMError

VHOST_VSOCK = Path("/dev/vhost-vsock")
# Set inside the outer VM, so that a test there fails for want of the device instead of booting yet another VM.
INNER = "AGENTVM_NESTED_INNER"

Results = dict[str, ET.Element]
_outcome = pytest.StashKey[Results | Exception]()


class InnerError(Exception):
    """A test failed in the outer VM; the text is pytest's there."""


class OneLevelDown(pytest.Item):
    """Stands for a test that runs inside the outer VM. The first one boots it, and all tests run there at once."""

    def runtest(self) -> None:
        """Report what became of the test inside."""
        case = _results(self.config).get(self.name)
        if case is None:
            raise InnerError("The test did not run in the outer VM.")
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                output = "\n".join(case.findtext(name) or "" for name in ("system-out", "system-err"))
                raise InnerError(f"{kind}, inside the outer VM:\n{found.text}\n{output}")
        if (skipped := case.find("skipped")) is not None:
            pytest.skip(skipped.attrib.get("message", ""))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str | TerminalRepr:
        """Show pytest's text from inside as it is."""
        return str(excinfo.value) if excinfo.errisinstance(InnerError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return where the test is."""
        return self.path, None, self.name


def _results(config: pytest.Config) -> Results:
    from outer import OuterError, run_in_outer_vm

    if _outcome not in config.stash:
        # It takes minutes: a run that was interrupted or failed is not repeated for each of the other tests.
        config.stash[_outcome] = InnerError("The run in the outer VM did not end; see the first of these tests.")
        try:
            config.stash[_outcome] = run_in_outer_vm()
        except (OuterError, AgentVMError) as error:
            config.stash[_outcome] = InnerError(str(error))
    outcome = config.stash[_outcome]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _runs_here() -> bool:
    if os.environ.get(INNER):
        return True
    try:
        os.close(os.open(VHOST_VSOCK, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    if _runs_here():
        return
    for index, item in enumerate(items):
        if item.path.is_relative_to(here) and item.parent is not None:
            items[index] = OneLevelDown.from_parent(item.parent, name=item.name)
