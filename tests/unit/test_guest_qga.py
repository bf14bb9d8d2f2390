"""QEMU's agent in the guest: how it is asked, and what the host makes of what a hostile one says."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from agentvm_guest import qga
from agentvm_guest.qga import QemuAgent
from hypothesis import given
from hypothesis import strategies as st
from kernel_client import wait_until

from agentvm_kernel.observe.description import Description

ANSWERING = """\
import json, os, socket, sys
assert (os.environ["LISTEN_FDS"], int(os.environ["LISTEN_PID"])) == ("1", os.getpid())
connection, _ = socket.socket(fileno=3).accept()
for line in connection.makefile("rb"):
    connection.sendall({answer})
"""


def program(folder: Path, answer: str) -> str:
    """A program that answers every command with the same: an expression in which `line` is the question."""
    path = folder / "agent"
    path.write_text(f"#!{sys.executable}\n{ANSWERING.format(answer=answer)}")
    path.chmod(0o755)
    return str(path)


def asked(folder: Path, answer: str, seconds: float = 60) -> object:
    with QemuAgent(seconds, folder / "state", program(folder, answer)) as agent:
        return agent.ask("guest-info")


def test_it_answers(short_tmp: Path) -> None:
    echo = 'json.dumps({"return": json.loads(line)["execute"]}).encode() + b"\\n"'
    with QemuAgent(60, short_tmp / "state", program(short_tmp, echo)) as agent:
        assert [agent.ask("guest-info"), agent.ask("guest-ping")] == ["guest-info", "guest-ping"]
        pid = agent._pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('b"{}\\n"', "refused"), ('b"[1]\\n"', "refused"), ('b"null\\n"', "refused"), ('b"{\\n"', "nothing sensible"),
        ("b'{\"error\": {\"class\": \"x\"}}\\n'", "refused"), ('b"[" * 100000 + b"\\n"', "nothing sensible"),
        ('b"\\"" + b"a" * (1 << 20) + b"\\"\\n"', "nothing sensible"), ('b"\\xff\\xfe\\n"', "nothing sensible"),
        ('os._exit(1)', "nothing sensible|reset|Broken pipe"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_an_error(short_tmp: Path, answer: str, said: str) -> None:
    with pytest.raises(OSError, match=said):
        asked(short_tmp, answer)


def test_all_answers_together_are_bounded(short_tmp: Path) -> None:
    large = 'json.dumps({"return": "a" * 30000}).encode() + b"\\n"'
    with QemuAgent(60, short_tmp / "state", program(short_tmp, large)) as agent:
        agent.ask("guest-info")
        with pytest.raises(OSError, match="nothing sensible"):
            agent.ask("guest-info")


def test_one_that_says_nothing_is_not_waited_for(short_tmp: Path) -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="timed out"):
        asked(short_tmp, 'b""', 0.1)
    assert time.monotonic() > began


def test_one_that_is_not_installed_is_told(short_tmp: Path) -> None:
    with pytest.raises(OSError, match="qemu-nothing is not installed"), QemuAgent(1, short_tmp / "s", "qemu-nothing"):
        pass


SAID = {
    "guest-info": {"version": "10.0.2", "supported_commands": []},
    "guest-get-osinfo": {
        "pretty-name": "Debian GNU/Linux 13",
        "kernel-release": "6.12",
        "machine": "x86_64",
        "id": "debian",
    },
    "guest-get-fsinfo": [
        {"name": "vda", "mountpoint": "/", "type": "ext4", "used-bytes": 1, "total-bytes": 2, "disk": []},
        {"name": "x", "mountpoint": "/run", "type": "tmpfs"},
    ],
    "guest-get-users": [{"user": "agent", "login-time": 1.5}],
}


def test_a_description_has_what_is_wanted_of_it() -> None:
    said = Description.of(SAID)
    assert (said.version, said.system.pretty_name, said.system.kernel_release) == (
        "10.0.2",
        "Debian GNU/Linux 13",
        "6.12",
    )
    assert [(one.mountpoint, one.type, one.used_bytes, one.total_bytes) for one in said.file_systems] == [
        ("/", "ext4", 1, 2), ("/run", "tmpfs", None, None),
    ]  # fmt: skip
    assert [one.user for one in said.users] == ["agent"]


@pytest.mark.parametrize(
    "lie",
    [
        {"guest-info": {"version": "1" * 17}}, {"guest-info": []}, {"guest-get-osinfo": {"pretty-name": "a" * 201}},
        {"guest-get-osinfo": {"pretty-name": ["a"]}}, {"guest-get-fsinfo": {"mountpoint": "/"}},
        {"guest-get-fsinfo": [{"mountpoint": "/", "type": "ext4", "used-bytes": -1}]},
        {"guest-get-fsinfo": [{"mountpoint": "/", "type": "ext4", "used-bytes": 1 << 60}]},
        {"guest-get-fsinfo": [{"mountpoint": "/", "type": "ext4", "used-bytes": True}]},
        {"guest-get-users": [{"user": {"user": "root"}}, None, 7]}, {"guest-get-users": "root"},
    ],
)  # fmt: skip
def test_what_is_not_sensible_is_left_out(lie: dict[str, object]) -> None:
    assert Description.of(lie) == Description()


def test_a_long_list_is_cut() -> None:
    assert len(Description.of({"guest-get-users": [{"user": str(one)} for one in range(10_000)]}).users) == 16


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["mountpoint", "type", "user", "version"]), inner),
)


@given(st.dictionaries(st.sampled_from([*SAID]), _JSON))
def test_whatever_it_says_the_description_is_bounded(answer: dict[str, object]) -> None:
    assert len(Description.of(answer).model_dump_json()) < 100_000


@pytest.fixture
def asked_for(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an agent writes down what it was asked for."""
    log = short_tmp / "log"
    answer = f'(open({str(log)!r}, "ab").write(line), b\'{{"return": 1}}\\n\')[1]'
    monkeypatch.setattr(
        qga, "QemuAgent", partial(QemuAgent, folder=short_tmp / "s", program=program(short_tmp, answer))
    )
    return log


def commands(log: Path) -> list[str]:
    return [json.loads(line)["execute"] for line in log.read_text().splitlines()] if log.exists() else []


def test_what_is_frozen_is_thawed_on_demand(asked_for: Path) -> None:
    freezer = qga.Freezer(60)
    assert freezer.freeze() == {"count": 1}
    assert freezer.thaw() == {"count": 1}
    assert commands(asked_for) == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
    assert freezer._timer is not None
    assert freezer._timer.finished.is_set(), "nothing is thawed later"


def test_what_the_host_forgets_is_thawed(asked_for: Path) -> None:
    qga.Freezer(60, longest=0.01).freeze()
    wait_until(lambda: commands(asked_for)[1:] == ["guest-fsfreeze-thaw"], "the guest thaws by itself")
