"""A notebook as a test sees it: a kernel process started by Jupyter, and what it says about a cell."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jupyter_client import BlockingKernelClient, KernelManager

TIMEOUT = float(os.environ.get("AGENTVM_TEST_TIMEOUT", "60"))

Message = dict[str, Any]


@dataclass
class Cell:
    """What came of a cell.

    Attributes:
        reply: The content of its reply.
        metadata: The metadata of its reply.
        messages: What iopub said about it, statuses left out.
    """

    reply: Message
    metadata: Message
    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> str:
        return str(self.reply["status"])

    def text(self, name: str = "stdout") -> str:
        streams = [m["content"] for m in self.messages if m["msg_type"] == "stream"]
        return "".join(content["text"] for content in streams if content["name"] == name)

    def of(self, *types: str) -> list[Message]:
        return [m["content"] for m in self.messages if m["msg_type"] in types]

    @property
    def errors(self) -> list[Message]:
        return self.of("error")

    @property
    def result(self) -> str:
        return str(self.of("execute_result")[-1]["data"]["text/plain"])


class Notebook:
    """A running kernel and a client of it."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)

    def run(self, code: str, **options: Any) -> Cell:
        """Run a cell to its end."""
        return self.finish(self.client.execute(code, **options))

    def finish(self, msg_id: str, *, each: Callable[[Message], object] = lambda _: None) -> Cell:
        """Wait for the end of a cell that was sent before."""
        cell = Cell({}, {})
        for message in self.said(msg_id):
            if message["msg_type"] != "status":
                cell.messages.append(message)
            each(message)
        reply = self.reply(msg_id)
        cell.reply, cell.metadata = reply["content"], reply["metadata"]
        return cell

    def reply(self, msg_id: str) -> Message:
        """The reply to a shell request, whatever else comes before."""
        while True:
            reply = self.client.get_shell_msg(timeout=TIMEOUT)
            if reply["parent_header"].get("msg_id") == msg_id:
                return reply

    def said(self, msg_id: str) -> Iterator[Message]:
        """What iopub says about a request, to its `idle`."""
        while True:
            message = self.client.get_iopub_msg(timeout=TIMEOUT)
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            yield message
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return

    def wait_for(self, msg_type: str, wanted: Callable[[Message], bool] = lambda _: True) -> Message:
        """The next iopub message of a type, whatever its parent."""
        while True:
            message = self.client.get_iopub_msg(timeout=TIMEOUT)
            if message["msg_type"] == msg_type and wanted(message["content"]):
                return message

    def send(self, msg_type: str, content: Message, *, channel: str = "shell", **header: object) -> str:
        """Send any request; return its msg_id."""
        buffers = header.pop("buffers", [])
        message = self.client.session.msg(msg_type, content)
        message["header"].update(header)
        message["buffers"] = buffers
        getattr(self.client, f"{channel}_channel").send(message)
        return str(message["header"]["msg_id"])

    def control(self, msg_type: str, content: Message) -> Message:
        """Ask something on the control channel; return the reply's content."""
        msg_id = self.send(msg_type, content, channel="control")
        while True:
            reply = self.client.get_control_msg(timeout=TIMEOUT)
            if reply["parent_header"].get("msg_id") == msg_id:
                return dict(reply["content"])

    @contextmanager
    def second_client(self) -> Iterator[Notebook]:
        """Another client of the same kernel, with a session of its own, as another program has."""
        client = BlockingKernelClient()
        client.load_connection_info(self.manager.get_connection_info())
        client.start_channels()
        try:
            client.wait_for_ready(timeout=TIMEOUT)
            yield Notebook(self.manager, client)
        finally:
            client.stop_channels()
            client.context.term()


@contextmanager
def notebook(environment: Mapping[str, str], *, kernel: str = "agentvm", **options: Any) -> Iterator[Notebook]:
    """Start a kernel as Jupyter does, and end it as Jupyter does."""
    manager = KernelManager(kernel_name=kernel, **options)
    manager.start_kernel(env={**os.environ, **environment})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT)
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
        manager.context.term()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = TIMEOUT) -> None:
    """Return once a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)
