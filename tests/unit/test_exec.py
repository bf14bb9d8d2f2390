"""Processes in a VM: the real guest agent as a process of this host, and guests that lie."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio
from local_guest import LocalGuest, local_guest
from vms import anonymous_kib

from agentvm_kernel.errors import LinkClosedError, LinkError, ProtocolError, RunError
from agentvm_kernel.link.connection import Link, connect
from agentvm_kernel.run.exec import Execution, Exit, Output, execute

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest() -> AsyncIterator[LocalGuest]:
    async with local_guest() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def link(guest: LocalGuest) -> AsyncIterator[Link]:
    dialled = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch)
    yield dialled
    await dialled.close()


async def run(link: Link, *argv: str, stdin: bytes = b"", **options: object) -> tuple[Exit | None, bytes, bytes]:
    said = {"stdout": bytearray(), "stderr": bytearray()}
    async with execute(link, argv, **options) as execution, asyncio.TaskGroup() as tasks:  # type: ignore[arg-type]
        tasks.create_task(write_all(execution, stdin))
        async for name, data in execution:
            said[name] += data
    return execution.exit, bytes(said["stdout"]), bytes(said["stderr"])


async def write_all(execution: Execution, data: bytes) -> None:
    await execution.write(data)
    await execution.close_stdin()


async def until(execution: Execution, text: bytes) -> None:
    """Take output until it has ended with a text."""
    said = b""
    while not said.endswith(text):
        said += (await anext(execution)).data


async def gone(pid: int) -> None:
    """Wait until a process is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, event.set)
    await event.wait()
    loop.remove_reader(descriptor)
    os.close(descriptor)


async def test_streams_are_kept_apart_and_the_exit_code_comes_back(link: Link) -> None:
    assert await run(link, "sh", "-c", "echo out; echo err >&2; exit 3") == (Exit(code=3), b"out\n", b"err\n")
    assert await run(link, "sh", "-c", "kill -SEGV $$") == (Exit(signal=11), b"", b"")
    assert (Exit(code=3).status, Exit(signal=11).status) == (3, 139)


async def test_arguments_environment_and_folder_are_as_asked(link: Link, guest: LocalGuest) -> None:
    (guest.folder / "sub").mkdir(exist_ok=True)
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['A'], 'PATH' in os.environ)"
    words = ["two words", "$HOME", "--", "-x", "\u00e9\n"]
    _, text, _ = await run(link, sys.executable, "-c", code, *words, cwd="sub", env={"A": "b c"})
    assert text.decode() == f"{words} {guest.folder / 'sub'} b c True\n"
    _, text, _ = await run(link, "pwd")
    assert text.decode() == f"{guest.folder}\n"


async def test_megabytes_go_in_and_out_unchanged(link: Link) -> None:
    data = os.urandom(3 << 20)
    ended, text, _ = await run(link, "cat", stdin=data)
    assert ended == Exit(code=0)
    assert hashlib.sha256(text).digest() == hashlib.sha256(data).digest()


async def test_standard_input_that_nobody_reads_is_lost_without_harm(link: Link) -> None:
    assert (await run(link, "sh", "-c", "exec <&-; echo x; sleep 0.2", stdin=bytes(1 << 20)))[:2] == (
        Exit(code=0),
        b"x\n",
    )


async def test_a_signal_reaches_the_group_and_does_not_wait_behind_standard_input(link: Link) -> None:
    async with execute(link, ["sh", "-c", "sleep 600 & echo $!; wait"]) as execution:
        writing = asyncio.create_task(execution.write(bytes(1 << 20)))
        child = int((await anext(execution)).data)
        await execution.signal(signal.SIGTERM)
        assert await execution.wait() == Exit(signal=15)
        await gone(child)
        await writing
        await execution.signal(signal.SIGTERM)


async def test_an_interrupt_can_be_handled_by_the_program(link: Link) -> None:
    code = "import time\ntry: print('go', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: raise SystemExit(7)"
    # Without site: what measures coverage in every Python would swallow an interrupt that comes into its own code.
    async with execute(link, [sys.executable, "-I", "-S", "-c", code]) as execution:
        await until(execution, b"go\n")
        await execution.signal(signal.SIGINT)
        assert await execution.wait() == Exit(code=7)


async def test_a_process_whose_output_nobody_takes_waits_and_others_go_on(link: Link) -> None:
    async with execute(link, [sys.executable, "-c", "for i in range(400_000): print(i)"]) as flood:
        assert (await run(link, "echo", "on"))[1] == b"on\n"
        assert link.buffered <= 1 << 20
        text = b"".join([output.data async for output in flood])
        assert text.split() == [b"%d" % i for i in range(400_000)]


async def test_what_a_child_left_behind_holds_open_keeps_nobody_waiting(link: Link) -> None:
    async with execute(link, ["sh", "-c", "sleep 600 & echo $!"]) as execution:
        text = b"".join([output.data async for output in execution])
        assert execution.exit == Exit(code=0)
    os.kill(int(text), signal.SIGKILL)


async def test_what_a_child_left_behind_goes_on_writing_keeps_nobody_waiting(link: Link) -> None:
    async with execute(link, ["sh", "-c", "yes & echo $! >&2"]) as execution:
        said = [output async for output in execution]
        assert execution.exit == Exit(code=0)
    os.kill(int(b"".join(data for name, data in said if name == "stderr")), signal.SIGKILL)


async def test_output_that_nobody_takes_is_not_kept_in_the_guest(link: Link, guest: LocalGuest) -> None:
    before = anonymous_kib(guest.pid)
    async with execute(link, ["cat", "/dev/zero"]):
        for _ in range(5):
            assert (await run(link, "true"))[0] == Exit(code=0)
        assert anonymous_kib(guest.pid) - before < 8 << 10


async def test_closing_the_stream_or_the_link_kills_the_process(guest: LocalGuest) -> None:
    link = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch)
    async with execute(link, ["sh", "-c", "trap '' TERM; sleep 600 & echo $!; wait"]) as execution:
        pids = [execution.pid, int((await anext(execution)).data)]
    for pid in pids:
        await gone(pid)
    async with execute(link, ["sleep", "600"]) as execution:
        await link.close()
        await gone(execution.pid)
        with pytest.raises(LinkClosedError):
            await execution.wait()


async def test_a_program_that_cannot_be_run_has_a_shells_exit_code(link: Link, guest: LocalGuest) -> None:
    ended, _, text = await run(link, "no-such-program")
    assert ended == Exit(code=127)
    assert b"no-such-program" in text
    (guest.folder / "data").write_text("x")
    assert (await run(link, "./data"))[0] == Exit(code=126)


@pytest.mark.parametrize(
    ("argv", "options", "reason"),
    [
        ([], {}, "needs argv"),
        (["a\0b"], {}, "without NUL"),
        (["true"], {"cwd": "nowhere"}, "nowhere"),
        (["true"], {"env": {"A": 1}}, "other than texts"),
    ],
)
async def test_what_cannot_be_started_is_named(
    link: Link, argv: list[str], options: dict[str, object], reason: str
) -> None:
    with pytest.raises(RunError, match=reason):
        await run(link, *argv, **options)
    assert (await run(link, "true"))[0] == Exit(code=0)


WAITS = r"""
import fcntl, os, shutil, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, 4096)
os.write(1, b"ready\n")
signal.sigwait([signal.SIGUSR1])
shutil.copyfileobj(sys.stdin, sys.stdout)
"""


async def test_many_small_writes_that_wait_arrive_in_order_and_a_signal_overtakes_them(link: Link) -> None:
    async with execute(link, [sys.executable, "-c", WAITS]) as execution:
        assert (await anext(execution)).data == b"ready\n"
        for number in range(5000):
            await execution.write(b"%d," % number)
        await execution.signal(signal.SIGUSR1)
        await execution.close_stdin()
        said = b"".join([output.data async for output in execution])
    assert said == b"".join(b"%d," % number for number in range(5000))


@pytest.mark.parametrize("message", [[b"signal", b"NO"], [b"other"], [b"stdin", bytes(300_000)]])
async def test_the_guest_ends_what_it_is_told_nonsense_about(link: Link, message: list[bytes]) -> None:
    async with execute(link, ["sleep", "600"]) as execution:
        await execution._stream.send(message)
        with pytest.raises(RunError, match="none that is known"):
            await execution.wait()
        await gone(execution.pid)


async def test_sixteen_run_at_once_and_no_more(link: Link) -> None:
    async def sleeper(started: asyncio.Semaphore, end: asyncio.Event) -> None:
        async with execute(link, ["sleep", "600"]):
            started.release()
            await end.wait()

    started, end = asyncio.Semaphore(0), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(16):
            tasks.create_task(sleeper(started, end))
        for _ in range(16):
            await started.acquire()
        with pytest.raises(RunError, match="16 processes"):
            await run(link, "true")
        end.set()

    async def has_room() -> bool:
        try:
            await run(link, "true")
        except RunError:  # the guest has not yet seen all of them end
            return False
        return True

    async with asyncio.timeout(30):
        while not await has_room():
            pass


async def test_a_process_is_confined_before_it_begins(link: Link, guest: LocalGuest) -> None:
    async def confined() -> int:
        calls = (await guest.control.request("facts", timeout=5))["recorded"]
        assert isinstance(calls, list)
        return calls.count("confine")

    before = await confined()
    await run(link, "true")
    assert await confined() == before + 1


# Guests that lie.


class Liar:
    """A link whose guest says what it likes."""

    def __init__(self, *messages: list[bytes]) -> None:
        self.messages = list(messages)
        self.sent: list[Sequence[bytes]] = []
        self.closed = False

    async def open(self, service: str) -> Liar:
        return self

    async def send(self, parts: Sequence[bytes]) -> None:
        self.sent.append(parts)

    async def receive(self) -> list[bytes]:
        if not self.messages:
            raise LinkClosedError("The guest closed stream exec.")
        return self.messages.pop(0)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    "messages",
    [
        [[b"stdout", b"x"]],
        [[b"started", b"1", b"2"]],
        [[b"started", b"-1"]],
        [[b"started", b"9" * 5000]],
        [[b"started", b"1"], [b"started", b"1"]],
        [[b"started", b"1"], [b"stdout"]],
        [[b"started", b"1"], [b"stdout", b"x", b"y"]],
        [[b"started", b"1"], [b"other", b"x"]],
        [[b"started", b"1"], [b"taken", b"1"]],
        [[b"started", b"1"], [b"taken", b"x"]],
        [[b"started", b"1"], [b"taken", b"0"]],
        [[b"started", b"1"], [b"exit", b"{}"]],
        [[b"started", b"1"], [b"exit", b"["]],
        [[b"started", b"1"], [b"exit", b'{"code": 256}']],
        [[b"started", b"1"], [b"exit", b'{"code": true}']],
        [[b"started", b"1"], [b"exit", b'{"signal": 0}']],
        [[b"started", b"1"], [b"exit", b'{"signal": 65}']],
        [[b"started", b"1"], [b"exit", b'{"code": 0}' + b" " * 1000]],
    ],
)
async def test_what_the_service_does_not_allow_is_a_protocol_error(messages: list[list[bytes]]) -> None:
    liar = Liar(*messages)
    with pytest.raises(ProtocolError, match="guest"):
        async with execute(liar, ["true"]) as execution:
            await execution.wait()
    assert liar.closed


async def test_a_guest_that_goes_away_is_an_error() -> None:
    for messages in ([], [[b"started", b"1"]]):
        with pytest.raises(LinkError, match="closed"):
            async with execute(Liar(*messages), ["true"]) as execution:
                await execution.wait()


async def test_an_error_of_the_guests_is_shown_without_what_a_terminal_could_be_fooled_by() -> None:
    with pytest.raises(RunError) as caught:
        async with execute(Liar([b"error", b"\x1b[2Jno\xff" + b"x" * 5000]), ["true"]):
            pass
    assert caught.value.message.startswith("The VM could not run it: \ufffd[2Jno\ufffdx")
    assert len(caught.value.message) < 1100


async def test_whoever_waits_to_write_hears_of_the_exit() -> None:
    async with execute(Liar([b"started", b"1"], [b"exit", b'{"code": 0}']), ["true"]) as execution:
        writing = asyncio.create_task(execution.write(bytes(1 << 20)))
        await asyncio.sleep(0)
        assert not writing.done()
        await execution.wait()
        await writing


async def test_nothing_is_taken_after_the_exit() -> None:
    liar = Liar([b"started", b"1"], [b"stdout", b"x"], [b"exit", b'{"code": 0}'], [b"stdout", b"y"])
    async with execute(liar, ["true"]) as execution:
        assert [output async for output in execution] == [Output("stdout", b"x")]
        await execution.write(b"late")
    assert len(liar.sent) == 1
