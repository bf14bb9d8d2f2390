"""The identity step's parts: what a request may hold, and what becomes of the generators."""

from __future__ import annotations

import gc
import importlib
import random
import socket
import ssl
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agentvm_guest import launcher
from agentvm_guest.identity import RequestError, parse_identity

IDENTITY: dict[str, object] = {
    "epoch": 1,
    "key": "0f" * 32,
    "time_ns": 5,
    "entropy": "A0" * 64,
    "hostname": "vm-1",
    "machine_id": "0f" * 16,
}


def test_an_identity_is_read_field_by_field() -> None:
    read = parse_identity(IDENTITY)
    assert (read.epoch, read.key, read.time_ns, read.entropy) == (1, b"\x0f" * 32, 5, b"\xa0" * 64)
    assert (read.hostname, read.machine_id, read.randomness, read.seed) == ("vm-1", "0f" * 16, "diverge", b"")
    assert parse_identity(IDENTITY | {"randomness": "common", "seed": "01" * 64}).seed == b"\x01" * 64
    assert parse_identity(IDENTITY | {"hostname": "a" * 63}).hostname == "a" * 63
    assert (read.fork, parse_identity(IDENTITY | {"fork": 64}).fork) == (0, 64)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("epoch", (None, "1", True, -1, 1 << 32)),
        ("time_ns", (1.5, 1 << 63)),
        ("key", (None, b"0f" * 32, "0f" * 31, "0f" * 33, "0g" * 32, "0f " * 21 + "0", "\u0660\u0661" * 32)),
        ("entropy", ("0f" * 32, " " * 128, "0f" * 63 + "\n0")),
        ("hostname", (None, "", "-a", "a-", "A", "a.b", "a b", "a" * 64, "a\n", "\u00e4", "\u0251")),
        ("machine_id", (None, "0f" * 15, "0F" * 16, "../../etc/passwd", "0f" * 15 + "0\n")),
        ("randomness", (None, "other", 1, "")),
        ("fork", (None, "1", -1, 1 << 16)),
    ],
)
def test_what_no_identity_may_hold_is_refused_by_name(field: str, values: tuple[object, ...]) -> None:
    for value in values:
        with pytest.raises(RequestError, match=f"^{field} is not"):
            parse_identity(IDENTITY | {field: value})
    with pytest.raises(RequestError, match=r"^seed is not 64 bytes"):
        parse_identity(IDENTITY | {"randomness": "common", "seed": "0f" * 63})


@pytest.fixture
def random_state() -> Iterator[None]:
    state = random.getstate()
    yield
    random.setstate(state)


@dataclass
class Generators:
    """Stands for NumPy's, torch's and OpenSSL's: what each was given."""

    numpy: list[tuple[int, ...]] = field(default_factory=list)
    torch: list[int] = field(default_factory=list)
    ssl: list[bytes] = field(default_factory=list)


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> Generators:
    seen = Generators()
    monkeypatch.setitem(sys.modules, "numpy.random", types.SimpleNamespace(seed=seen.numpy.append))
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(manual_seed=seen.torch.append))
    monkeypatch.setattr(ssl, "RAND_add", lambda data, entropy: seen.ssl.append(data))
    return seen


@pytest.mark.usefixtures("random_state")
def test_generators_differ_unless_a_common_seed_is_given_and_openssls_always_does(generators: Generators) -> None:
    drawn = []
    one, other = bytes(range(64)), bytes(range(1, 65))
    for mode, seed in (("common", one), ("common", one), ("common", other), ("diverge", b""), ("diverge", b"")):
        assert launcher.renew(mode, seed) == ["random", "numpy", "torch", "ssl"]
        drawn.append(random.random())
    values: list[object]
    for values in (drawn, generators.numpy, generators.torch):
        assert values[0] == values[1]
        assert len(set(values)) == 4
    assert len(set(generators.ssl)) == 5
    assert all(0 <= word < 1 << 32 for words in generators.numpy for word in words)
    assert all(0 <= number < 1 << 63 for number in generators.torch)


@pytest.fixture
def no_numpy() -> Iterator[None]:
    """No module of NumPy is loaded; what is then goes again, since others look whether it is there (Hypothesis)."""

    def take_away() -> dict[str, types.ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] == "numpy"]
        return {name: sys.modules.pop(name) for name in names}

    before = take_away()
    yield
    take_away()
    sys.modules.update(before)


@pytest.mark.usefixtures("random_state", "no_numpy")
def test_a_generator_that_numpy_has_not_loaded_yet_is_common_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").touch()
    (tmp_path / "numpy" / "random.py").write_text("seeds = []\nseed = seeds.append\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "numpy" not in launcher.renew("common", bytes(64))
    importlib.import_module("numpy")
    assert "numpy" not in launcher.renew("diverge", b"")
    assert "numpy" in launcher.renew("common", bytes(64))


@pytest.mark.usefixtures("random_state")
def test_generators_that_are_kept_go_on_but_openssls_is_renewed(generators: Generators) -> None:
    state = random.getstate()
    assert launcher.renew("keep", b"") == ["ssl"]
    assert random.getstate() == state
    assert (generators.numpy, generators.torch, len(generators.ssl)) == ([], [], 1)


@pytest.mark.usefixtures("random_state")
def test_a_generator_that_fails_is_reported_and_the_helper_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: object) -> None:
        raise RuntimeError("the user\nbroke it")

    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=launcher.serve, args=(theirs,))
    thread.start()
    with ours, ours.makefile("rwb") as lines:
        for number, seed in ((1, fail), (2, lambda seed: None)):
            monkeypatch.setitem(sys.modules, "numpy.random", types.SimpleNamespace(seed=seed))
            lines.write(b"%d diverge\n" % number)
            lines.flush()
            answer = lines.readline().decode().split()
            assert answer[:2] == [str(number), "error" if number == 1 else "ok"]
            assert answer[-2:] == (["user\\nbroke", "it')"] if number == 1 else ["numpy", "ssl"])
    thread.join()


def test_what_settled_is_not_looked_at_by_the_garbage_collector() -> None:
    before = gc.get_freeze_count()
    mine: list[object] = [[]]
    try:
        assert launcher.perform("settle", b"") == []
        assert gc.get_freeze_count() > before
        assert all(known is not mine for known in gc.get_objects())
    finally:
        gc.unfreeze()
