"""A guest agent that behaves badly, as a script: for tests of the host's end of the link, here and inside a real VM.

On a Unix socket, in place of an honest agent; MODE is one of those below:

    python hostile_guest.py MODE --listen /path/link.sock --key HEX --epoch 1

Inside a VM, as root: takes the link over from the running agent, which is stopped, in the middle of its session. Only
the modes that follow the proofs make sense then.

    python3 hostile_guest.py MODE --take-over PID [--seconds 10]

After that time the agent goes on with its port.

Standard library and ``agentvm_kernel.link`` only (in a VM that is ``/run/agentvm/lib``).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

for folder in (Path("/run/agentvm/lib"), *Path(__file__).resolve().parents[2:3]):
    if folder.exists():
        sys.path.insert(0, str(folder))

from agentvm_kernel.errors import ProofError  # noqa: E402
from agentvm_kernel.link import frame as f  # noqa: E402
from agentvm_kernel.link.frame import HEADER, MAGIC, FrameDecoder, encode_frame  # noqa: E402
from agentvm_kernel.link.limits import Limits  # noqa: E402
from agentvm_kernel.link.proof import GuestHandshake  # noqa: E402

NOISE = os.urandom(1 << 16)
# x86-64 and arm64 have the same numbers.
_PIDFD_GETFD = 438


class Peer:
    """A blocking connection to the host, and what was learned from it."""

    def __init__(self, fd: int, key: bytes, epoch: int) -> None:
        self.fd = fd
        self.key = key
        self.epoch = epoch
        self.stream = 2
        os.set_blocking(fd, True)

    def read(self) -> bytes:
        data = os.read(self.fd, 65536)
        if not data:
            raise ConnectionError("the host hung up")
        return data

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def frame(self, kind: int, payload: bytes = b"", *, stream: int | None = None, epoch: int | None = None) -> bytes:
        return encode_frame(
            kind, self.stream if stream is None else stream, self.epoch if epoch is None else epoch, payload
        )

    def prove(self) -> None:
        """Be honest up to the proofs, and wait for the host's first stream."""
        handshake = GuestHandshake(self.key, self.epoch, Limits())
        while not handshake.feed(self.read()):
            self.write(handshake.take())
        decoder = FrameDecoder()
        decoder.push(handshake.rest())
        while True:
            while (frame := decoder.pop()) is not None:
                if frame.type == f.OPEN:
                    self.stream = frame.stream
                    return
            decoder.push(self.read())

    def learn_epoch(self) -> None:
        """Find epoch and stream in what the host says: it pings, and answers what it is asked."""
        while True:
            data = self.read()
            for start in range(len(data) - HEADER.size + 1):
                kind, flags, stream, epoch, length = HEADER.unpack_from(data, start)
                if flags == 0 and ((kind == f.PING and length == 8) or (kind == f.DATA and 0 < length <= 65536)):
                    self.epoch, self.stream = epoch, stream or 2
                    return

    def wait(self) -> None:
        """Do nothing until the host hangs up."""
        poll = select.poll()
        poll.register(self.fd, select.POLLHUP | select.POLLERR)
        poll.poll()

    def read_on(self) -> None:
        """Read, and answer nothing, until the host hangs up."""
        while True:
            self.read()


def forever(peer: Peer, data: bytes) -> None:
    while True:
        peer.write(data)


def echo(peer: Peer) -> None:
    while True:
        peer.write(peer.read())


def answer_wrongly(peer: Peer, change: Callable[[bytearray], None]) -> None:
    handshake = GuestHandshake(peer.key, peer.epoch, Limits())
    while True:
        with contextlib.suppress(ProofError):
            handshake.feed(peer.read())
        if answer := bytearray(handshake.take()):
            change(answer)
            peer.write(bytes(answer))


def flip_last_bit(answer: bytearray) -> None:
    answer[-1] ^= 1


def leave_out_proof(answer: bytearray) -> None:
    del answer[-HEADER.size - 32 :]


def wrong_epoch(peer: Peer) -> None:
    peer.epoch += 1
    answer_wrongly(peer, lambda answer: None)


def replay(peer: Peer) -> None:
    """Send the answer that an earlier host got."""
    recorded = GuestHandshake(peer.key, peer.epoch, Limits())
    recorded.feed(MAGIC + encode_frame(f.HELLO, 0, peer.epoch, struct.pack(">HII32s", 1, 1 << 20, 1 << 26, bytes(32))))
    peer.write(recorded.take())
    peer.read_on()


def flood(peer: Peer) -> None:
    forever(peer, peer.frame(f.DATA, struct.pack(">II", 1, 60 << 20) + bytes(32_000)))


def claim(peer: Peer, *numbers: int) -> None:
    peer.write(peer.frame(f.DATA, struct.pack(f">{len(numbers)}I", *numbers)))
    peer.read_on()


def half(peer: Peer) -> None:
    peer.write(HEADER.pack(f.DATA, 0, peer.stream, peer.epoch, 60_000) + bytes(100))
    peer.wait()


def talk_but_not_listen(peer: Peer) -> None:
    """Keep sending what is valid and costs nothing, slower than counts as a flood, without reading anything."""
    while True:
        peer.write(peer.frame(f.PONG, os.urandom(8), stream=0))
        select.select([], [], [], 0.05)


BEFORE_PROOF: dict[str, Callable[[Peer], None]] = {
    "silent": Peer.wait,
    "noise-first": lambda peer: forever(peer, NOISE),
    "no-proof": lambda peer: answer_wrongly(peer, leave_out_proof),
    "wrong-proof": lambda peer: answer_wrongly(peer, flip_last_bit),
    "wrong-epoch": wrong_epoch,
    "replay": replay,
    "reflect": echo,
    "hang-up-first": lambda peer: None,
}
AFTER_PROOF: dict[str, Callable[[Peer], None]] = {
    "noise": lambda peer: forever(peer, NOISE),
    "huge": lambda peer: peer.write(HEADER.pack(f.DATA, 0, peer.stream, peer.epoch, 0xFFFFFFFF)) or peer.read_on(),
    "half": half,
    "flood": flood,
    "flood-pings": lambda peer: forever(peer, peer.frame(f.PING, bytes(8), stream=0) * 3000),
    "flood-epoch": lambda peer: forever(peer, peer.frame(f.DATA, bytes(1000), epoch=0xFFFF) * 30),
    "many-parts": lambda peer: claim(peer, 1 << 31),
    "big-message": lambda peer: claim(peer, 2, 1 << 31, 1 << 31),
    "open": lambda peer: peer.write(peer.frame(f.OPEN, b"back", stream=1)) or peer.read_on(),
    "deaf": Peer.wait,
    "deaf-talker": talk_but_not_listen,
    "hang-up": lambda peer: None,
}


def take_over(pid: int, seconds: int) -> int:
    """Stop the agent and duplicate the descriptor of its link port; after some seconds the agent has it back."""

    def give_back(*_: object) -> None:
        os.set_blocking(fd, False)
        os.kill(pid, signal.SIGCONT)
        os._exit(0)

    os.kill(pid, signal.SIGSTOP)
    pidfd = os.pidfd_open(pid)
    ports = {path.parent.name for path in Path("/sys/class/virtio-ports").glob("*/name") if "link" in path.read_text()}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if entry.readlink().name in ports:
            fd = ctypes.CDLL(None).syscall(_PIDFD_GETFD, pidfd, int(entry.name), 0)
            if fd >= 0:
                signal.signal(signal.SIGALRM, give_back)
                signal.alarm(seconds)
                return int(fd)
    raise SystemExit("The agent's link port was not found.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=sorted(BEFORE_PROOF | AFTER_PROOF))
    parser.add_argument("--listen")
    parser.add_argument("--key", default="00" * 32)
    parser.add_argument("--epoch", type=int, default=1)
    parser.add_argument("--take-over", type=int)
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    if options.take_over:
        peer = Peer(take_over(options.take_over, options.seconds), b"", 0)
        peer.learn_epoch()
        with contextlib.suppress(ConnectionError):
            AFTER_PROOF[options.mode](peer)
        signal.pause()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(options.listen)
    listener.listen(1)
    print("listening", flush=True)
    connection, _ = listener.accept()
    peer = Peer(connection.fileno(), bytes.fromhex(options.key), options.epoch)
    try:
        if options.mode in BEFORE_PROOF:
            BEFORE_PROOF[options.mode](peer)
        else:
            peer.prove()
            AFTER_PROOF[options.mode](peer)
    except OSError:
        # The host hung up, which is what it should do.
        return


if __name__ == "__main__":
    main()
