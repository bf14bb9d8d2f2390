"""The kernel process: connection file, sockets, signals, and the router's life."""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Final

from jupyter_client.connect import ConnectionFileMixin
from jupyter_client.session import Session, session_aliases, session_flags
from jupyter_core.paths import jupyter_runtime_dir, secure_write
from traitlets import Any as AnyTrait
from traitlets import Bool, Dict, Integer, List, Unicode
from traitlets.config import Application
from traitlets.config.application import catch_config_error
from traitlets.utils import filefind

from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import ConfigError
from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.kernel.magic import Magics, NoMagics
from agentvm_kernel.kernel.router import Router
from agentvm_kernel.kernel.sockets import Addresses, Heartbeat, Sockets
from agentvm_kernel.kernel.wire import Wire
from agentvm_kernel.link.connection import connect
from agentvm_kernel.profiles import Sizes
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import LeaseRequest

_PORTS: Final = ("shell", "control", "stdin", "iopub", "hb")
_PARENT_POLL: Final = 1.0

_ALIASES: Final = {
    "ip": "AgentVMKernelApp.ip",
    "transport": "AgentVMKernelApp.transport",
    "hb": "AgentVMKernelApp.hb_port",
    "shell": "AgentVMKernelApp.shell_port",
    "iopub": "AgentVMKernelApp.iopub_port",
    "stdin": "AgentVMKernelApp.stdin_port",
    "control": "AgentVMKernelApp.control_port",
    "f": "AgentVMKernelApp.connection_file",
    "image": "AgentVMKernelApp.image",
    "profile": "AgentVMKernelApp.profile",
    "allow": "AgentVMKernelApp.allow",
    "output": "AgentVMKernelApp.output",
    "log-level": "Application.log_level",
}
_FLAGS: Final = {
    "debug": ({"Application": {"log_level": logging.DEBUG}}, "log everything"),
    "quiet": ({"Application": {"log_level": logging.CRITICAL}}, "log nothing but what is fatal"),
    "no-stdout": ({"AgentVMKernelApp": {"no_stdout": True}}, "redirect stdout to the null device"),
    "no-stderr": ({"AgentVMKernelApp": {"no_stderr": True}}, "redirect stderr to the null device"),
}


class AgentVMKernelApp(Application, ConnectionFileMixin):
    """One notebook's kernel; started by Jupyter from the kernelspec."""

    name = "agentvm-kernel"
    description = "A Jupyter kernel that runs every cell in an isolated virtual machine."
    classes = List([Session])  # type: ignore[assignment]
    aliases = Dict({**_ALIASES, **session_aliases})
    flags = Dict({**_FLAGS, **session_flags})

    image = Unicode(os.environ.get("AGENTVM_IMAGE", ""), help="Flavour of the guest image.").tag(config=True)
    profile = Unicode(os.environ.get("AGENTVM_PROFILE", ""), help="Name of the VM's profile.").tag(config=True)
    allow = List(Unicode(), help="Hosts that may be reached besides those that are configured.").tag(config=True)
    output = Unicode("", help="Let no more output through than: strict, standard, trusted.").tag(config=True)
    no_stdout = Bool(False, help="Redirect stdout to the null device.").tag(config=True)
    no_stderr = Bool(False, help="Redirect stderr to the null device.").tag(config=True)
    parent_handle = Integer(
        int(os.environ.get("JPY_PARENT_PID") or 0), help="End when this parent process is gone."
    ).tag(config=True)
    magics: Magics = AnyTrait(NoMagics())  # type: ignore[assignment]
    sizes: Sizes = AnyTrait(Sizes())  # type: ignore[assignment]

    @catch_config_error
    def initialize(self, argv: list[str] | None = None) -> None:
        """Read the command line and the connection file, and bind the sockets.

        Args:
            argv: Command line without the program's name; `sys.argv` by default.
        """
        super().initialize(argv)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal: interrupts come as messages
        _share_log(self.log)
        self._blackhole()
        self._find_connection_file()
        curve = (self.curve_publickey, self.curve_secretkey) if self.curve_publickey and self.curve_secretkey else None
        ports = {name: int(getattr(self, f"{name}_port")) for name in _PORTS}
        addresses = Addresses(self.transport, self.ip, ports, curve)
        self.heartbeat = Heartbeat(addresses)
        self.sockets = Sockets(Wire(self.session), addresses)
        self._write_ports(ports)

    def start(self) -> None:
        """Serve until a shutdown request."""
        self.heartbeat.start()
        if self.parent_handle > 1:
            threading.Thread(target=_watch_parent, args=(self.parent_handle,), name="parent", daemon=True).start()
        try:
            asyncio.run(self._serve())
        finally:
            self.sockets.close()
            self.heartbeat.stop()

    async def _serve(self) -> None:
        owner = Path(self.connection_file).stem
        notebook = os.environ.get("JPY_SESSION_NAME") or owner  # Jupyter Server sets it to the notebook's path
        policy, shows_facts = self._configured(notebook)
        request = LeaseRequest(
            image=self.image, profile=self.profile, sizes=self.sizes, owner=owner[:200], notebook=notebook[:4096],
            allow=tuple(self.allow),
        )  # fmt: skip
        machine = Machine(request, lambda: SupervisorClient(Paths.of_user()), connect, policy)
        router = Router(self.sockets, machine, self.magics, shows_facts=shows_facts)
        router.revive(Path(notebook))
        gc.freeze()  # all that there is now stays: to look through it again and again would hold up cells
        await router.run()

    def _configured(self, notebook: str) -> tuple[Policy, bool]:
        """Return what output is let through, and whether cells show what they cost.

        The least of both where the configuration is wrong, as a cell will tell.
        """
        try:
            settings = load_settings(Paths.of_user())
            return settings.output.policy(notebook, self.output), settings.notebook.footer
        except ConfigError as error:
            self.log.error("%s %s", error.message, error.hint)
            return Policy(Mode.STRICT), False

    def _find_connection_file(self) -> None:
        """Load the connection file, or choose where to write one that ends with this process."""
        folder = jupyter_runtime_dir()
        name = self.connection_file or f"kernel-{os.getpid()}.json"
        try:
            self.connection_file = filefind(name, [".", folder])
        except OSError:
            path = Path(name) if Path(name).is_absolute() else Path(folder) / name
            path.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
            self.connection_file = str(path)
            atexit.register(self._remove_connection_file)
            return
        self.load_connection_file()

    def _write_ports(self, ports: dict[str, int]) -> None:
        """Write the connection file if it does not say what was bound; what else it holds stays."""
        known: dict[str, object] = {}
        path = Path(self.connection_file)
        if path.exists():
            known = json.loads(path.read_text())
        bound = {f"{name}_port": port for name, port in ports.items()}
        for name, port in bound.items():
            setattr(self, name, port)
        if all(known.get(name) == port for name, port in bound.items()):
            return
        info = known | self.get_connection_info() | bound
        info["key"] = self.session.key.decode()
        with secure_write(self.connection_file) as file:
            json.dump(info, file, indent=2)

    def _remove_connection_file(self) -> None:
        Path(self.connection_file).unlink(missing_ok=True)
        self.cleanup_ipc_files()

    def _blackhole(self) -> None:
        """Send stdout and stderr to the null device where that was asked for."""
        for wanted, descriptor in ((self.no_stdout, 1), (self.no_stderr, 2)):
            if wanted:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def _watch_parent(parent: int) -> None:
    """End this process, and with it the lease, once its parent is gone; as ipykernel's parent poller does."""
    if os.getppid() != parent:
        parent = 0  # started through a wrapper: only being adopted by init counts then
    while True:
        now = os.getppid()
        if (parent and now != parent) or (not parent and now == 1):
            os._exit(1)
        time.sleep(_PARENT_POLL)


def _share_log(log: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
    """Let the package's loggers write where the application's does."""
    source = log.logger if isinstance(log, logging.LoggerAdapter) else log
    package = logging.getLogger("agentvm")
    package.handlers, package.propagate = source.handlers, False
    package.setLevel(source.level)
