"""The guest's half of a network card: what the host says of it, and waiting until it is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agentvm_guest import card
from agentvm_guest.card import Arrival, Card, parse_card
from agentvm_guest.identity import RequestError
from agentvm_guest.loop import Loop

VALID: dict[str, object] = {"mac": "52:54:00:aa:00:02", "address": "10.213.0.2", "prefix": 22, "gateway": "10.213.0.1"}
CARD = Card("52:54:00:aa:00:02", "10.213.0.2", 22, "10.213.0.1")


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def interfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(card, "_INTERFACES", tmp_path)
    add(tmp_path, "lo", "00:00:00:00:00:00")
    return tmp_path


def add(folder: Path, name: str, mac: str) -> None:
    (folder / name).mkdir()
    (folder / name / "address").write_text(f"{mac}\n")


def test_what_the_host_says_is_read() -> None:
    assert parse_card(VALID) == CARD


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": None}, {"mac": "52:54:00:aa:00"}, {"mac": "52:54:00:aa:00:0g"}, {"address": "10.213.0"},
        {"address": 1.5}, {"gateway": "fe80::1"}, {"gateway": "10.0.0.1; reboot"}, {"prefix": 33}, {"prefix": "22"},
        {"prefix": True},
    ],
)  # fmt: skip
def test_what_is_not_valid_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        parse_card(VALID | wrong)


def wait(loop: Loop, seconds: float, work: object = None) -> list[dict[str, object]]:
    answers: list[dict[str, object]] = []

    def reply(answer: dict[str, object]) -> None:
        answers.append(answer)
        loop.stop()

    Arrival(loop, CARD, work or (lambda _card, _interface: None), reply, seconds)  # type: ignore[arg-type]
    loop.run()
    return answers


def test_a_card_that_is_there_is_set_up(loop: Loop, interfaces: Path) -> None:
    add(interfaces, "eth0", CARD.mac)
    seen: list[tuple[Card, str]] = []
    assert wait(loop, 60, lambda one, name: seen.append((one, name))) == [
        {"ok": True, "mac": CARD.mac, "address": CARD.address}
    ]
    assert seen == [(CARD, "eth0")]


def test_a_card_that_does_not_come_is_given_up(loop: Loop, interfaces: Path) -> None:
    assert wait(loop, 0.01) == [{"ok": False, "error": "the network card did not come"}]


def test_a_card_that_cannot_be_set_up_is_an_error(loop: Loop, interfaces: Path) -> None:
    add(interfaces, "eth0", CARD.mac)

    def fail(_card: Card, _interface: str) -> None:
        raise OSError("ip failed: no such device")

    assert wait(loop, 60, fail) == [{"ok": False, "error": "ip failed: no such device"}]
