"""The guest's smaller parts, each by itself."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentvm_guest import init, system
from agentvm_guest.control import ControlPort, Reply
from agentvm_guest.loop import Loop
from agentvm_guest.ports import Port, find_virtio_port, listen_vsock
from agentvm_guest.relay import DELIMITER, Bridge, Relay, replace_over_long, strip_frames
from agentvm_guest.system import Account, RecordingSystem, System, login_options
from agentvm_guest.zmtp import OverLong, ZmtpError

ACCOUNT = Account("agent", 1000, 1000, [1000, 27], "/home/agent")
PARTS = [b'{"msg_type": "stream"}', b'{"msg_id": "p"}', b"{}", b"{}"]


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


# The loop.


def test_timers_run_in_order_and_can_be_cancelled(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0.02, lambda: seen.append("second"))
    loop.call_later(0.01, lambda: seen.append("first"))
    loop.call_later(0.015, lambda: seen.append("never")).cancel()
    loop.call_later(0.03, loop.stop)
    loop.run()
    assert seen == ["first", "second"]


def test_a_hung_up_descriptor_does_not_make_the_loop_spin(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    calls: list[int] = []
    with ours:
        loop.add(ours.fileno(), lambda: calls.append(1))
        theirs.close()
        loop.call_later(0.05, loop.stop)
        loop.run()
        loop.remove(ours.fileno())
        loop.remove(ours.fileno())
    assert len(calls) <= 2


# The control port.


class Owner:
    """The control port's other end."""

    def __init__(self, loop: Loop, *, lasting: bool = False) -> None:
        ours, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.requests: list[dict[str, object]] = []
        self.hung_up = False
        self.loop = loop
        self.port = ControlPort(loop, Port(ours.detach(), lasting=lasting), self.on_request, self.on_hang_up)

    def on_request(self, request: dict[str, object], reply: Reply) -> None:
        self.requests.append(request)
        reply({"ok": True})

    def on_hang_up(self) -> None:
        self.hung_up = True

    def turn(self) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run()

    def answers(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.sock.recv(1 << 20).splitlines()]


def test_requests_in_pieces_are_answered_by_number(loop: Loop) -> None:
    owner = Owner(loop)
    for piece in (b'\n{"id": 3, ', b'"op": "a"}\n{"id": 4', b', "op": "b"}\n'):
        owner.sock.sendall(piece)
        owner.turn()
    assert [request["op"] for request in owner.requests] == ["a", "b"]
    assert owner.answers() == [{"id": 3, "ok": True}, {"id": 4, "ok": True}]
    owner.sock.close()
    owner.turn()
    assert owner.hung_up


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[]", b'{"op": "x"}', b'{"id": "7"}', b"y" * 70_000])
def test_lines_that_are_no_requests_are_counted_and_skipped(loop: Loop, line: bytes) -> None:
    owner = Owner(loop)
    owner.sock.sendall(line)
    owner.turn()
    owner.sock.sendall(b'\n{"id": 1}\n')
    owner.turn()
    assert owner.port.skipped >= 1
    assert owner.requests == [{"id": 1}]
    owner.port.close()
    owner.sock.close()


def test_an_owner_that_does_not_read_costs_bounded_memory(loop: Loop) -> None:
    owner = Owner(loop)
    for _ in range(2000):
        owner.port.send({"event": "x" * 1000})
    assert len(owner.port._out) <= 256 << 10
    owner.port.close()
    owner.sock.close()


def test_a_lasting_port_survives_a_hang_up_and_forgets_what_was_half_said(loop: Loop) -> None:
    owner = Owner(loop, lasting=True)
    owner.sock.sendall(b'{"id": 1')
    owner.turn()
    owner.sock.shutdown(socket.SHUT_WR)
    owner.turn()
    assert not owner.hung_up
    assert not owner.port._in
    owner.port.send({"event": "still here"})
    assert owner.answers() == [{"event": "still here"}]
    owner.port.close()
    owner.sock.close()


# Ports.


def test_a_virtio_port_is_found_by_its_name(tmp_path: Path) -> None:
    for device, name in (("vport1p1", "agentvm.control"), ("vport1p2", "agentvm.link")):
        (tmp_path / device).mkdir()
        (tmp_path / device / "name").write_text(f"{name}\n")
    assert find_virtio_port("agentvm.link", tmp_path) == Path("/dev/vport1p2")
    with pytest.raises(FileNotFoundError, match=r"no virtio-serial port named other"):
        find_virtio_port("other", tmp_path)


def test_a_broken_connection_reads_as_an_end_and_writes_nothing() -> None:
    ours, theirs = socket.socketpair()
    port = Port(ours.detach(), lasting=False)
    theirs.close()
    assert port.read() == b""
    assert port.write(b"x") == 0
    port.close()


def test_the_guest_listens_on_vsock() -> None:
    try:
        listener = listen_vsock(socket.VMADDR_PORT_ANY)
    except OSError as error:
        pytest.skip(f"this host has no vsock: {error}")
    assert listener.getsockname()[0] == socket.VMADDR_CID_ANY
    listener.close()


# The relay.


def test_frames_around_a_message_are_stripped() -> None:
    assert strip_frames([b"topic", DELIMITER, b"", *PARTS, b"buffer"]) == [*PARTS, b"buffer"]
    assert strip_frames([b"no delimiter"]) is None
    assert strip_frames([DELIMITER, b"", b"too", b"short"]) is None


@pytest.mark.parametrize("iopub", [True, False])
def test_the_note_about_an_over_long_message_keeps_its_parent(iopub: bool) -> None:
    prefix = [b"topic", DELIMITER, b""] if iopub else [DELIMITER, b""]
    header, parent, _, content = replace_over_long(OverLong(10**9, [*prefix, *PARTS]), 10**6, iopub=iopub)
    assert parent == PARTS[1]
    if iopub:
        assert json.loads(header)["msg_type"] == "stream"
        assert "1000000000 bytes was left out" in json.loads(content)["text"]
    else:
        assert header == PARTS[0]
        assert json.loads(content)["status"] == "error"


def test_an_over_long_message_without_a_header_gets_one() -> None:
    assert len(replace_over_long(OverLong(10**9, [DELIMITER, b""]), 10, iopub=False)) == 4


class FakeSocket:
    """ipykernel's end: gives out messages, takes a limited number."""

    def __init__(self, messages: list[list[bytes]], room: int = 100) -> None:
        self.messages = messages
        self.room = room
        self.sent: list[list[bytes]] = []
        self.fd = 99

    @property
    def blocked(self) -> bool:
        return len(self.sent) >= self.room

    def wake(self) -> None:
        pass

    def flush(self) -> None:
        self.room += 100

    def send(self, parts: list[bytes]) -> None:
        self.sent.append(parts)

    def read(self) -> list[bytes] | None:
        if self.messages == ["gone"]:
            raise ZmtpError("the connection was closed")
        return self.messages.pop(0) if self.messages else None


class FakeStream:
    """The link's end."""

    def __init__(self, messages: list[list[bytes]] = [], credit: int = 100) -> None:  # noqa: B006
        self.service = "shell"
        self.messages = list(messages)
        self.credit = credit
        self.sent: list[list[bytes]] = []
        self.max_message = 10_000

    @property
    def writable(self) -> bool:
        return len(self.sent) < self.credit

    def send(self, parts: list[bytes]) -> None:
        self.sent.append(parts)

    def receive(self) -> list[bytes] | None:
        return self.messages.pop(0) if self.messages else None


def bridge(sock: FakeSocket, stream: FakeStream) -> Bridge:
    made = Bridge("shell", lambda fd, wanted: None)
    made.socket = sock  # type: ignore[assignment]
    made.stream = stream  # type: ignore[assignment]
    return made


def test_messages_are_taken_from_ipykernel_only_while_there_is_credit() -> None:
    sock = FakeSocket([[DELIMITER, b"", *PARTS] for _ in range(5)])
    stream = FakeStream(credit=2)
    crossing = bridge(sock, stream)
    crossing.to_host()
    assert len(sock.messages) == 3
    assert crossing.readable
    stream.credit = 100
    crossing.to_host()
    assert stream.sent == [PARTS] * 5
    assert not crossing.readable


def test_messages_are_taken_from_the_host_only_while_ipykernel_reads() -> None:
    sock = FakeSocket([], room=2)
    stream = FakeStream([PARTS] * 5)
    crossing = bridge(sock, stream)
    crossing.from_host()
    assert len(stream.messages) == 3
    crossing.on_socket()
    assert sock.sent == [[DELIMITER, b"", *PARTS]] * 5


def test_what_is_no_message_is_left_out() -> None:
    stream = FakeStream()
    bridge(FakeSocket([[b"nonsense"], [DELIMITER, b"", *PARTS]]), stream).to_host()
    assert stream.sent == [PARTS]


def test_a_broken_socket_is_reported_once_and_forgotten() -> None:
    reasons: list[str] = []
    relay = Relay(lambda fd, wanted: None, reasons.append)
    relay.connect({"shell": FakeSocket(["gone"])})  # type: ignore[dict-item, list-item]
    relay.attach(FakeStream())  # type: ignore[arg-type]
    assert not relay.to_host()
    assert not relay.to_host()
    assert reasons == ["shell: the connection was closed"]


# The system.


def test_the_privileged_operations_reach_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(system, "ETC", tmp_path)
    monkeypatch.setattr("time.clock_settime_ns", lambda *args: calls.append(args))
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, *args: calls.append(args))
    monkeypatch.setattr(socket, "sethostname", lambda name: calls.append((name,)))
    real = System()
    assert real.recorded is None
    real.set_clock(5)
    real.add_entropy(b"e" * 64)
    real.set_names("vm-1", "ab" * 16)
    assert calls == [
        (0, 5),
        (0x40085203, struct.pack("ii", 512, 64) + b"e" * 64),
        (0x5207,),
        ("vm-1",),
    ]
    assert (tmp_path / "hostname").read_text() == "vm-1\n"
    assert "127.0.1.1 vm-1\n" in (tmp_path / "hosts").read_text()
    assert (tmp_path / "machine-id").read_text() == "ab" * 16 + "\n"


def test_a_process_killed_for_memory_is_recognised(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text("")
    real = System()
    assert not real.killed_for_memory(42)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    real._kmsg = reading
    os.write(writing, b"3,1,2,-;Out of memory: Killed process 421 (python) total-vm:1kB\n")
    assert not real.killed_for_memory(42)
    os.write(writing, b"3,1,2,-;Memory cgroup out of memory: Killed process 42 (python) total-vm:1kB\n")
    assert real.killed_for_memory(42)
    os.close(reading)
    os.close(writing)


def test_ipykernels_user_comes_from_the_password_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "KERNEL_USER", "root")
    account = System().account()
    assert account is not None
    assert (account.uid, account.gid, account.home) == (0, 0, "/root")
    assert RecordingSystem().account() is None


def test_ipykernels_environment_is_a_logins() -> None:
    environment = login_options(ACCOUNT, "/opt/agentvm/venv/bin/python")["env"]
    assert environment["HOME"] == "/home/agent"
    assert environment["PATH"].startswith("/opt/agentvm/venv/bin:")
    assert environment["VIRTUAL_ENV"] == "/opt/agentvm/venv"


# PID 1.


def test_the_console_has_the_size_of_a_terminal() -> None:
    ours, theirs = os.openpty()
    try:
        init.size_console(theirs)
        assert os.get_terminal_size(theirs) == (80, 24)
    finally:
        os.close(ours)
        os.close(theirs)
    with Path(os.devnull).open() as nothing:
        init.size_console(nothing.fileno())


def test_the_kernels_command_line_gives_the_agents_arguments() -> None:
    assert init.parse_command_line("console=ttyS0 agentvm.transport=vsock agentvm.port=4011 quiet") == [
        "--transport",
        "vsock",
        "--port",
        "4011",
    ]
    assert init.parse_command_line("quiet agentvm.transport=") == []


def test_orphans_are_reaped_until_the_agent_ends() -> None:
    endings = iter([(7, 0), (8, 9), (42, 9), (43, 0)])
    assert init.reap_until(42, lambda: next(endings)) == 9
    assert next(endings) == (43, 0)


def test_the_agents_death_is_described() -> None:
    assert init.describe_death(9) == {"event": "agent_died", "exit_code": None, "signal": 9}
    assert init.describe_death(3 << 8) == {"event": "agent_died", "exit_code": 3, "signal": None}


def test_the_death_is_reported_and_waits_for_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(init, "open_virtio_port", lambda name: Port(ours.detach(), lasting=True))
    theirs.sendall(b"ok\n")
    init.report({"event": "agent_died"})
    assert theirs.recv(100) == b'\n{"event": "agent_died"}\n'
    theirs.close()


def test_the_users_processes_get_a_group_with_limits(tmp_path: Path) -> None:
    init.make_cgroup(tmp_path)
    memory = int((tmp_path / "user" / "memory.max").read_text())
    assert memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - (64 << 20)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


class FakeLibc:
    """Notes calls; fails when told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.result = 0

    def mount(self, *arguments: object) -> int:
        self.calls.append(arguments)
        return self.result

    reboot = mount
    mlockall = mount


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> FakeLibc:
    fake = FakeLibc()
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: fake)
    return fake


def test_only_what_is_missing_is_mounted(tmp_path: Path, libc: FakeLibc, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = (init.Mount("proc", "/proc", 0), init.Mount("tmpfs", str(tmp_path / "shm"), 6, "mode=1777"))
    monkeypatch.setattr(init, "MOUNTS", mounts)
    monkeypatch.setattr(init, "_LINKS", {str(tmp_path / "fd"): "/proc/self/fd"})
    init.mount_missing()
    init.mount_missing()
    assert libc.calls == [(b"tmpfs", str(tmp_path / "shm").encode(), b"tmpfs", 6, b"mode=1777")] * 2
    assert (tmp_path / "fd").readlink() == Path("/proc/self/fd")


def test_a_failed_mount_is_an_error(libc: FakeLibc) -> None:
    libc.result = -1
    with pytest.raises(OSError, match="/target"):
        init.mount("a", "/target", "b", 0, "")


def test_the_power_goes_off_after_a_sync_when_somebody_asked(libc: FakeLibc, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "sync", lambda: synced.append(1))
    init._sync_and_power_off()
    assert synced == [1]
    assert libc.calls == [(0x4321FEDC,)]


def test_a_disk_that_cannot_grow_is_mentioned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(init, "_DISK", "/nonexistent")
    monkeypatch.setattr("shutil.which", lambda name: None)
    init.grow_disk()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("subprocess.run", lambda *a, **k: types.SimpleNamespace(returncode=1, stderr="no such disk\n"))
    init.grow_disk()
    assert "the disk was not grown: no such disk" in capsys.readouterr().err


def test_the_loopback_interface_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[int, bytes]] = []

    def ioctl(sock: socket.socket, number: int, request: bytes) -> bytes:
        requests.append((number, request))
        return request[:16] + struct.pack("h", 8) + request[18:]

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    init.raise_loopback()
    assert [number for number, _ in requests] == [0x8913, 0x8914]
    assert struct.unpack_from("16sh", requests[1][1]) == (b"lo".ljust(16, b"\0"), 9)
