"""Host magics: lines of a notebook that the host carries out instead of the guest."""

from agentvm_kernel.magics.registry import Registry

__all__ = ["Registry"]
