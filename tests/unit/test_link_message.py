"""Messages inside a stream."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.errors import ProtocolError
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.message import MessageReader, encode_head, message_size

LIMITS = Limits(max_message=5000, max_parts=20)
MESSAGES = st.lists(
    st.lists(st.binary(max_size=300), min_size=1, max_size=8).filter(lambda parts: message_size(parts) <= 5000),
    max_size=5,
)


def encode(messages: list[list[bytes]]) -> bytes:
    return b"".join(encode_head(parts) + b"".join(parts) for parts in messages)


def read_all(reader: MessageReader) -> list[list[bytes]]:
    messages = []
    while (message := reader.read()) is not None:
        messages.append(message)
    return messages


@given(MESSAGES, st.lists(st.integers(0, 1 << 16), max_size=12), st.booleans())
def test_any_split_gives_the_same_messages(messages: list[list[bytes]], cuts: list[int], eager: bool) -> None:
    data = encode(messages)
    points = sorted(cut % (len(data) + 1) for cut in cuts)
    reader = MessageReader(LIMITS)
    found: list[list[bytes]] = []
    for a, b in zip([0, *points], [*points, len(data)], strict=True):
        reader.push(data[a:b])
        if eager:
            found += read_all(reader)
    found += read_all(reader)
    assert found == messages
    assert reader.buffered == 0
    assert reader.taken == len(data)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_by_name_or_wait_for_more(data: bytes) -> None:
    reader = MessageReader(LIMITS)
    reader.push(data)
    try:
        read_all(reader)
    except ProtocolError as error:
        assert error.message.startswith(("Message part count ", "Message size "))  # noqa: PT017
    assert reader.taken + reader.buffered <= len(data)


@pytest.mark.parametrize("count", [0, 21, 0xFFFFFFFF])
def test_the_number_of_parts_is_bounded(count: int) -> None:
    reader = MessageReader(LIMITS)
    reader.push(struct.pack(">I", count))
    with pytest.raises(ProtocolError, match=f"Message part count {count} is outside 1 to 20"):
        reader.read()


def test_the_size_is_bounded_whatever_its_distribution_over_parts() -> None:
    reader = MessageReader(LIMITS)
    reader.push(struct.pack(">IIII", 3, 2000, 2000, 1000))
    with pytest.raises(ProtocolError, match="Message size 5016 is over 5000"):
        reader.read()


def test_a_claimed_length_takes_no_memory() -> None:
    reader = MessageReader(Limits())
    tracemalloc.start()
    try:
        reader.push(struct.pack(">II", 1, 60 << 20) + b"only this")
        assert reader.read() is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000


def test_one_byte_pieces_take_no_more_memory_than_their_bytes() -> None:
    data = encode([[b"z" * 200_000]])
    reader = MessageReader(Limits())
    tracemalloc.start()
    try:
        for index in range(len(data)):
            reader.push(data[index : index + 1])
        _, unread = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.buffered == len(data)
    assert unread < 2 * len(data)
    assert reader.read() == [b"z" * 200_000]
