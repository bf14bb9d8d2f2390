"""What `agentvm run` does for its users, whatever it runs in: imported by the tests of the real and the fake VMs.

Whoever imports it has a fixture ``runs``.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

COMMAND = [sys.executable, "-c", "from agentvm_kernel.cli import main; main()", "run"]
SECONDS = 240
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Runs:
    """Starts `agentvm run` in a folder.

    Args:
        folder: Where.
        environment: With a supervisor.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **environment}

    def write(self, name: str, text: str, mode: int = 0o644) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return name

    def write_notebook(self, name: str, *cells: str, tags: Sequence[str] = ()) -> None:
        nodes = [new_code_cell(cell, metadata={"tags": list(tags)}) for cell in cells]
        nbformat.write(new_notebook(cells=nodes), self.folder / name)  # type: ignore[no-untyped-call]

    def read_notebook(self, name: str) -> list[nbformat.NotebookNode]:
        return nbformat.read(self.folder / name, as_version=4).cells  # type: ignore[no-untyped-call,no-any-return]

    def start(self, *words: str, **options: object) -> subprocess.Popen[bytes]:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [*COMMAND, *words]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **(streams | options))  # type: ignore[call-overload,no-any-return]

    def run(self, *words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        with self.start(*words) as process:
            out, err = process.communicate(stdin, timeout=SECONDS)
        return process.returncode, out, err

    def fails(self, *words: str) -> str:
        code, out, err = self.run(*words)
        assert (code, out) == (125, b"")
        return err.decode()


def test_streams_arguments_and_exit_code_are_passed_on(runs: Runs) -> None:
    code = "import sys\nprint(sys.argv[1:])\nprint('bad', file=sys.stderr)\nsys.exit(3)"
    script = runs.write("my script.py", code)
    assert runs.run(script, "--", "-a", "b c") == (3, b"['-a', 'b c']\n", b"bad\n")
    assert runs.run(script, "word")[1] == b"['word']\n"


@pytest.mark.parametrize(
    ("name", "text", "mode"),
    [
        ("plain.sh", "echo $BASH_VERSION $1 | grep -c '[0-9].* x'", 0o644),
        ("own.sh", "#!/bin/sh\necho ${BASH_VERSION:-1}", 0o755),
        ("tool", "#!/usr/bin/env python3\nprint(1)", 0o755),
    ],
)
def test_scripts_run_with_their_interpreter(runs: Runs, name: str, text: str, mode: int) -> None:
    assert runs.run(runs.write(name, text, mode), "x") == (0, b"1\n", b"")


def test_a_signal_is_told_as_shells_do(runs: Runs) -> None:
    assert runs.run(runs.write("x.sh", "kill -SEGV $$"))[0] == 139


def test_standard_input_comes_from_pipes_and_files(runs: Runs) -> None:
    script = runs.write("x.sh", "sha256sum")
    data = os.urandom(300_000)
    expected = subprocess.run(["sha256sum"], input=data, capture_output=True, check=True).stdout
    assert runs.run(script, stdin=data) == (0, expected, b"")
    (runs.folder / "data").write_bytes(data)
    for path, wanted in ((runs.folder / "data", expected), (Path(os.devnull), None)):
        with path.open("rb") as file, runs.start(script, stdin=file) as process:
            out, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert wanted in (out, None)


def test_standard_input_that_is_closed_is_at_its_end(runs: Runs) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, runs.write("x.sh", "cat; echo end")]
    done = subprocess.run(command, cwd=runs.folder, env=runs.environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"end\n")


def test_output_comes_as_it_is_written(runs: Runs) -> None:
    with runs.start(runs.write("x.py", "import sys\nprint(1)\nprint(sys.stdin.readline().upper())")) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"1\n"
        process.stdin.write(b"on\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ON\n"
        assert process.stdout.read() == b"\n", "to hang up before would be a broken pipe"
    assert process.returncode == 0


CATCH = "import time\nwhile True:\n    try: print('go'); time.sleep(60)\n    except KeyboardInterrupt: print('caught')"


def test_ctrl_c_interrupts_the_program_and_a_second_one_kills_it(runs: Runs) -> None:
    with runs.start(runs.write("x.py", CATCH)) as process:
        assert process.stdout
        assert process.stdout.readline() == b"go\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"caught\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 137


def test_ctrl_c_ends_an_ordinary_program(runs: Runs) -> None:
    with runs.start(runs.write("x.sh", "echo go; sleep 60")) as process:
        assert process.stdout
        assert process.stdout.readline() == b"go\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130


@pytest.mark.parametrize("trap", ["", "trap '' TERM; ", "trap 'echo last words; exit 0' TERM; "])
def test_a_program_whose_time_is_up_is_ended(runs: Runs, trap: str) -> None:
    code, out, err = runs.run(runs.write("x.sh", f"{trap}echo begun; sleep 60 & wait; sleep 60"), "--timeout", "1")
    assert code == 124
    assert out == b"begun\n" + b"last words\n" * ("last" in trap)
    assert b"after 1 s, its time limit (--timeout)" in err


WORK = """
from pathlib import Path
Path("new").mkdir()
Path("new/result.bin").write_bytes(Path("data.bin").read_bytes()[::-1])
Path("new/result.bin").chmod(0o755)
with open("sub/list", "a") as file: file.write("more")
Path("out").symlink_to("/etc")
raise SystemExit(5)
"""


def test_inputs_are_copied_in_and_what_is_new_or_changed_comes_out(runs: Runs) -> None:
    script = runs.write("x.py", WORK)
    runs.write("sub/list", "first ")
    runs.write("sub/same", "same")
    data = os.urandom(100_000)
    (runs.folder / "data.bin").write_bytes(data)
    code, out, err = runs.run(script, "--in", "data.bin", "--in", "sub", "--out", "made/results")
    assert (code, out) == (5, b"")
    assert err == b"agentvm run: not copied out: 'out': a link that leads out\n"
    results = runs.folder / "made" / "results"
    assert sorted(str(path.relative_to(results)) for path in results.rglob("*")) == [
        "new",
        "new/result.bin",
        "sub",
        "sub/list",
    ]
    assert (results / "new" / "result.bin").read_bytes() == data[::-1]
    assert stat.S_IMODE((results / "new" / "result.bin").stat().st_mode) == 0o755
    assert (results / "sub" / "list").read_text() == "first more"


def test_a_folder_is_run_by_its_main_file_or_by_a_command(runs: Runs) -> None:
    runs.write("project/helper.py", "VALUE = 42")
    runs.write("project/main.py", "import helper, sys; print(helper.VALUE, sys.argv)")
    assert runs.run("project") == (0, b"42 ['main.py']\n", b"")
    assert runs.run("project", "--", "python", "-c", "import helper; print(helper.VALUE + 1)")[1] == b"43\n"
    code, _, _ = runs.run("project", "--out", "results")
    assert code == 0
    assert list((runs.folder / "results").iterdir()) == []
    (runs.folder / "project" / "main.py").rename(runs.folder / "project" / "__main__.py")
    assert runs.run("project")[1] == b"42 ['__main__.py']\n"


def test_a_notebook_shows_its_outputs_and_is_kept_as_it_was_executed(runs: Runs) -> None:
    runs.write_notebook(
        "n.ipynb",
        "import os, sys\nos.chdir(os.path.expanduser('~'))\nprint(open('in.txt').read())\n"
        "print('bad', file=sys.stderr)",
        "open('made.txt', 'w').write('made'); 6 * 7",
        "%snapshot here",
        f"display({{'image/png': '{PNG}'}}, raw=True)",
    )
    runs.write("in.txt", "from the host")
    code, out, err = runs.run("n.ipynb", "--in", "in.txt", "--out", "out", "--result", "made.txt")
    assert (code, err) == (0, b"bad\n")
    progress = "Taking a snapshot ("  # on a slow host
    lines = [line for line in out.decode().splitlines() if not line.startswith(progress)]
    assert lines[:2] == ["from the host", "42"]
    assert lines[2].startswith("Snapshot here (")
    assert "image/png" in lines[3]
    assert (runs.folder / "out" / "made.txt").read_text() == "made"
    cells = runs.read_notebook("out/n.ipynb")
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3, 4]
    assert cells[1]["outputs"][0]["data"]["text/plain"] == "42"
    assert cells[3]["outputs"][0]["data"]["image/png"].strip() == PNG
    assert sorted(path.name for path in (runs.folder / "out").iterdir()) == ["made.txt", "n.ipynb"]


def test_a_cell_that_fails_ends_the_notebook_unless_it_may(runs: Runs) -> None:
    runs.write_notebook("n.ipynb", "print('one')", "1 / 0", "print('never')")
    code, out, err = runs.run("n.ipynb", "--out", "out")
    assert (code, out) == (1, b"one\n")
    assert b"ZeroDivisionError" in err
    assert [len(cell["outputs"]) for cell in runs.read_notebook("out/n.ipynb")] == [1, 1, 0]
    runs.write_notebook("n.ipynb", "1 / 0", "print('on')", tags=["raises-exception"])
    assert runs.run("n.ipynb")[:2] == (0, b"on\n")


@pytest.mark.parametrize("tags", [[], ["raises-exception"]])
def test_ctrl_c_interrupts_a_notebooks_cell_and_ends_the_notebook(runs: Runs, tags: Sequence[str]) -> None:
    runs.write_notebook("n.ipynb", "import time\nprint('go')\ntime.sleep(60)", "print('never')", tags=tags)
    with runs.start("n.ipynb", "--out", "out") as process:
        assert process.stdout
        assert process.stdout.readline() == b"go\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
        assert b"never" not in process.stdout.read()
    assert runs.read_notebook("out/n.ipynb")[0]["outputs"][-1]["ename"] == "KeyboardInterrupt"


def test_a_notebook_whose_time_is_up_is_ended(runs: Runs) -> None:
    runs.write_notebook("n.ipynb", "print('go')\nwhile True:\n    pass")
    code, out, err = runs.run("n.ipynb", "--timeout", "2")
    assert (code, out) == (124, b"go\n")
    assert b"after 2 s, its time limit (--timeout)" in err
