"""The beginning of a link: both ends prove that they know the VM's key before anything else is said.

    host  -> guest   magic, HELLO(version, window, max_message, nonce)
    guest -> host    magic, HELLO(version, window, max_message, nonce, the host's nonce), PROOF     or BYE(reason)
    host  -> guest   PROOF

A proof is HMAC-SHA256(key, role | epoch | the host's HELLO | the guest's HELLO): the nonces in it stop a replay, the
role stops a reflection. The magic lets either end find the beginning behind the remains of an earlier connection, which
a virtio-serial port keeps.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass

from agentvm_kernel.errors import ProofError, ProtocolError
from agentvm_kernel.link.frame import BYE, HEADER, HELLO, MAGIC, MAX_FRAME, PROOF, check_header, encode_frame
from agentvm_kernel.link.limits import Limits

VERSION = 1
NONCE = 32
# A peer that repeats HELLO and reads no answer must not make the guest queue answers without bound.
_MAX_ANSWERS = 64
_HOST_HELLO = struct.Struct(">HII32s")
_GUEST_HELLO = struct.Struct(">HII32s32s")


@dataclass(frozen=True)
class Terms:
    """What the other end said about itself in its HELLO.

    Attributes:
        window: Bytes that may be sent to it on a stream before it gives credit.
        max_message: Longest message it takes.
    """

    window: int
    max_message: int


def compute_proof(key: bytes, role: bytes, epoch: int, host_hello: bytes, guest_hello: bytes) -> bytes:
    """Return the proof that ``role`` (``b"host"`` or ``b"guest"``) knows the key."""
    text = b"|".join((role, epoch.to_bytes(4, "big"), host_hello, guest_hello))
    return hmac.digest(key, text, "sha256")


def _check_key(key: bytes) -> None:
    if len(key) != 32:
        raise ProofError(f"The link's key has {len(key)} bytes, not 32.")


class HostHandshake:
    """The host's side; reads no socket.

    Args:
        key: The VM's key, 32 bytes.
        epoch: The VM's epoch.
        limits: This end's bounds, told to the guest.
    """

    def __init__(self, key: bytes, epoch: int, limits: Limits) -> None:
        _check_key(key)
        self._key = key
        self._epoch = epoch
        self._nonce = secrets.token_bytes(NONCE)
        self._hello = _HOST_HELLO.pack(VERSION, limits.window, limits.max_message, self._nonce)
        self._buffer = bytearray()
        self._answer = b""
        self._repeats = -1
        self.answered = False
        self.terms: Terms | None = None

    def hello(self) -> bytes:
        """Return what to send first, and again when no answer comes.

        The repetition begins with as many zero bytes as complete any frame that an earlier connection left half sent.
        """
        self._repeats += 1
        flush = bytes(MAX_FRAME) if self._repeats else b""
        return flush + MAGIC + encode_frame(HELLO, 0, self._epoch, self._hello)

    def feed(self, data: bytes) -> bytes | None:
        """Take received bytes.

        Returns:
            The host's PROOF to send, once the guest's proof was found good; None when more bytes are needed.

        Raises:
            ProofError: the guest's proof is wrong, or the guest refused.
        """
        self._buffer += data
        while (start := self._buffer.find(MAGIC)) >= 0:
            del self._buffer[:start]
            end = len(MAGIC) + HEADER.size + _GUEST_HELLO.size
            if len(self._buffer) < end:
                return None
            if self._is_answer(end):
                return self._read_proof(end)
            del self._buffer[:1]
        del self._buffer[: max(0, len(self._buffer) - len(MAGIC) + 1)]
        return None

    def rest(self) -> bytes:
        """Take out the bytes that follow the handshake, without repetitions of the guest's answer.

        The guest answers every repetition of HELLO, so copies of its answer may precede the first frame. Call it again
        with later data through `skip_repeats` until the first byte of something else.
        """
        rest = bytes(self._buffer)
        self._buffer.clear()
        return self.skip_repeats(rest)

    def skip_repeats(self, data: bytes) -> bytes:
        """Return the data without leading copies of the guest's answer; keeps an incomplete copy for the next call."""
        if self._repeats <= 0:
            return data
        data = bytes(self._buffer) + data
        self._buffer.clear()
        while self._repeats > 0 and data.startswith(self._answer):
            data = data[len(self._answer) :]
            self._repeats -= 1
        if self._repeats > 0 and self._answer.startswith(data):
            self._buffer += data
            return b""
        self._repeats = 0
        return data

    def _is_answer(self, end: int) -> bool:
        head = len(MAGIC)
        kind, flags, _stream, _epoch, length = HEADER.unpack_from(self._buffer, head)
        if kind != HELLO or flags or length != _GUEST_HELLO.size:
            return False
        return self._buffer[end - NONCE : end] == self._nonce

    def _read_proof(self, end: int) -> bytes | None:
        self.answered = True
        buffer = self._buffer
        if len(buffer) < end + HEADER.size:
            return None
        header = HEADER.unpack_from(buffer, end)
        kind, _flags, _stream, epoch, length = header
        check_header(header)
        stop = end + HEADER.size + length
        if len(buffer) < stop:
            return None
        payload = bytes(buffer[end + HEADER.size : stop])
        if kind == BYE:
            raise ProofError(f"The guest refused the link: {printable(payload)}")
        if kind != PROOF or epoch != self._epoch:
            raise ProofError(f"Instead of its proof the guest sent a frame of type {kind}, epoch {epoch}.")
        guest_hello = bytes(buffer[len(MAGIC) + HEADER.size : end])
        self._verify(guest_hello, payload)
        self._answer = bytes(buffer[:stop])
        del buffer[:stop]
        return encode_frame(
            PROOF, 0, self._epoch, compute_proof(self._key, b"host", self._epoch, self._hello, guest_hello)
        )

    def _verify(self, guest_hello: bytes, proof: bytes) -> None:
        wanted = compute_proof(self._key, b"guest", self._epoch, self._hello, guest_hello)
        if not hmac.compare_digest(wanted, proof):
            raise ProofError("The guest's proof is wrong: it does not know this VM's key.")
        version, window, max_message, _nonce, _echo = _GUEST_HELLO.unpack(guest_hello)
        if version != VERSION:
            raise ProtocolError(f"HELLO version {version} is not {VERSION}.")
        self.terms = Terms(window, max_message)


class GuestHandshake:
    """The guest's side of one connection; reads no socket.

    Args:
        key: The VM's key, 32 bytes; None before the VM has an identity, when every link is refused.
        epoch: The VM's epoch.
        limits: This end's bounds, told to the host.
    """

    def __init__(self, key: bytes | None, epoch: int, limits: Limits) -> None:
        if key is not None:
            _check_key(key)
        self._key = key
        self._epoch = epoch
        self._limits = limits
        self._buffer = bytearray()
        self._host_hello = b""
        self._guest_hello = b""
        self._output = bytearray()
        self._answers = 0
        self.terms: Terms | None = None

    def feed(self, data: bytes) -> bool:
        """Take received bytes; afterwards `take` has what is to be sent.

        Returns:
            True once the host's proof was found good.

        Raises:
            ProofError: the host's proof is wrong, or it asks for an epoch that is not this VM's. The handshake is then
                at its beginning, behind what was wrong.
        """
        self._buffer += data
        while True:
            if self._host_hello:
                done = self._read_proof()
                if done is not None:
                    return done
            if not self._read_hello():
                return False

    def take(self) -> bytes:
        """Take out what is to be sent."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def rest(self) -> bytes:
        """Take out the received bytes that follow the handshake."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _read_hello(self) -> bool:
        """Find the next HELLO and answer it; False when more bytes are needed."""
        buffer = self._buffer
        end = len(MAGIC) + HEADER.size + _HOST_HELLO.size
        while (start := buffer.find(MAGIC)) >= 0:
            del buffer[:start]
            if len(buffer) < end:
                return False
            kind, flags, _stream, epoch, length = HEADER.unpack_from(buffer, len(MAGIC))
            if kind == HELLO and not flags and length == _HOST_HELLO.size:
                hello = bytes(buffer[end - length : end])
                del buffer[:end]
                self._answer(hello, epoch)
                return True
            del buffer[:1]
        del buffer[: max(0, len(buffer) - len(MAGIC) + 1)]
        return False

    def _answer(self, hello: bytes, epoch: int) -> None:
        version, window, max_message, nonce = _HOST_HELLO.unpack(hello)
        if hello != self._host_hello:
            self._guest_hello = _GUEST_HELLO.pack(
                VERSION, self._limits.window, self._limits.max_message, secrets.token_bytes(NONCE), nonce
            )
        self._output += MAGIC + encode_frame(HELLO, 0, self._epoch, self._guest_hello)
        self._answers += 1
        if self._answers > _MAX_ANSWERS:
            self._answers = 0
            self._refuse("too many HELLOs without a proof")
        if self._key is None:
            self._refuse("the VM has no identity yet")
        elif version != VERSION:
            self._refuse(f"protocol version {version} is not {VERSION}")
        elif epoch != self._epoch:
            self._refuse(f"epoch {epoch} is not this VM's")
        else:
            self._host_hello = hello
            self.terms = Terms(window, max_message)
            proof = compute_proof(self._key, b"guest", self._epoch, hello, self._guest_hello)
            self._output += encode_frame(PROOF, 0, self._epoch, proof)

    def _refuse(self, reason: str) -> None:
        self._host_hello = b""
        self._output += encode_frame(BYE, 0, self._epoch, reason.encode())
        raise ProofError(reason)

    def _read_proof(self) -> bool | None:
        """Return True for a good proof, False when more bytes are needed, None when no proof follows."""
        buffer = self._buffer
        if len(buffer) < HEADER.size:
            # A repeated HELLO begins like no PROOF; one byte tells.
            return None if buffer and buffer[0] != PROOF else False
        kind, flags, _stream, epoch, length = HEADER.unpack_from(buffer)
        if kind != PROOF or flags or length != 32 or epoch != self._epoch:
            return None
        end = HEADER.size + length
        if len(buffer) < end:
            return False
        proof = bytes(buffer[HEADER.size : end])
        del buffer[:end]
        assert self._key is not None
        wanted = compute_proof(self._key, b"host", self._epoch, self._host_hello, self._guest_hello)
        if not hmac.compare_digest(wanted, proof):
            self._host_hello = b""
            self._output += encode_frame(BYE, 0, self._epoch, b"wrong proof")
            raise ProofError("the proof is wrong")
        return True


def printable(data: bytes, length: int = 200) -> str:
    """Return text from the other end fit for a message: one line, printable, bounded."""
    text = data[:length].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)
