"""QEMU's own user networking in a VM that has no network card: what egress is compared with."""

from __future__ import annotations

from typing import Final, cast

from agentvm_kernel.bench.stage import Stage
from agentvm_kernel.vm.libvirt_machine import LibvirtMachine

HOST: Final = "10.0.2.2"
"""Where the VM finds the loopback of QEMU's host."""

# What goes out by the card neither goes to the forwarder nor is rejected.
_SET_UP: Final = """
import glob, subprocess, time
subprocess.run(["sudo", "modprobe", "virtio_net"], check=True)
patience = time.monotonic() + 20
while not (cards := glob.glob("/sys/class/net/*/device")):
    assert time.monotonic() < patience, "the guest does not see the network card"
    time.sleep(0.05)
card = cards[0].split("/")[4]
subprocess.run(["sudo", "sh", "-ec", f'''
ip address add 10.0.2.15/24 dev {card}
ip link set {card} up
nft insert rule inet agentvm connections oifname {card} accept
nft insert rule inet agentvm rest oifname {card} accept
'''], check=True)
"""


async def plug_slirp(stage: Stage) -> None:
    """Plug a network card of QEMU's user networking into the stage's VM.

    Args:
        stage: Its image must let programs become root.

    Raises:
        AgentVMError: QEMU or the guest does not want it.
    """
    machine = cast("LibvirtMachine", stage.lease.vm.machine)
    await machine.qmp("netdev_add", type="user", id="slirp", ipv6=False)
    await machine.qmp("device_add", driver="virtio-net-pci", netdev="slirp", id="card", romfile="")
    await stage.run(_SET_UP)
