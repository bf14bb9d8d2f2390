"""A Jupyter kernel that runs every cell in an isolated virtual machine."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # for type checkers it is true; guests, which start with this file, need not wait for typing
if TYPE_CHECKING:
    from agentvm_kernel.experiment import AsyncSession
    from agentvm_kernel.session import Session

__all__ = ["AsyncSession", "Session", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Load the sessions only where they are used: commands and the kernel need not wait for them."""
    modules = {"AsyncSession": "agentvm_kernel.experiment", "Session": "agentvm_kernel.session"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(modules[name]), name)
