"""Both ends prove that they know the key; everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.errors import ProofError, ProtocolError
from agentvm_kernel.link import proof as proof_module
from agentvm_kernel.link.frame import BYE, HEADER, MAGIC, MAX_FRAME, PROOF, encode_frame
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import GuestHandshake, HostHandshake, Terms, compute_proof, printable

KEY = bytes(range(32))
OTHER = bytes(32)
LIMITS = Limits(window=70_000, max_message=123_456)


def host(key: bytes = KEY, epoch: int = 3) -> HostHandshake:
    return HostHandshake(key, epoch, LIMITS)


def guest(key: bytes | None = KEY, epoch: int = 3) -> GuestHandshake:
    return GuestHandshake(key, epoch, Limits())


def answer(host_end: HostHandshake, guest_end: GuestHandshake) -> bytes:
    assert guest_end.feed(host_end.hello()) is False
    return guest_end.take()


def test_both_ends_agree_and_know_each_others_terms() -> None:
    h, g = host(), guest()
    proof = h.feed(answer(h, g))
    assert proof is not None
    assert g.feed(proof + b"first frame")
    assert g.rest() == b"first frame"
    assert g.terms == Terms(70_000, 123_456)
    assert h.terms == Terms(Limits().window, Limits().max_message)


@given(st.integers(1, 400), st.binary(max_size=70))
def test_the_handshake_works_at_any_split_and_behind_any_remains(size: int, remains: bytes) -> None:
    h, g = host(), guest()
    data = remains + h.hello()
    for start in range(0, len(data), size):
        assert g.feed(data[start : start + size]) is False
    data = remains + g.take()
    proof = None
    for start in range(0, len(data), size):
        assert proof is None
        proof = h.feed(data[start : start + size])
    assert proof is not None
    done = [g.feed(proof[start : start + size]) for start in range(0, len(proof), size)]
    assert done[-1]
    assert not any(done[:-1])


def test_the_host_refuses_a_guest_with_another_key() -> None:
    h, g = host(), guest(OTHER)
    with pytest.raises(ProofError, match="does not know this VM's key"):
        h.feed(answer(h, g))


def test_the_guest_refuses_a_host_with_another_key() -> None:
    h, g = host(), guest()
    guest_hello = answer(h, g)[len(MAGIC) + HEADER.size : -HEADER.size - 32]
    wrong = compute_proof(OTHER, b"host", 3, h._hello, guest_hello)
    with pytest.raises(ProofError, match="the proof is wrong"):
        g.feed(encode_frame(PROOF, 0, 3, wrong))
    assert g.take() == encode_frame(BYE, 0, 3, b"wrong proof")


def test_a_replayed_answer_is_not_taken_for_one() -> None:
    h, g = host(), guest()
    recorded = answer(h, g)
    later = host()
    assert later.feed(recorded) is None
    assert not later.answered


def test_a_replayed_proof_under_the_new_nonce_is_refused() -> None:
    h, g = host(), guest()
    recorded = answer(h, g)
    later, fresh = host(), guest(OTHER)
    forged = bytearray(answer(later, fresh))
    forged[-32:] = recorded[-32:]
    with pytest.raises(ProofError, match="proof is wrong"):
        later.feed(bytes(forged))


def test_a_replayed_host_is_refused_by_the_guest() -> None:
    h, g = host(), guest()
    hello = h.hello()
    g.feed(hello)
    proof = h.feed(g.take())
    assert proof is not None
    later = guest()
    assert later.feed(hello) is False
    with pytest.raises(ProofError, match="the proof is wrong"):
        later.feed(proof)


def test_a_reflected_hello_is_not_taken_for_an_answer() -> None:
    h = host()
    assert h.feed(h.hello()) is None
    assert not h.answered


def test_a_reflected_proof_is_refused() -> None:
    # The guest's own proof, sent back as the host's.
    h, g = host(), guest()
    text = answer(h, g)
    with pytest.raises(ProofError, match="the proof is wrong"):
        g.feed(text[-HEADER.size - 32 :])


def test_roles_and_epochs_make_different_proofs() -> None:
    texts = {compute_proof(KEY, role, epoch, b"h", b"g") for role in (b"host", b"guest") for epoch in (1, 2)}
    assert len(texts) == 4


def test_another_epoch_is_refused_by_name() -> None:
    h, g = host(epoch=4), guest(epoch=5)
    with pytest.raises(ProofError, match="epoch 4 is not this VM's"):
        g.feed(h.hello())
    with pytest.raises(ProofError, match="The guest refused the link: epoch 4"):
        h.feed(g.take())


def test_a_guest_without_identity_refuses() -> None:
    h, g = host(), guest(None)
    with pytest.raises(ProofError, match="no identity yet"):
        g.feed(h.hello())
    with pytest.raises(ProofError, match="no identity yet"):
        h.feed(g.take())


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    h = host()
    monkeypatch.setattr(proof_module, "VERSION", 2)
    g = guest()
    with pytest.raises(ProofError, match="protocol version 1 is not 2"):
        g.feed(h.hello())


def test_a_guest_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    h = host()
    hello = h.hello()
    forged = proof_module._GUEST_HELLO.pack(9, 1, 1, bytes(32), h._nonce)
    proof = compute_proof(KEY, b"guest", 3, h._hello, forged)
    assert hello
    with pytest.raises(ProtocolError, match="HELLO version 9 is not 1"):
        h.feed(MAGIC + encode_frame(1, 0, 3, forged) + encode_frame(PROOF, 0, 3, proof))


def test_anything_but_a_proof_after_the_guests_hello_is_refused() -> None:
    h, g = host(), guest()
    text = answer(h, g)
    with pytest.raises(ProofError, match="Instead of its proof"):
        h.feed(text[: -HEADER.size - 32] + encode_frame(6, 0, 3, bytes(8)))


def test_a_proof_for_another_epochs_frame_is_refused() -> None:
    h, g = host(), guest()
    text = answer(h, g)
    with pytest.raises(ProofError, match="epoch 7"):
        h.feed(text[: -HEADER.size - 32] + encode_frame(PROOF, 0, 7, text[-32:]))


def test_a_half_sent_frame_of_an_earlier_connection_is_completed_by_the_repetition() -> None:
    # To the guest's decoder the zeros were payload; to its handshake they are nothing.
    h, g = host(), guest()
    h.hello()
    repeated = h.hello()
    assert repeated.startswith(bytes(MAX_FRAME))
    assert g.feed(repeated) is False
    assert h.feed(g.take()) is not None


def test_a_repeated_hello_gets_the_same_answer_which_the_host_skips() -> None:
    h, g = host(), guest()
    first = answer(h, g)
    second = answer(h, g)
    assert first == second
    proof = h.feed(first + second[:50])
    assert proof is not None
    assert g.feed(proof)
    assert h.rest() == b""
    assert h.skip_repeats(second[50:90]) == b""
    assert h.skip_repeats(second[90:] + b"frame") == b"frame"
    assert h.skip_repeats(first) == first


def test_repeats_that_never_came_are_no_obstacle() -> None:
    h, g = host(), guest()
    h.hello()
    assert h.feed(answer(h, g)) is not None
    assert h.rest() == b""
    assert h.skip_repeats(b"\x06frame") == b"\x06frame"


def test_a_new_host_on_the_same_port_gets_a_new_nonce() -> None:
    g = guest()
    first, second = answer(host(), g), answer(host(), g)
    assert first[:46] != second[:46] or first != second
    h = host()
    assert h.feed(answer(h, g)) is not None


def test_garbage_before_the_handshake_is_not_kept() -> None:
    h, g = host(), guest()
    for end in (h, g):
        for _ in range(100):
            end.feed(bytes(range(256)) * 256)
        assert len(end._buffer) < len(MAGIC)


def test_hellos_without_end_are_refused() -> None:
    g = guest()
    with pytest.raises(ProofError, match="too many HELLOs"):
        g.feed(b"".join(host().hello() for _ in range(100)))
    assert len(g.take()) < 20_000


def test_a_refused_handshake_goes_on_behind_what_was_wrong() -> None:
    g = guest()
    h = host()
    with pytest.raises(ProofError):
        g.feed(host(epoch=9).hello() + h.hello())
    g.take()
    assert g.feed(b"") is False
    assert h.feed(g.take()) is not None


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ProofError, match=f"{length} bytes, not 32"):
        host(bytes(length))
    with pytest.raises(ProofError, match=f"{length} bytes, not 32"):
        guest(bytes(length))


def test_text_from_the_other_end_is_made_printable_and_short() -> None:
    assert printable(b"a\x1b[31m\nb\xff") == "a?[31m?b\ufffd"
    assert len(printable(b"x" * 1000)) == 200
