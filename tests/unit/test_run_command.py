"""`agentvm run` as a process, over the fake supervisor: its VMs are guest agents on this host."""

from __future__ import annotations

import fcntl
import os
import pty
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

pytest.register_assert_rewrite("run_behaviour")

from kernel_fixtures import kernel_environment  # noqa: E402, F401
from run_behaviour import *  # noqa: E402, F403
from run_behaviour import SECONDS, Runs  # noqa: E402

from agentvm_kernel.errors import RunError  # noqa: E402
from agentvm_kernel.run.plan import check_out, check_results, make_plan  # noqa: E402

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def runs(tmp_path: Path, kernel_environment: Mapping[str, str]) -> Runs:  # noqa: F811
    return Runs(tmp_path, kernel_environment)


def test_results_can_be_named_and_are_bounded(runs: Runs) -> None:
    script = runs.write("x.sh", "echo 1 > a; mkdir b; head -c 3000000 /dev/zero > b/c")
    assert runs.run(script, "--out", "out", "--result", "a")[0] == 0
    assert [path.name for path in (runs.folder / "out").iterdir()] == ["a"]
    assert "more than 2 MiB" in runs.fails(script, "--out", "large", "--out-limit", "2")
    assert "more than 1 files" in runs.fails(script, "--out", "large", "--out-files", "1")
    assert "there is no z" in runs.fails(script, "--out", "large", "--result", "z")
    assert not (runs.folder / "large").exists()


def test_the_vms_end_is_told(runs: Runs) -> None:
    script = runs.write("x.py", "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(60)")
    assert "The virtual machine powered off." in runs.fails(script)


def test_a_program_that_nobody_listens_to_any_more_ends(runs: Runs) -> None:
    with runs.start(runs.write("x.py", "while True: print('x' * 1000)")) as process:
        assert process.stdout
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(SECONDS) == 141


SEQUENCES = r"printf 'a\033[31mred\033[0m\033[2J\033]0;title\007b\n'"


def test_what_is_piped_is_unchanged_and_what_a_terminal_gets_is_harmless(runs: Runs) -> None:
    script = runs.write("x.sh", SEQUENCES)
    assert runs.run(script)[1] == b"a\x1b[31mred\x1b[0m\x1b[2J\x1b]0;title\x07b\n"
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    with runs.start(script, stdout=theirs) as process:
        assert process.wait(SECONDS) == 0
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_NONBLOCK)
    assert os.read(ours, 1000) == b"a\x1b[31mred\x1b[0mb\n\x1b[0m"
    os.close(ours)
    os.close(theirs)


def test_what_cannot_be_run_is_said_in_a_line(runs: Runs) -> None:
    assert runs.fails("nothing.py") == "agentvm run: There is no file nothing.py.\n"
    script = runs.write("x.py", "")
    runs.write("full/file", "")
    assert "full, where the results are to go, is there already." in runs.fails(script, "--out", "full")
    assert "no --out" in runs.fails(script, "--result", "x")
    assert "no path in the working folder" in runs.fails(script, "--out", "o", "--result", "../x")
    assert "no-such-input cannot be copied into the VM" in runs.fails(script, "--in", "no-such-input")
    runs.environment["AGENTVM_STATE_DIR"] = str(runs.folder / "s\x1b[2J")
    assert "\x1b" not in runs.fails(script)


@pytest.mark.parametrize(
    ("name", "text", "mode", "arguments", "reason"),
    [
        ("data.csv", "a,b", 0o755, [], "nothing that can be run"),
        ("tool", "#!/bin/sh", 0o644, [], "not executable"),
        ("x.ipynb", "{}", 0o644, ["a"], "takes no arguments"),
    ],
)
def test_a_file_that_is_no_program_is_refused(
    tmp_path: Path, name: str, text: str, mode: int, arguments: Sequence[str], reason: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(RunError, match=reason):
        make_plan(path, arguments)


def test_other_things_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"neither main\.py nor __main__\.py") as caught:
        make_plan(tmp_path, [])
    assert "-- COMMAND" in caught.value.hint
    with pytest.raises(RunError, match="neither a file nor a folder"):
        make_plan(Path(os.devnull), [])
    for path in (tmp_path, Path(__file__)):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(RunError, match="cannot be read"):
            make_plan(path, [])


def test_a_place_for_results_is_new_or_empty(tmp_path: Path) -> None:
    check_out(None)
    check_out(tmp_path)
    check_out(tmp_path / "new")
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "link", Path(__file__)):
        with pytest.raises(RunError, match="there already"):
            check_out(path)
    check_results(["a", "a/b"])
    for name in ("/a", "a/../b", ".", ""):
        with pytest.raises(RunError, match="no path"):
            check_results([name])
