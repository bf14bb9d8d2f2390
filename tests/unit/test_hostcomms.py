"""Comms that the host owns: reached at once, told of in the guest's place, and closed to the guest on every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from firewall_bed import Said
from jupyter_client.asynchronous import AsyncKernelClient
from kernel_harness import (
    TIMEOUT,
    Asked,
    InProcessKernel,
    ScriptedGuest,
    ask,
    outputs,
    parts_of,
    replied,
    running,
    told,
    types,
    within,
)
from monitor_bed import measured

from agentvm_kernel.errors import VMEndedError
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.traits import TRAITS
from agentvm_kernel.firewall.widgets import clean_widget_view
from agentvm_kernel.widgets.monitor import ID

Message = dict[str, Any]

FORGED = {"_model_module": "@jupyter-widgets/controls", "_model_name": "TextModel", "_model_module_version": "2.0.0"}


async def asked_states(client: AsyncKernelClient, guest: ScriptedGuest, answer: Message) -> Message:
    """What a front end gets that asks for all widgets as it connects."""
    await ask(client, "comm_open", {"comm_id": "c", "target_name": "jupyter.widget.control", "data": {}})
    opened = await guest.asked()
    content = {"comm_id": "c", "data": {"method": "update_states", "states": answer, "buffer_paths": []}}
    guest.say("iopub", parts_of("comm_msg", content, opened.header))
    return (await said(client, "comm_msg"))["content"]["data"]["states"]


async def shown(kernel: InProcessKernel, client: AsyncKernelClient, guest: ScriptedGuest) -> None:
    """Show the monitor."""
    kernel.supervisor.measured = [measured(1.0)]
    assert "VM vm-1" in await told(client, guest, "%monitor")


async def said(client: AsyncKernelClient, msg_type: str) -> Message:
    """The next message of a type on iopub, whatever it belongs to."""
    while True:
        message: Message = await client.get_iopub_msg(timeout=TIMEOUT)
        if message["msg_type"] == msg_type:
            return message


async def to_monitor(client: AsyncKernelClient, **content: object) -> str:
    return await ask(client, "comm_msg", {"comm_id": ID, "data": {"method": "custom", "content": content}})


async def test_a_page_is_answered_while_a_cell_runs_and_the_guest_hears_nothing_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await shown(kernel, client, guest)
        cell = client.execute("sleep()")
        asked = await guest.asked()
        guest.begin(asked)
        watching = await to_monitor(client, do="watch", page="p", seen=0)
        news = await said(client, "comm_msg")
        assert news["content"]["comm_id"] == ID
        assert news["content"]["data"]["content"]["is"] == "all"
        assert guest.idle_hands()
        guest.finish(asked)
        after = types(await outputs(client, cell))
        assert after[-1] == "idle"
    assert watching


async def test_the_kernel_is_not_called_idle_for_a_page_while_a_cell_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await shown(kernel, client, guest)
        cell = client.execute("sleep()")
        asked = await guest.asked()
        guest.begin(asked)
        await replied(client, await ask(client, "connect_request", {}))  # all that came before has arrived
        page = await to_monitor(client, do="leave", page="p")
        await replied(client, await ask(client, "connect_request", {}))  # it has been taken
        guest.output(asked, "still at it")
        states = []
        while (message := await client.get_iopub_msg(timeout=TIMEOUT))["msg_type"] != "stream":
            if message["parent_header"].get("msg_id") == page:
                states.append(message)
        assert states == []
        guest.finish(asked)
        ended = types(await outputs(client, page))
        assert ended == ["idle"]
    assert cell


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("comm_msg", {"comm_id": ID, "data": {"method": "custom", "content": {"is": "all", "points": [[1, 0]]}}}),
        ("comm_msg", {"comm_id": ID, "data": {"method": "update", "state": {"_esm": "alert(1)"}}}),
        ("comm_open", {"comm_id": ID, "target_name": "jupyter.widget", "data": {"state": FORGED}}),
        ("comm_open", {"comm_id": "agentvm-other", "target_name": "t", "data": {}}),
        ("comm_close", {"comm_id": ID, "data": {}}),
    ],
)
async def test_a_guest_cannot_speak_under_the_hosts_name(tmp_path: Path, kind: str, content: Message) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await shown(kernel, client, guest)
        cell = client.execute("lie()")
        asked = await guest.asked()
        guest.begin(asked)
        guest.say("iopub", parts_of(kind, content, asked.header))
        guest.finish(asked)
        messages = await outputs(client, cell)
        assert kind not in types(messages)
        notes = "".join(str(m["content"]["text"]) for m in messages if m["msg_type"] == "stream")  # type: ignore[index]
        assert notes == "blocked: a message in the name of one of the host's own widgets\n"
        assert kernel.machine.firewall.blocked[Reason.MESSAGE] == 1


async def test_comms_are_told_of_with_the_guests_own(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await shown(kernel, client, guest)
        for target, expected in (("jupyter.widget", {"w", ID}), ("other", {"w"})):
            asking = await ask(client, "comm_info_request", {"target_name": target})
            asked = await guest.asked()
            claimed = {"w": {"target_name": "jupyter.widget"}, "agentvm-claimed": {"target_name": "jupyter.widget"}}
            guest.reply(asked, {"status": "ok", "comms": claimed})
            assert set((await replied(client, asking))["content"]["comms"]) == expected  # type: ignore[index]


async def test_without_a_vm_the_host_answers_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        await shown(kernel, client, await kernel.guest())
        await kernel.machine.close(VMEndedError("gone"))
        asking = await ask(client, "comm_info_request", {})
        assert set((await replied(client, asking))["content"]["comms"]) == {ID}  # type: ignore[index]
        await to_monitor(client, do="watch", page="p", seen=0)
        news = (await said(client, "comm_msg"))["content"]["data"]["content"]
        assert (news["now"]["state"], news["now"]["text"]) == ("ended", "gone")


async def test_a_front_end_that_comes_later_gets_the_state(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await shown(kernel, client, guest)
        await ask(client, "comm_msg", {"comm_id": ID, "data": {"method": "request_state"}})
        data = (await said(client, "comm_msg"))["content"]["data"]
        assert data["method"] == "update"
        assert (data["state"]["_model_module"], data["state"]["_model_name"]) == ("anywidget", "AnyModel")
        named = {name.removeprefix("_"): value for name, value in FORGED.items()}
        states = await asked_states(
            client, guest, dict.fromkeys(("w", ID, "agentvm-other"), named | {"state": {"value": "lie"}})
        )
        assert set(states) == {"w", ID}
        assert (states[ID]["model_module"], states[ID]["model_name"]) == ("anywidget", "AnyModel")
        assert (states["w"]["state"]["value"], states[ID]["state"].get("value")) == ("lie", None)


async def test_a_clients_state_changes_nothing_and_what_is_not_open_is_closed(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await shown(kernel, client, guest)
        await ask(client, "comm_msg", {"comm_id": ID, "data": {"method": "update", "state": {"_esm": ""}}})
        await ask(client, "comm_close", {"comm_id": ID, "data": {}})
        await ask(client, "comm_msg", {"comm_id": "agentvm-none", "data": {}})
        assert (await said(client, "comm_close"))["content"]["comm_id"] == "agentvm-none"
        await ask(client, "comm_msg", {"comm_id": ID, "data": {"method": "request_state"}})
        assert (await said(client, "comm_msg"))["content"]["data"]["state"]["_esm"]
        assert guest.idle_hands()


async def test_widgets_outlive_rollbacks_and_restarts(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await told(client, guest, "%snapshot base")
        await shown(kernel, client, guest)
        for magic in ("%rollback base", "%vm restart"):
            said_of = client.execute(magic)
            await (await kernel.guest()).execute()
            messages = await outputs(client, said_of)
            assert "comm_close" not in types(messages)
        assert kernel.router._host_comms.find(ID)


async def test_a_message_that_only_mentions_the_name_goes_to_the_guest(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await ask(client, "comm_msg", {"comm_id": "w", "data": {"text": ID}})
        asked: Asked = await guest.asked()
        assert asked.content["comm_id"] == "w"
        await within(guest.idle_hands)


def test_a_guest_can_neither_show_nor_hold_what_is_the_hosts() -> None:
    bed = Said()
    assert clean_widget_view({"model_id": ID}, bed.context) is None
    assert bed.reasons == [Reason.MESSAGE]
    assert clean_widget_view({"model_id": "mine"}, bed.context)
    assert TRAITS["children"](["IPY_MODEL_mine"])
    assert not TRAITS["children"]([f"IPY_MODEL_{ID}"])
