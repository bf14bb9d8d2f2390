"""The frame decoder against anything that can arrive."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.errors import ProtocolError
from agentvm_kernel.link import frame as f
from agentvm_kernel.link.frame import HEADER, MAX_FRAME, MAX_PAYLOAD, Frame, FrameDecoder, encode_frame

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
PAYLOADS = {
    f.OPEN: st.binary(min_size=1, max_size=64),
    f.DATA: st.one_of(st.binary(min_size=1, max_size=200), st.just(b"x" * MAX_PAYLOAD)),
    f.CREDIT: st.binary(min_size=4, max_size=4),
    f.PING: st.binary(min_size=8, max_size=8),
    f.CLOSE: st.just(b""),
    f.BYE: st.binary(max_size=256),
}
FRAMES = st.sampled_from(sorted(PAYLOADS)).flatmap(
    lambda kind: st.builds(Frame, st.just(kind), U16, U32, PAYLOADS[kind])
)
FIELD = re.compile(r"Frame (type|flags|length) ")


def decode(chunks: list[bytes]) -> tuple[list[Frame], str | None, bytes]:
    """Return the frames, the error and what was left."""
    decoder = FrameDecoder()
    frames: list[Frame] = []
    for index, chunk in enumerate(chunks):
        decoder.push(chunk)
        try:
            while (frame := decoder.pop()) is not None:
                frames.append(frame)
        except ProtocolError as error:
            return frames, error.message, decoder.rest() + b"".join(chunks[index + 1 :])
        assert decoder.buffered < MAX_FRAME
    return frames, None, decoder.rest()


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[a:b] for a, b in zip([0, *points], [*points, len(data)], strict=True)]


@given(st.lists(FRAMES, max_size=6), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_any_split_of_valid_input_gives_the_same_frames(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(encode_frame(x.type, x.stream, x.epoch, x.payload) for x in frames)
    assert decode(split(data, cuts)) == (frames, None, b"")


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
def test_random_bytes_give_an_error_that_names_the_field_or_wait_for_more(data: bytes, cuts: list[int]) -> None:
    frames, error, rest = decode([data])
    assert error is None or FIELD.match(error)
    assert sum(HEADER.size + len(x.payload) for x in frames) + len(rest) == len(data)
    assert decode(split(data, cuts)) == (frames, error, rest)


@given(FRAMES, st.binary(max_size=40))
def test_what_follows_a_frame_does_not_change_it(frame: Frame, rest: bytes) -> None:
    frames, _, _ = decode([encode_frame(frame.type, frame.stream, frame.epoch, frame.payload) + rest])
    assert frames[0] == frame


@given(st.sampled_from(sorted(f.NAMES)), st.integers(MAX_PAYLOAD + 1, 0xFFFFFFFF))
def test_a_huge_length_is_refused_before_its_payload_comes(kind: int, length: int) -> None:
    decoder = FrameDecoder()
    decoder.push(HEADER.pack(kind, 0, 1, 1, length))
    with pytest.raises(ProtocolError, match=f"Frame length {length} of {f.NAMES[kind]}"):
        decoder.pop()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((0, 0, 0, 0, 0), "Frame type 0 is unknown"),
        ((10, 0, 0, 0, 0), "Frame type 10 is unknown"),
        ((f.DATA, 1, 2, 0, 5), "Frame flags 0x01 of DATA"),
        ((f.DATA, 0, 2, 0, 0), "Frame length 0 of DATA"),
        ((f.CREDIT, 0, 2, 0, 5), "Frame length 5 of CREDIT"),
        ((f.OPEN, 0, 2, 0, 65), "Frame length 65 of OPEN"),
        ((f.BYE, 0, 0, 0, 257), "Frame length 257 of BYE"),
        ((f.PROOF, 0, 0, 0, 31), "Frame length 31 of PROOF"),
    ],
)
def test_each_field_is_checked(header: tuple[int, ...], message: str) -> None:
    _, error, rest = decode([HEADER.pack(*header)])
    assert error is not None
    assert error.startswith(message)
    assert rest == HEADER.pack(*header)


def test_the_magic_is_no_frame() -> None:
    _, error, rest = decode([f.MAGIC])
    assert error == "Frame type 167 is unknown."
    assert rest == f.MAGIC


def test_a_frame_that_comes_byte_by_byte_is_held_once() -> None:
    decoder = FrameDecoder()
    data = encode_frame(f.DATA, 2, 1, b"y" * MAX_PAYLOAD)
    for index in range(len(data) - 1):
        decoder.push(data[index : index + 1])
        assert decoder.pop() is None
        assert decoder.buffered == index + 1
    decoder.push(data[-1:])
    assert decoder.pop() == Frame(f.DATA, 2, 1, b"y" * MAX_PAYLOAD)
    assert decoder.buffered == 0
