"""The model of a widget of the host's own, as the front end's anywidget takes it.

Its Python package is installed for its front end alone and not imported here: the state is all that there is to it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from agentvm_kernel.errors import AgentVMError

VIEW: Final = "application/vnd.jupyter.widget-view+json"

_VERSION: Final = "~0.11.0"


def model(name: str) -> dict[str, object]:
    """Return the state of a widget.

    Args:
        name: Of the script in ``static/`` that draws it.

    Raises:
        AgentVMError: the script has not been built.
    """
    return {
        "_model_module": "anywidget", "_model_name": "AnyModel", "_model_module_version": _VERSION,
        "_view_module": "anywidget", "_view_name": "AnyView", "_view_module_version": _VERSION,
        "_view_count": None, "_dom_classes": [], "layout": None, "tabbable": None, "tooltip": None,
        "_anywidget_id": f"agentvm_kernel.{name}", "_esm": _script(name), "_css": "",
    }  # fmt: skip


def view(comm: str) -> dict[str, object]:
    """Return what an output names a widget by.

    Args:
        comm: The id of its comm.
    """
    return {"version_major": 2, "version_minor": 0, "model_id": comm}


@cache
def _script(name: str) -> str:
    try:
        return files("agentvm_kernel.widgets").joinpath("static", f"{name}.js").read_text()
    except FileNotFoundError as error:
        raise AgentVMError(
            f"The front end of %{name} has not been built.", "Install the package again: pip install -e . builds it."
        ) from error
