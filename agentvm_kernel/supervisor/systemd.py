"""The supervisor as a service of systemd's: its unit, and what it tells systemd (``sd_notify(3)``)."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import ConfigError

UNIT: Final = "agentvm.service"
_TEMPLATE: Final = Path(__file__).with_name(UNIT)
_PASSED_ON: Final = ("AGENTVM_CONFIG", "AGENTVM_STATE_DIR", "AGENTVM_CACHE_DIR", "AGENTVM_URI", "AGENTVM_ACCELERATOR")
_UNSAFE: Final = re.compile(r"[^\x21-\x7e]|[\"'\\%$]")
"""What would have to be quoted in a unit (``systemd.syntax(7)``)."""

_log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Tell systemd, if it has started this process and wants to know.

    Args:
        state: For instance ``READY=1``.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.connect(f"\0{address[1:]}" if address[0] == "@" else address)
            connection.sendall(state.encode())
    except OSError as error:
        _log.warning("systemd could not be told %s: %s", state, error)


def unit() -> str:
    """Return the unit for this Python environment and these folders.

    Raises:
        ConfigError: a path could not be written into it.
    """
    values = {
        "PYTHON": _plain(sys.executable),
        "ENVIRONMENT": "\n".join(
            f"Environment={name}={_plain(os.environ[name])}" for name in _PASSED_ON if os.environ.get(name)
        ),
        "TARGET": "multi-user.target" if os.geteuid() == 0 else "default.target",
    }
    text = _TEMPLATE.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text.replace("\n\nRestart=", "\nRestart=")


def unit_path() -> Path:
    """Return where the unit belongs: root's is the system's."""
    if os.geteuid() == 0:
        return Path("/etc/systemd/system") / UNIT
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(configured) if configured.startswith("/") else Path.home() / ".config"
    return base / "systemd" / "user" / UNIT


def install_unit() -> Path:
    """Write the unit, over one that this has written before, and return where.

    Raises:
        ConfigError: it cannot be written, or somebody else's is there.
    """
    path, text = unit_path(), unit()
    mark = text.partition("\n")[0]
    try:
        if path.exists() and not path.read_text().startswith(mark):
            raise ConfigError(f"{path} is not from agentvm.", "Look at it, and remove it first.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.", "Make the folder writable.") from error
    return path


def _plain(value: str) -> str:
    if _UNSAFE.search(value):
        raise ConfigError(
            f"{value!a:.200} cannot be written into a unit.", "Use a path without spaces, quotes, $ or %."
        )
    return value
