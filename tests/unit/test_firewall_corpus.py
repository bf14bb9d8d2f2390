"""Every hostile output of tests/security, run by a plain ipykernel: what the firewall makes of it, a checker judges.

That is what a client such as VS Code gets, whatever it does with it; what JupyterLab does is seen in tests/security.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hostile_corpus import Case, Target, cases, groups, prepare
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel
from output_checker import Checker

from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.firewall import Firewall
from agentvm_kernel.firewall.policy import Policy

TARGET = Target(canary="127.0.0.1:9", jupyter="http://127.0.0.1:8888")
SECONDS = 60


@dataclass
class Said:
    """What a kernel said to one cell: messages of iopub and stdin in their order, and the reply."""

    iopub: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def client() -> Iterator[BlockingKernelClient]:
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=SECONDS)
    try:
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(client: BlockingKernelClient, source: str) -> Said:
    """Run a cell; prompts are answered with nothing."""
    said = Said()
    message_id = client.execute(source, allow_stdin=True)
    while True:
        message = client.get_iopub_msg(timeout=SECONDS)
        if client.stdin_channel.msg_ready():
            said.prompts.append(client.get_stdin_msg(timeout=SECONDS))
            client.input("")
        said.iopub.append(message)
        idle = message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
        if idle and message["parent_header"].get("msg_id") == message_id:
            said.reply = client.get_shell_msg(timeout=SECONDS)
            return said


def problems(firewall: Firewall, checker: Checker, said: Said) -> list[str]:
    """Return what the checker has against what the firewall lets through."""
    found: list[str] = []
    for message in said.iopub:
        if message["msg_type"] in {"status", "execute_input", "iopub_welcome"}:
            continue
        content, metadata = (json.dumps(message[name]).encode() for name in ("content", "metadata"))
        buffers = [bytes(buffer) for buffer in message["buffers"]]
        shown = firewall.output(message["msg_type"], content, metadata, buffers, lambda *_: None)
        if shown is not None:
            found += checker.output(message["msg_type"], shown.content, shown.metadata, shown.buffers)
    for prompt in said.prompts:
        found += checker.prompt(firewall.prompt(json.dumps(prompt["content"]).encode(), "", lambda *_: None))
    reply = json.dumps(said.reply["content"]).encode()
    return found + checker.reply("execute_reply", firewall.reply("execute_reply", reply, lambda *_: None))


def firewall_of(mode: Mode) -> Firewall:
    firewall = Firewall(Policy(mode=mode))
    firewall.is_host_code = lambda code: code.lstrip().startswith("%")
    return firewall


@dataclass
class Judged:
    """What the checker says of each case in each mode."""

    cases: list[Case]
    modes: dict[Mode, dict[str, list[str]]]


@pytest.fixture(scope="module")
def judged(client: BlockingKernelClient) -> dict[str, Judged]:
    """Every group, run once and judged in every mode."""
    result = {}
    for group in groups():
        wanted = cases(group, TARGET)
        beds = {mode: (firewall_of(mode), Checker()) for mode in Mode}
        modes: dict[Mode, dict[str, list[str]]] = {mode: {} for mode in Mode}
        run(client, prepare(group))
        for case in wanted:
            said = run(client, case.source)
            for mode, (firewall, checker) in beds.items():
                modes[mode][case.id] = problems(firewall, checker, said)
        result[group] = Judged(wanted, modes)
    return result


@pytest.mark.parametrize("mode", [Mode.STANDARD, Mode.STRICT])
@pytest.mark.parametrize("group", groups())
def test_nothing_hostile_is_left_of_any_output(judged: dict[str, Judged], group: str, mode: Mode) -> None:
    assert {name: found for name, found in judged[group].modes[mode].items() if found} == {}


@pytest.mark.parametrize("group", groups())
def test_the_checker_sees_what_is_hostile_where_nothing_is_cleaned(judged: dict[str, Judged], group: str) -> None:
    seen = [name for name, found in judged[group].modes[Mode.TRUSTED].items() if found]
    assert len(seen) >= 0.55 * len(judged[group].cases)
