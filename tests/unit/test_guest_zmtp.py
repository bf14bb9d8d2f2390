"""The agent's ZMTP: against any split, against garbage, and against libzmq."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path

import pytest
import zmq
from agentvm_guest.zmtp import OverLong, ZmtpError, ZmtpReader, ZmtpSocket, encode_message
from hypothesis import given
from hypothesis import strategies as st

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(52, b"\0")
READY = b"\x04\x06\x05READY"
MESSAGES = st.lists(st.lists(st.binary(max_size=400), min_size=1, max_size=6), max_size=5)


def read_all(chunks: list[bytes], *, max_message: int = 10_000, max_parts: int = 10) -> list[list[bytes] | OverLong]:
    reader = ZmtpReader(max_message, max_parts)
    found: list[list[bytes] | OverLong] = []
    for chunk in chunks:
        reader.push(chunk)
        while (message := reader.pop()) is not None:
            found.append(message)
    return found


@given(MESSAGES, st.lists(st.integers(0, 1 << 16), max_size=10))
def test_any_split_gives_the_same_messages(messages: list[list[bytes]], cuts: list[int]) -> None:
    data = GREETING + READY + b"".join(map(encode_message, messages))
    points = sorted(cut % (len(data) + 1) for cut in cuts)
    assert read_all([data[a:b] for a, b in zip([0, *points], [*points, len(data)], strict=True)]) == messages


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waits_for_more(data: bytes) -> None:
    for beginning in (b"", GREETING, GREETING + READY):
        try:
            read_all([beginning + data])
        except ZmtpError as error:
            assert str(error)  # noqa: PT017


@pytest.mark.parametrize("piece", [1000, 7])
def test_of_an_over_long_message_only_the_short_beginning_is_kept(piece: int) -> None:
    message = [b"topic", b"x" * 9000, b"y" * 9000, b"z"]
    data = GREETING + READY + encode_message(message) + encode_message([b"next"])
    found = read_all([data[start : start + piece] for start in range(0, len(data), piece)])
    assert found == [OverLong(18_006, message[:2]), [b"next"]]


def test_too_many_parts_are_over_long() -> None:
    found = read_all([GREETING + READY + encode_message([b"p"] * 11)])
    assert found == [OverLong(11, [b"p"] * 10)]


def test_a_claimed_size_takes_no_memory() -> None:
    reader = ZmtpReader(10_000, 10)
    reader.push(GREETING + READY + struct.pack(">BQ", 2, 1 << 62))
    for _ in range(100):
        assert reader.pop() is None
        reader.push(bytes(65536))
    assert reader.pop() is None
    assert reader._part is None


@pytest.mark.parametrize("data", [b"\x01" * 64, b"\xff" + bytes(8) + b"\x7f\x01" + bytes(53)])
def test_other_protocols_are_refused(data: bytes) -> None:
    with pytest.raises(ZmtpError, match="not ZMTP 3"):
        read_all([data])


@pytest.mark.parametrize("frame", [b"\xff\x01x", struct.pack(">BQ", 6, 1 << 20)])
def test_frames_that_make_no_sense_are_refused(frame: bytes) -> None:
    with pytest.raises(ZmtpError, match="frame flags"):
        read_all([GREETING + READY + frame])


def wait_for(connection: ZmtpSocket) -> list[bytes] | OverLong:
    while (message := connection.read()) is None:
        connection.flush()
    return message


def test_a_dealer_talks_to_a_router_of_libzmq(short_tmp: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(f"ipc://{short_tmp}/router")
        dealer = ZmtpSocket(f"{short_tmp}/router", "DEALER", b"me", 1 << 20, 10)
        while not dealer.ready:
            assert dealer.read() is None
        big = os.urandom(300_000)
        received: list[list[bytes]] = []

        def echo() -> None:
            for _ in range(3):
                received.append(router.recv_multipart())
                router.send_multipart(received[-1])

        thread = threading.Thread(target=echo)
        thread.start()
        for message in ([b"a", b"", b"b" * 255], [b"c" * 256], [big]):
            dealer.send(message)
            assert wait_for(dealer) == message
        thread.join()
        assert received[0] == [b"me", b"a", b"", b"b" * 255]
        dealer.close()


def test_a_subscriber_hears_a_publisher_of_libzmq(short_tmp: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.bind(f"ipc://{short_tmp}/pub")
        subscriber = ZmtpSocket(f"{short_tmp}/pub", "SUB", b"me", 1000, 10)
        while not publisher.poll(10):
            assert subscriber.read() is None
        assert publisher.recv() == b"\x01"
        publisher.send_multipart([b"topic", b"x" * 2000])
        publisher.send_multipart([b"topic", b"y"])
        assert wait_for(subscriber) == OverLong(2005, [b"topic"])
        assert wait_for(subscriber) == [b"topic", b"y"]
        subscriber.close()


def test_what_arrives_while_messages_are_left_is_read_after_the_loops_announcement(short_tmp: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_tmp / "s"))
        listener.listen()
        connection = ZmtpSocket(str(short_tmp / "s"), "DEALER", b"me", 1000, 10)
        peer, _ = listener.accept()
        peer.sendall(GREETING + READY + encode_message([b"1"]) + encode_message([b"2"]))
        assert connection.read() == [b"1"]
        # The reader stops here for want of credit; more comes, and the loop says so.
        peer.sendall(encode_message([b"3"]))
        connection.wake()
        assert [connection.read(), connection.read(), connection.read()] == [[b"2"], [b"3"], None]
        peer.close()
        connection.close()


def test_a_peer_that_goes_away_is_noticed(short_tmp: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(short_tmp / "s"))
        listener.listen()
        connection = ZmtpSocket(str(short_tmp / "s"), "DEALER", b"me", 1000, 10)
        peer, _ = listener.accept()
        connection.write(bytes(8 << 20))
        assert connection.blocked
        peer.recv(64)
        peer.close()
        connection.flush()
        assert not connection.blocked
        with pytest.raises(ZmtpError, match=r"clos|broke"):
            connection.read()
        connection.close()
