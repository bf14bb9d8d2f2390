"""The VM layer and the link over real vhost-vsock: one golden snapshot, two clones of it that run side by side.

Where ``/dev/vhost-vsock`` cannot be opened, ``conftest.py`` has these tests run one virtualisation level down.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ProofError
from agentvm_kernel.image import ImageStore
from agentvm_kernel.link.connection import Link, connect
from agentvm_kernel.link.endpoint import VsockEndpoint
from agentvm_kernel.link.frame import PROOF, encode_frame
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import HostHandshake
from agentvm_kernel.snapshots.notes import Notes
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.vm.accelerator import probe
from agentvm_kernel.vm.blank import start_blank
from agentvm_kernel.vm.capture import Capturer
from agentvm_kernel.vm.clone import VM, Randomness, become
from agentvm_kernel.vm.golden import Source, golden_id, make_golden
from agentvm_kernel.vm.libvirt_hypervisor import LibvirtHypervisor
from agentvm_kernel.vm.snapshot import Snapshot
from agentvm_kernel.vm.spec import VSOCK_PORT, Hardware, Transport

# Two levels of emulation: what takes a second on a plain host may take a minute.
pytestmark = [pytest.mark.nested, pytest.mark.timeout(2400)]
on_module_loop = pytest.mark.asyncio(loop_scope="module")
module_fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")

CONNECT_SECONDS = 60.0
CELL_SECONDS = 300.0

# IOCTL_VM_SOCKETS_GET_LOCAL_CID of <linux/vm_sockets.h>; the device is root's.
ASK_CID = """
import fcntl, struct
with open("/dev/vsock", "rb") as device:
    print(struct.unpack("I", fcntl.ioctl(device, 0x7B9, bytes(4)))[0])
"""
CELL = f"""
import json, random, socket, subprocess
cid = int(subprocess.run(["sudo", "python3", "-I", "-S", "-c", {ASK_CID!r}], capture_output=True, check=True).stdout)
print(json.dumps({{"cid": cid, "hostname": socket.gethostname(), "random": random.random()}}))
"""


def say(text: str) -> None:
    """Show progress, for whoever watches (``pytest -s``)."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for everything, which QEMU's own user may pass through."""
    path = Path(tempfile.mkdtemp(prefix="avm-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@module_fixture
async def hypervisor(folder: Path) -> AsyncIterator[LibvirtHypervisor]:
    """Libvirt's embedded driver."""
    hypervisor = LibvirtHypervisor("embed", folder / "libvirt", f"n{os.getpid()}")
    await hypervisor.open()
    try:
        yield hypervisor
        assert await hypervisor.end_leftovers() == []
    finally:
        await hypervisor.close()


@module_fixture
async def golden(folder: Path, hypervisor: LibvirtHypervisor) -> Snapshot:
    """The golden snapshot of the minimal image with a vsock device."""
    image = await asyncio.to_thread(ImageStore(Paths.of_user().cache).build, "minimal", lambda stage, _done: say(stage))
    source = Source(image.digest, image.kernel, image.initramfs, image.rootfs)
    hardware = Hardware(1, 512, 2, (await probe()).accelerator, Transport.VSOCK)
    name = await golden_id(hypervisor, source, hardware)
    shelf = folder / "golden"
    shelf.mkdir(mode=0o711)
    snapshot = await make_golden(hypervisor, source, hardware, shelf / name, hypervisor.domain_name("golden"), say)
    say(f"booted to an idle ipykernel in {snapshot.manifest.boot_seconds:.1f} s ({hardware.accelerator})")
    return snapshot


@module_fixture
async def vms(folder: Path, hypervisor: LibvirtHypervisor, golden: Snapshot) -> AsyncIterator[list[VM]]:
    """Two clones with a confirmed identity."""
    clones: list[VM] = []
    try:
        for name in ("vm-a", "vm-b"):
            blank = await start_blank(hypervisor, golden, folder / name, hypervisor.domain_name(name))
            say(f"{name}: blank, {blank.machine.vsock}")
            clones.append(await become(blank, name))
            say(f"{name}: identity confirmed")
        yield clones
    finally:
        for vm in clones:
            await vm.end()
    assert not [name for name in ("vm-a", "vm-b") if (folder / name).exists()]


@module_fixture
async def links(vms: list[VM]) -> AsyncIterator[list[Link]]:
    """A proven link to each clone."""
    links = [await dial(vm) for vm in vms]
    yield links
    for link in links:
        await link.close()


async def dial(vm: VM, key: bytes | None = None) -> Link:
    """Dial a clone's guest agent, with its key or another."""
    return await connect(vm.link, key=key or vm.key, epoch=vm.epoch, timeout=CONNECT_SECONDS)


async def ask(link: Link, op: str) -> dict[str, object]:
    """Ask the agent service once."""
    stream = await link.open("agent")
    await stream.send([json.dumps({"id": 1, "op": op}).encode()])
    answer = json.loads((await stream.receive())[0])
    stream.close()
    assert isinstance(answer, dict)
    return answer


async def run_cell(link: Link, code: str) -> str:
    """Run a cell through the link's streams and return what it printed."""
    iopub, shell = await link.open("iopub"), await link.open("shell")
    number = uuid.uuid4().hex
    header = {"msg_id": number, "session": "nested", "username": "", "msg_type": "execute_request", "version": "5.4"}
    header["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    await shell.send([json.dumps(part).encode() for part in (header, {}, {}, content)])
    printed = ""
    async with asyncio.timeout(CELL_SECONDS):
        while True:
            answer, parent, _, said = map(json.loads, (await iopub.receive())[:4])
            if parent.get("msg_id") != number:
                continue
            if answer["msg_type"] == "stream":
                printed += said["text"]
            if answer["msg_type"] == "status" and said["execution_state"] == "idle":
                break
        reply, _, _, outcome = map(json.loads, (await shell.receive())[:4])
    iopub.close()
    shell.close()
    assert (reply["msg_type"], outcome["status"]) == ("execute_reply", "ok"), outcome
    return printed


def send_wrong_proof(vm: VM) -> bytes:
    """Dial a clone as another user of the host would, answer with a made-up proof and return all that it says."""
    assert isinstance(vm.link, VsockEndpoint)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.settimeout(CONNECT_SECONDS)
        sock.connect((vm.link.cid, vm.link.port))
        sock.sendall(HostHandshake(bytes(32), vm.epoch, Limits()).hello())
        said = sock.recv(65536)
        sock.sendall(encode_frame(PROOF, 0, vm.epoch, bytes(32)))
        while data := sock.recv(65536):
            said += data
    return said


@on_module_loop
async def test_each_clone_is_reached_through_a_cid_of_its_own(vms: list[VM]) -> None:
    endpoints = [vm.link for vm in vms]
    assert all(isinstance(endpoint, VsockEndpoint) and endpoint.port == VSOCK_PORT for endpoint in endpoints)
    assert len({endpoint.cid for endpoint in endpoints if isinstance(endpoint, VsockEndpoint)}) == 2


@on_module_loop
async def test_the_agent_answers_over_vsock_with_the_identity_it_was_given(vms: list[VM], links: list[Link]) -> None:
    answers = [await ask(link, "facts") for link in links]
    assert [answer["hostname"] for answer in answers] == [vm.id for vm in vms]
    assert all(answer["ok"] for answer in answers)
    assert vms[0].epoch != vms[1].epoch


@on_module_loop
async def test_a_cell_in_each_clone_sees_that_clones_cid_and_name(vms: list[VM], links: list[Link]) -> None:
    seen = []
    for vm, link in zip(vms, links, strict=True):
        seen.append(json.loads(await run_cell(link, CELL)))
        say(f"{vm.id}: {seen[-1]}")
        assert isinstance(vm.link, VsockEndpoint)
        assert seen[-1]["cid"] == vm.link.cid
        assert seen[-1]["hostname"] == vm.id
    assert seen[0]["random"] != seen[1]["random"]


@on_module_loop
async def test_many_frames_arrive_whole_and_in_order(links: list[Link]) -> None:
    text = await run_cell(links[0], "print('\\n'.join(map(str, range(100_000))))")
    assert text == "\n".join(map(str, range(100_000))) + "\n"


@on_module_loop
async def test_who_dials_a_cid_with_a_wrong_proof_is_refused_and_reported(vms: list[VM]) -> None:
    reported = asyncio.get_running_loop().create_future()
    vms[0].on_event = lambda event: None if reported.done() else reported.set_result(event)
    said = await asyncio.to_thread(send_wrong_proof, vms[0])
    assert b"wrong proof" in said
    async with asyncio.timeout(CONNECT_SECONDS):
        assert (await reported)["event"] == "link_refused"


@on_module_loop
async def test_the_key_of_one_clone_does_not_open_the_other(vms: list[VM]) -> None:
    with pytest.raises(ProofError):
        await dial(vms[1], vms[0].key)


@on_module_loop
async def test_after_a_refusal_the_owner_is_served_again(vms: list[VM], links: list[Link]) -> None:
    await links[0].close()
    with pytest.raises(ProofError):
        await dial(vms[0], secrets.token_bytes(32))
    link = await dial(vms[0])
    assert (await ask(link, "facts"))["hostname"] == vms[0].id
    await link.close()


@on_module_loop
async def test_a_clone_goes_back_to_its_own_snapshot(
    folder: Path, hypervisor: LibvirtHypervisor, golden: Snapshot, vms: list[VM]
) -> None:
    vm = vms[1]
    link = await dial(vm)
    store = SnapshotStore(
        folder / "snapshots", quota=1 << 30, owner=hypervisor.owner, find_golden={golden.id: golden}.get
    )
    store.open()
    capturer = Capturer(hypervisor.owner)
    for state in ("first", "second"):
        await run_cell(link, f"state = {state!r}; open('/tmp/state', 'w').write(state)")
        async with link.hold():
            capture = await capturer.capture(vm)
        with store.tree("nested").new(vm.snapshot, Notes(label=state)) as new:
            capture.device_state.rename(new.folder / "device-state")
            capture.delta.rename(new.folder / "memory.delta")
            for layer in capture.layers:
                os.link(layer, new.folder / "disk.qcow2")
        vm.descend(new.stored.snapshot)
        assert vm.tracker is not None
        say(f"{state}: {vm.tracker.name}, pause {capture.pause * 1000:.1f} ms, {capture.delta.name}")
    await link.close()
    first, second = store.tree("nested").snapshots()
    assert second.written < first.written, "only what was written since the first is in the second"
    for stored, state in ((first, "first"), (second, "second")):
        blank = await start_blank(hypervisor, golden, folder / f"vm-{state}", hypervisor.domain_name(f"vm-{state}"))
        clone = await become(blank, f"vm-{state}", stored.snapshot, Randomness("keep"))
        try:
            back = await dial(clone)
            assert await run_cell(back, "print(state, open('/tmp/state').read())") == f"{state} {state}\n"
            await back.close()
        finally:
            await clone.end()
    store.close()


@on_module_loop
async def test_this_kernel_tells_what_was_written(vms: list[VM]) -> None:
    assert vms[1].tracker is not None
    assert vms[1].tracker.is_exact, vms[1].tracker.name
