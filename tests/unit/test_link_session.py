"""The multiplexer, two ends face to face without a socket."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentvm_kernel.errors import LinkClosedError, ProtocolError
from agentvm_kernel.link import frame as f
from agentvm_kernel.link.frame import DATA_CHUNK, HEADER, MAX_PAYLOAD, encode_frame
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import Terms
from agentvm_kernel.link.session import Session
from agentvm_kernel.link.stream import SessionStream

SMALL = Limits(window=100_000, max_message=300_000, max_streams=4, idle_frames=50)
EPOCH = 7


def make(*, host: bool, limits: Limits = SMALL, accept: bool = True) -> Session:
    terms = Terms(limits.window, limits.max_message)
    return Session(
        host=host, epoch=EPOCH, limits=limits, terms=terms, accept=(lambda name: name != "no") if accept else None
    )


def pair(limits: Limits = SMALL) -> tuple[Session, Session]:
    return make(host=True, limits=limits), make(host=False, limits=limits)


def move(a: Session, b: Session) -> list[SessionStream]:
    """Carry everything from one end to the other."""
    touched = []
    while data := a.take():
        touched += b.feed(data)
    return touched


def open_stream(a: Session, b: Session, service: str = "shell") -> tuple[SessionStream, SessionStream]:
    ours = a.open(service)
    (theirs,) = move(a, b)
    return ours, theirs


def test_messages_arrive_in_order_and_whole() -> None:
    a, b = pair()
    ours, theirs = open_stream(a, b)
    messages = [[b"one"], [b"", b"two", b"x" * 1000], [b"y" * 50_000, b"z"]]
    for message in messages:
        ours.send(message)
    move(a, b)
    assert [theirs.receive() for _ in messages] == messages
    assert theirs.receive() is None


def test_host_streams_are_even_and_guest_streams_odd() -> None:
    a, b = pair()
    assert [a.open("x").id, a.open("y").id] == [2, 4]
    assert [b.open("x").id, b.open("y").id] == [1, 3]


def test_a_short_message_is_one_frame() -> None:
    a, b = pair()
    ours, _ = open_stream(a, b)
    ours.send([b"a", b"bc"])
    assert a.take() == encode_frame(f.DATA, 2, EPOCH, struct.pack(">III", 2, 1, 2) + b"abc")


def test_a_stream_stops_at_its_credit_and_goes_on_when_the_consumer_has_taken() -> None:
    a, b = pair()
    ours, theirs = open_stream(a, b)
    ours.send([bytes(250_000)])
    move(a, b)
    assert theirs.buffered == SMALL.window
    assert ours.queued == 250_008 - SMALL.window
    assert not ours.writable
    assert a.take() == b""
    for _ in range(2):
        assert theirs.receive() is None
        move(b, a)
        move(a, b)
    assert theirs.receive() == [bytes(250_000)]
    move(b, a)
    assert ours.writable


def test_a_consumer_that_takes_nothing_gives_no_credit() -> None:
    a, b = pair()
    ours, theirs = open_stream(a, b)
    ours.send([bytes(99_000)])
    move(a, b)
    assert b.take() == b""
    assert not b.granting
    theirs.receive()
    assert b.granting
    move(b, a)
    assert not b.granting


def test_a_stuck_stream_does_not_stop_another() -> None:
    a, b = pair()
    stuck, _ = open_stream(a, b, "iopub")
    free, other = open_stream(a, b, "control")
    stuck.send([bytes(299_000)])
    move(a, b)
    free.send([b"hello"])
    move(a, b)
    assert other.receive() == [b"hello"]


def test_streams_take_turns() -> None:
    a, b = pair(Limits())
    long, _ = open_stream(a, b, "iopub")
    short, other = open_stream(a, b, "control")
    long.send([bytes(900_000)])
    short.send([bytes(MAX_PAYLOAD + 1)])
    for _ in range(4):
        b.feed(a.take())
    assert other.receive() is not None


@pytest.mark.parametrize(("host", "longest"), [(True, MAX_PAYLOAD), (False, DATA_CHUNK)])
@pytest.mark.parametrize("extra", [0, 1])
def test_the_host_sends_longer_frames_than_the_guest(*, host: bool, longest: int, extra: int) -> None:
    a, b = pair()
    ours, _ = open_stream(a, b) if host else open_stream(b, a)
    ours.send([bytes(longest - 8 + extra)])
    (kind, _, _, _, length) = HEADER.unpack_from((a if host else b).take())
    assert (kind, length) == (f.DATA, longest)


def test_data_beyond_the_credit_is_refused_by_name() -> None:
    a, b = pair()
    open_stream(a, b)
    flood = encode_frame(f.DATA, 2, EPOCH, bytes(50_000))
    b.feed(flood + flood)
    with pytest.raises(ProtocolError, match="DATA length 50000 on stream 2 is beyond its credit"):
        b.feed(flood)


def test_credit_that_was_not_yet_sent_is_not_to_be_used() -> None:
    # An end that does not read cannot know of it.
    a, b = pair()
    ours, theirs = open_stream(a, b)
    ours.send([bytes(99_000)])
    move(a, b)
    theirs.receive()
    assert b.granting
    with pytest.raises(ProtocolError, match="beyond its credit"):
        b.feed(encode_frame(f.DATA, 2, EPOCH, bytes(50_000)))


def test_frames_of_another_epoch_are_dropped_and_counted() -> None:
    a, b = pair()
    _, theirs = open_stream(a, b)
    stale = struct.pack(">II", 1, 3) + b"old"
    assert b.feed(encode_frame(f.DATA, 2, EPOCH - 1, stale) + encode_frame(f.CLOSE, 2, EPOCH + 1)) == []
    assert b.dropped == 2
    assert theirs.receive() is None
    assert not theirs.ended


def test_a_flood_of_frames_without_data_is_refused() -> None:
    _, b = pair()
    ping = encode_frame(f.PING, 0, EPOCH, bytes(8))
    b.feed(ping * 50)
    b.tick()
    b.feed(ping * 50)
    with pytest.raises(ProtocolError, match="More than 50 frames without data"):
        b.feed(ping)


def test_a_flood_of_another_epoch_is_refused() -> None:
    _, b = pair()
    with pytest.raises(ProtocolError, match="More than 50 frames without data"):
        b.feed(encode_frame(f.DATA, 2, 1, b"x") * 51)


def test_unread_answers_do_not_pile_up() -> None:
    _, b = pair(Limits())
    for number in range(1000):
        b.feed(encode_frame(f.PING, 0, EPOCH, number.to_bytes(8, "big")))
    assert b.take() == encode_frame(f.PONG, 0, EPOCH, (999).to_bytes(8, "big"))
    assert b.take() == b""


def test_only_the_awaited_pong_counts() -> None:
    a, _ = pair()
    a.ping(b"12345678")
    assert a.take() == encode_frame(f.PING, 0, EPOCH, b"12345678")
    a.feed(encode_frame(f.PONG, 0, EPOCH, b"guessed!"))
    assert a.awaiting_pong
    a.feed(encode_frame(f.PONG, 0, EPOCH, b"12345678"))
    assert not a.awaiting_pong


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ((f.HELLO, 0, b"x"), "Frame type HELLO is not allowed"),
        ((f.PROOF, 0, bytes(32)), "Frame type PROOF is not allowed"),
        ((f.DATA, 9, b"x"), "DATA stream number 9 is not open"),
        ((f.CREDIT, 9, bytes(4)), "CREDIT stream number 9 is not open"),
        ((f.CLOSE, 9, b""), "CLOSE stream number 9 is not open"),
        ((f.CREDIT, 2, b"\0\0\0\1"), "CREDIT amount 1 on stream 2 is more than was sent"),
        ((f.OPEN, 2, b"x"), "OPEN stream number 2 is in use"),
        ((f.OPEN, 3, b"x"), "OPEN stream number 3 is not one of the other end's"),
        ((f.OPEN, 0, b"x"), "OPEN stream number 0 is not one of the other end's"),
        ((f.OPEN, 8, b"\n"), "OPEN service name is not printable ASCII"),
        ((f.OPEN, 8, b"\xff"), "OPEN service name is not printable ASCII"),
    ],
)
def test_each_violation_is_named(frame: tuple[int, int, bytes], message: str) -> None:
    a, b = pair()
    open_stream(a, b)
    with pytest.raises(ProtocolError, match=message):
        b.feed(encode_frame(frame[0], frame[1], EPOCH, frame[2]))


def test_a_host_lets_no_guest_open_streams() -> None:
    a = make(host=True, accept=False)
    with pytest.raises(ProtocolError, match="OPEN of stream 1 is not for this end to ask"):
        a.feed(encode_frame(f.OPEN, 1, EPOCH, b"x"))


def test_the_number_of_streams_is_bounded() -> None:
    a, b = pair()
    for index in range(SMALL.max_streams):
        a.open(f"s{index}")
    with pytest.raises(ProtocolError, match="More than 4 streams"):
        a.open("one more")
    move(a, b)
    with pytest.raises(ProtocolError, match="OPEN exceeds 4 streams"):
        b.feed(encode_frame(f.OPEN, 20, EPOCH, b"x"))


def test_a_refused_service_is_closed() -> None:
    a, b = pair()
    ours, _ = open_stream(a, b, "no")
    assert move(b, a) == [ours]
    assert ours.ended
    ours.close()
    move(a, b)
    assert a.streams() == b.streams() == []


def test_a_closed_stream_delivers_what_was_sent_before() -> None:
    a, b = pair()
    ours, theirs = open_stream(a, b)
    ours.send([bytes(60_000)])
    ours.close()
    with pytest.raises(LinkClosedError):
        ours.send([b"late"])
    move(a, b)
    assert theirs.ended
    assert theirs.receive() == [bytes(60_000)]
    theirs.close()
    move(b, a)
    assert a.streams() == b.streams() == []


def test_close_waits_for_the_credit_of_what_was_sent() -> None:
    a, b = pair()
    ours, theirs = open_stream(a, b)
    ours.send([bytes(150_000)])
    ours.close()
    move(a, b)
    assert not theirs.ended
    while theirs.receive() is None:
        move(b, a)
        move(a, b)
    move(a, b)
    assert theirs.ended


def test_data_that_crosses_a_close_is_dropped() -> None:
    a, b = pair()
    ours, theirs = open_stream(a, b)
    theirs.send([b"crossing"])
    ours.close()
    move(b, a)
    assert ours.receive() is None
    assert ours.buffered == 0


def test_frames_after_a_close_are_refused() -> None:
    a, b = pair()
    _, theirs = open_stream(a, b)
    b.feed(encode_frame(f.CLOSE, 2, EPOCH))
    assert theirs.ended
    with pytest.raises(ProtocolError, match="DATA on stream 2 follows its CLOSE"):
        b.feed(encode_frame(f.DATA, 2, EPOCH, b"x"))
    with pytest.raises(ProtocolError, match="CLOSE on stream 2 came twice"):
        b.feed(encode_frame(f.CLOSE, 2, EPOCH))


def test_sending_on_a_stream_that_the_other_end_closed_goes_nowhere() -> None:
    a, b = pair()
    ours, theirs = open_stream(a, b)
    theirs.close()
    move(b, a)
    ours.send([bytes(90_000)])
    assert ours.queued == 0
    assert a.take() == b""


def test_numbers_of_closed_streams_are_used_again() -> None:
    a, b = pair()
    kept, _ = open_stream(a, b, "kept")
    for _ in range(0x8000):
        ours, theirs = open_stream(a, b)
        ours.close()
        move(a, b)
        theirs.close()
        move(b, a)
        a.tick()
        b.tick()
        assert ours.id != kept.id
    assert len(a.streams()) == len(b.streams()) == 1


@pytest.mark.parametrize(
    ("parts", "message"), [([], "0 parts"), ([b""] * 1025, "1025 parts"), ([bytes(300_000)], "300008 bytes")]
)
def test_a_message_out_of_bounds_is_refused_before_it_is_sent(parts: list[bytes], message: str) -> None:
    a, b = pair()
    ours, _ = open_stream(a, b)
    with pytest.raises(ProtocolError, match=message):
        ours.send(parts)
    assert a.take() == b""


def test_goodbye_follows_what_was_sent() -> None:
    a, b = pair()
    ours, theirs = open_stream(a, b)
    ours.send([bytes(90_000)])
    a.bye("enough")
    move(a, b)
    assert b.goodbye == "enough"
    assert theirs.receive() == [bytes(90_000)]


def test_the_rest_after_an_error_begins_with_what_was_wrong() -> None:
    _, b = pair()
    with pytest.raises(ProtocolError):
        b.feed(encode_frame(f.PING, 0, EPOCH, bytes(8)) + f.MAGIC + b"hello")
    assert b.rest() == f.MAGIC + b"hello"


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_random_bytes_only_ever_raise_protocol_errors(chunks: list[bytes]) -> None:
    a, b = pair()
    open_stream(a, b)
    try:
        for chunk in chunks:
            for stream in b.feed(chunk):
                stream.receive()
    except ProtocolError as error:
        assert error.message  # noqa: PT017


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(f.NAMES)),
            st.sampled_from([0, 1, 2, 3, 4, 6]),
            st.sampled_from([6, 7]),
            st.binary(max_size=80),
        ),
        max_size=40,
    )
)
def test_any_sequence_of_frames_leaves_bounded_state(frames: list[tuple[int, int, int, bytes]]) -> None:
    _, b = pair()
    try:
        for kind, stream, epoch, payload in frames:
            for touched in b.feed(HEADER.pack(kind, 0, stream, epoch, len(payload)) + payload):
                touched.receive()
    except ProtocolError as error:
        assert error.message  # noqa: PT017
    assert len(b.streams()) <= SMALL.max_streams
    # What is to be answered depends on the number of streams, not of frames.
    assert len(b.take()) <= 2 * 20 + SMALL.max_streams * 32


class TwoEnds(RuleBasedStateMachine):
    """Whatever the order of sending, carrying and receiving, everything arrives and no end holds more than a window."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(window=9000, max_message=40_000)
        self.a, self.b = pair(self.limits)
        self.streams = [open_stream(self.a, self.b, name) for name in ("shell", "iopub")]
        self.sent: list[list[list[bytes]]] = [[], []]
        self.received: list[list[list[bytes]]] = [[], []]

    @rule(index=st.integers(0, 1), size=st.sampled_from([0, 5, 3000, 8999, 20_000]), parts=st.integers(1, 3))
    def send(self, index: int, size: int, parts: int) -> None:
        if len(self.sent[index]) < 8:
            message = [bytes([len(self.sent[index])]) * (size // parts)] * parts
            self.streams[index][0].send(message)
            self.sent[index].append(message)

    @rule()
    def carry(self) -> None:
        self.b.feed(self.a.take())

    @rule()
    def carry_back(self) -> None:
        self.a.feed(self.b.take())

    @rule(index=st.integers(0, 1))
    def receive(self, index: int) -> None:
        message = self.streams[index][1].receive()
        if message is not None:
            self.received[index].append(message)

    @invariant()
    def no_end_holds_more_than_a_window(self) -> None:
        assert all(theirs.buffered <= self.limits.window for _, theirs in self.streams)

    def teardown(self) -> None:
        for _ in range(200):
            self.carry()
            self.receive(0)
            self.receive(1)
            self.carry_back()
        assert self.received == self.sent


TestTwoEnds = TwoEnds.TestCase
