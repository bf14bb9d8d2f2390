"""The error of this package; not among the others, because those go into images, which another would make anew."""

from __future__ import annotations

from typing import ClassVar

from agentvm_kernel.errors import AgentVMError


class ReproduceError(AgentVMError):
    """A notebook could not be run again as it was run."""

    code: ClassVar[str] = "reproduce"
