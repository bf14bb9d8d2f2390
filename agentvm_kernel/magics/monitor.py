"""`%monitor`: what the notebook's VM uses and connects to, live."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agentvm_kernel.kernel.chronicle import Chronicle
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.kernel.hostcomms import HostComms
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.magics.call import Call
from agentvm_kernel.widgets.monitor import ID, Monitor

HELP = """%monitor

Show what the notebook's VM uses (CPU, memory, disk, network) over the last ten minutes, with its limits, the cells and
snapshots on the axis of time, and the connections that it made or was refused. A button allows a host that was refused,
as %net allow does. All figures are measured by the host, or decided by it; none is the VM's word.

It is live in JupyterLab and Notebook 7, through rollbacks and restarts of the VM, as long as the kernel process runs.
What the notebook stores is a picture of the last state, which is also what other front ends show.

Example:

  %monitor"""

_SHOWN: Final = f'"{ID}"'.encode()
_MOST: Final = 64 << 20


def revive(notebook: Path, machine: Machine, chronicle: Chronicle, comms: HostComms) -> None:
    """Make a monitor known if the notebook's file shows one: JupyterLab has nothing to say of one that is not known.

    Args:
        notebook: The file, if there is one.
        machine: The VM under the notebook.
        chronicle: What happens in it.
        comms: Lead to it.
    """
    try:
        with notebook.open("rb") as file:
            is_shown = _SHOWN in file.read(_MOST)
    except OSError:
        return
    if is_shown:
        comms.offer(Monitor(machine, chronicle, comms))


async def run(call: Call, host: Host) -> Mapping[str, object]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: the front end was not built.
    """
    if call.words:
        raise call.wrong("%monitor alone")
    monitor = host.comms.find(ID)
    if not isinstance(monitor, Monitor):
        monitor = Monitor(host.machine, host.chronicle, host.comms)
        monitor.state()
    await host.comms.open(monitor, host.request)
    bundle, host.display_id = await monitor.show()
    return bundle
