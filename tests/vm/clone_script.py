"""Run the VM layer once on a libvirt connection and print what was seen as JSON; a process of its own, of any user.

Usage: clone_script.py URI STATE_DIR CACHE_DIR
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

from agentvm_kernel.link.connection import connect
from agentvm_kernel.profiles import Profile
from agentvm_kernel.supervisor.catalogue import Catalogue
from agentvm_kernel.vm.blank import start_blank
from agentvm_kernel.vm.clone import VM, become
from agentvm_kernel.vm.libvirt_hypervisor import LibvirtHypervisor
from agentvm_kernel.vm.sharing import Share, ShareError
from agentvm_kernel.vm.spec import Transport

PROFILE = Profile(vcpus=1, memory_mib=512, disk_gb=4)


async def describe(vm: VM) -> dict[str, object]:
    """Ask over both channels."""
    control = await vm.request("facts", 30)
    link = await connect(vm.link, key=vm.key, epoch=vm.epoch)
    agent = await link.open("agent")
    await agent.send([json.dumps({"id": 1, "op": "facts"}).encode()])
    answer = json.loads((await agent.receive())[0])
    await link.close()
    status = Path(f"/proc/{vm.pid}/status").read_text()
    uid = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))
    seccomp = next(line.split()[1] for line in status.splitlines() if line.startswith("Seccomp:"))
    return {"facts": control, "link": answer["ok"], "uid": int(uid), "seccomp": int(seccomp), "vm": vm.id}


async def share(vm: VM, state: Path) -> str:
    """Share a folder, which QEMU has to open; this image's kernel cannot mount it, so that it is taken away again."""
    folder = state / "mine"
    folder.mkdir(exist_ok=True)
    try:
        await vm.sharing.begin(Share(folder))
    except ShareError as error:
        return f"{error.message} {vm.sharing.share}"
    return "shared"


async def main(uri: str, state: Path, cache: Path) -> None:
    """Make a golden snapshot if there is none, clone it twice, and end everything."""
    hypervisor = LibvirtHypervisor(uri, state / "libvirt", f"t{os.getpid()}")
    await hypervisor.open()
    try:
        catalogue = Catalogue(hypervisor, cache, "tcg", Transport.SERIAL)
        snapshot = await catalogue.golden("minimal", PROFILE, lambda step: print(step.stage, file=sys.stderr))
        vms = []
        with tempfile.TemporaryDirectory(dir=state, prefix="vm-") as folder:
            Path(folder).chmod(0o711)
            for name in ("vm-a", "vm-b"):
                blank = await start_blank(hypervisor, snapshot, Path(folder) / name, hypervisor.domain_name(name))
                vms.append(await become(blank, name))
            seen = [await describe(vm) | {"shared": await share(vm, state)} for vm in vms]
            for vm in vms:
                await vm.end()
            left = [str(path) for path in Path(folder).iterdir()]
        print(json.dumps({"version": await hypervisor.version(), "vms": seen, "left": left}))
    finally:
        await hypervisor.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
