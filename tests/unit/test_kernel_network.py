"""A notebook's network as the kernel process knows it: `%net`, directives, notes under cells, which cell runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_harness import ScriptedSupervisor, cell, outputs, replied, running, told, types, within

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import ApiError
from agentvm_kernel.kernel.directive import DirectiveError, allowed_hosts, is_directed
from agentvm_kernel.kernel.network import note
from agentvm_kernel.supervisor.messages import Blocked
from agentvm_kernel.supervisor.network_messages import NetworkRequest, RuleInfo


def connection(**changes: object) -> Connection:
    values: dict[str, object] = {
        "id": 1, "time": 1.0, "session": "s", "vm": "vm-1", "cell": "3 get()", "name": "data.example",
        "address": "1.2.3.4", "port": 443, "verdict": "allowed", "rule": "r", "reason": "Allowed by a rule.",
        "bytes_sent": 2048, "bytes_received": 3 << 20, "duration": 0.25, "tls_version": "1.3", "protocol": "tls",
    }  # fmt: skip
    return Connection.model_validate(values | changes)


def blocked(run: int, name: str = "data.example") -> Blocked:
    return Blocked(run=run, name=name, port=443, reason=f"{name} is not allowed.", hint=f"%net allow {name}")


@pytest.mark.parametrize(
    ("code", "hosts"),
    [
        ("# net: allow a.example", ("a.example",)),
        ("\n# data\n#net: allow a.example *.b.example:8443\nimport x\n", ("a.example", "*.b.example:8443")),
        ("# net: allow a.example\n# net: allow b.example\nx", ("a.example", "b.example")),
        ("%%bash\n# net: allow a.example\ncurl a.example", ("a.example",)),
    ],
)
def test_comments_at_the_top_are_directives(code: str, hosts: tuple[str, ...]) -> None:
    assert is_directed(code)
    assert allowed_hosts(code) == hosts


@pytest.mark.parametrize(
    "code",
    [
        "x = 1",
        "x = '''\n# net: allow a.example\n'''",
        "x = 1  # net: allow a.example",
        "# network: allow a",
        "%%x\n1\n#net: a",
    ],
)
def test_nothing_else_is_one(code: str) -> None:
    assert not is_directed(code)
    assert allowed_hosts(code) == ()


@pytest.mark.parametrize("code", ["# net: alow a.example", "# net: allow", "# net: deny a.example", "# net:"])
def test_a_directive_that_is_none_is_an_error(code: str) -> None:
    assert is_directed(code)
    with pytest.raises(DirectiveError, match="is no directive"):
        allowed_hosts(code)


def test_a_note_is_short_and_cannot_steer_a_terminal() -> None:
    text = note([blocked(1, f"\x1b[31mhost{number}") for number in range(9)])
    assert "\x1b" not in text
    assert "and 4 more" in text
    assert len(text.splitlines()) == 7


async def test_allow_and_deny_take_each_other_back_and_hold_in_the_next_vm(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        assert "Allowed: a.example, b.example:8443." in await told(client, guest, "%net allow a.example b.example:8443")
        assert "Denied: a.example." in await told(client, guest, "%net deny a.example")
        assert "Mode record-only" in await told(client, guest, "%net mode record-only")
        wanted = NetworkRequest(mode="record-only", allow=("b.example:8443",), deny=("a.example",))
        assert kernel.supervisor.network_wanted == wanted
        await told(client, guest, "%vm restart")
        asked = kernel.supervisor.requests[-1]
        assert (asked.mode, asked.allow, asked.deny) == ("record-only", ("b.example:8443",), ("a.example",))
        await told(client, await kernel.guest(), "%net allow a.example")
        assert kernel.supervisor.network_wanted.deny == ()


async def test_hosts_that_the_kernel_was_started_with_stay_allowed_whatever_else_is_changed(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        kernel.machine._request = kernel.machine._request.model_copy(update={"allow": ("given.example", "a.example")})
        await told(client, guest, "%vm restart")
        guest = await kernel.guest()
        for line, allowed in (
            ("%net deny evil.example", ("given.example", "a.example")),
            ("%net allow b.example", ("given.example", "a.example", "b.example")),
            ("%net deny a.example", ("given.example", "b.example")),
            ("%net mode filtered", ("given.example", "b.example")),
        ):
            await told(client, guest, line)
            assert kernel.supervisor.network_wanted.allow == allowed


async def test_off_is_isolated_and_allow_says_that_nothing_passes(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        assert "Mode isolated: nothing" in await told(client, guest, "%net off")
        assert "%net mode filtered changes that" in await told(client, guest, "%net allow a.example")


async def test_what_is_refused_does_not_hold_in_the_next_vm(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        kernel.supervisor.fails = ApiError("name", "'a_b' has something.", "Use the host's name, like pypi.org.")
        assert "has something" in await told(client, guest, "%net allow a_b")
        assert kernel.machine.network.wanted == NetworkRequest()


async def test_status_says_who_allows_what(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        kernel.supervisor.rules = [
            RuleInfo(pattern="pypi.org", verdict="allow", source="default"),
            RuleInfo(pattern="**.evil.example", verdict="deny", source="configuration"),
        ]
        said = await told(client, guest, "%net allow mine.example")
        assert "What the configuration denies stays denied: **.evil.example." in said
        said = await told(client, guest, "%net")
        lines = {name: text.strip() for name, _, text in (line.partition("  ") for line in said.splitlines())}
        assert lines["allowed by %net"] == "mine.example"
        assert lines["denied by the configuration"] == "**.evil.example"
        assert lines["allowed besides"].startswith("1 hosts")
        assert lines["connections"] == "0 open (at most 9), 2 allowed in all, 3 refused, 0 failed"
        assert "denied by %net" not in lines


async def test_the_log_shows_the_newest(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        assert "Nothing was asked for yet" in await told(client, guest, "%net log")
        kernel.supervisor.connected = [
            connection(),
            connection(
                id=2, name="\x1b[31mred", verdict="refused", reason="It is not allowed.", count=7, duration=None
            ),
        ]
        first, last = (await told(client, guest, "%net log")).splitlines()[1:]
        assert "data.example  443" in " ".join(first.split("   "))
        assert {"allowed", "3.0 MiB", "0.25 s", "tls 1.3"} <= {part.strip() for part in first.split("  ")}
        assert "refused (7 times)" in last
        assert "\x1b" not in last
        assert len((await told(client, guest, "%net log 1")).splitlines()) == 2


@pytest.mark.parametrize(
    "said", ["%net log 0", "%net log x", "%net allow", "%net mode open", "%net on", "%net log 1 2"]
)
async def test_a_wrong_call_says_what_is_valid(tmp_path: Path, said: str) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        assert "valid is %net status, %net allow HOST" in await told(client, await kernel.guest(), said)


async def test_the_supervisor_learns_which_cell_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        for code in ("first()", "second()"):
            await cell(client, guest, code)
            await within(lambda code=code: code in [asked.cell.code for asked in kernel.supervisor.cells])
        assert [asked.cell.run for asked in kernel.supervisor.cells] == [1, 2]


async def test_a_queued_cell_counts_from_when_the_one_before_it_is_done(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        ids = [client.execute(code) for code in ("first()", "second()")]
        asked = [await guest.asked() for _ in ids]
        await within(lambda: kernel.supervisor.cells)
        assert {one.cell.code for one in kernel.supervisor.cells} == {"first()"}
        for one, msg_id in zip(asked, ids, strict=True):
            guest.begin(one)
            guest.finish(one)
            await replied(client, msg_id)
        await within(lambda: kernel.supervisor.cells[-1].cell.code == "second()")


async def test_a_directive_holds_for_its_cell_only(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id, behind = client.execute("# net: allow a.example\nget()"), client.execute("after()")
        asked = await guest.asked()
        assert kernel.supervisor.cells[-1].allow == ("a.example",)
        await kernel.held(1)
        guest.begin(asked)
        guest.finish(asked)
        await replied(client, msg_id)
        await guest.execute()
        assert kernel.supervisor.cells[-1].allow == ()
        assert (await replied(client, behind))["content"]["status"] == "ok"


async def test_a_cell_whose_directive_is_refused_does_not_run(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        kernel.supervisor.fails = ApiError("network_locked", "The configuration does not let cells change it.")
        ids = [client.execute(code) for code in ("# net: allow a.example\nget()", "behind()")]
        said = await outputs(client, ids[0])
        assert types(said) == ["busy", "execute_input", "error", "idle"]
        assert (await replied(client, ids[1]))["content"]["status"] == "aborted"
        assert guest.idle_hands()


async def test_with_time_travel_a_directed_cell_is_saved_too(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await told(client, guest, "%timetravel on")
        taken = len(kernel.supervisor.taken)
        await cell(client, guest, "# net: allow a.example\nget()")
        await within(lambda: len(kernel.supervisor.taken) > taken)


async def test_a_cell_hears_of_refusals_before_it_is_idle(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("get()")
        asked = await guest.asked()
        guest.begin(asked)
        kernel.supervisor.leases[0].events.put_nowait(blocked(1))
        await within(lambda: any(request.blocked for request in kernel.router._table.current()))
        guest.finish(asked)
        said = await outputs(client, msg_id)
        assert types(said) == ["busy", "execute_input", "stream", "idle"]
        text = said[2]["content"]["text"]
        assert text.splitlines()[:2] == ["Refused by the network policy: data.example:443.", "%net allow data.example"]


async def test_a_refusal_that_comes_late_is_told_under_its_own_cell(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("thread()")
        await guest.execute()
        await outputs(client, msg_id)
        await cell(client, guest, "other()")
        kernel.supervisor.leases[0].events.put_nowait(blocked(1))
        while (message := await client.get_iopub_msg(timeout=20))["msg_type"] != "stream":
            pass
        assert message["parent_header"]["msg_id"] == msg_id


async def test_the_plan_of_a_rollback_lists_what_was_sent(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor()
    supervisor.connected = [connection()]
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await told(client, guest, "%snapshot base")
        said = (await told(client, guest, "%rollback base --dry-run")).splitlines()
    begin = said.index("Not undone: what went over the network, in 1 connection:")
    assert said[begin + 1] == "  data.example:443  2 KiB sent, 3.0 MiB received  (3 get())"
