"""`agentvm report` and `%report`: what they write and where, and one clear line where they cannot."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report_bed import Bed, code, notebook, text

from agentvm_kernel import cli
from agentvm_kernel.errors import ReportError
from agentvm_kernel.magics.call import UsageError
from agentvm_kernel.magics.registry import Registry


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    bed = Bed(tmp_path)
    for name, value in bed.paths.environment.items():
        monkeypatch.setenv(name, value)
    path = notebook(tmp_path / "n.ipynb", code("a", text("1")))
    bed.begin(notebook=str(path))
    bed.run("a", text("1"))
    bed.end()
    monkeypatch.chdir(tmp_path)
    return bed


def agentvm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["agentvm", "report", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, " ".join(err.split())


def test_a_report_lies_beside_its_notebook_or_where_it_is_wanted(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert agentvm(monkeypatch, capsys, "n.ipynb") == (0, f"{tmp_path}/n.report.html\n", "")
    assert "outputs as recorded" in (tmp_path / "n.report.html").read_text()
    (tmp_path / "there").mkdir()
    status, _, _ = agentvm(monkeypatch, capsys, "n.ipynb", "--zip", "-o", "there")
    assert status == 0
    assert [one.name for one in (tmp_path / "there").iterdir()] == ["n.report.zip"]
    status, out, _ = agentvm(monkeypatch, capsys, "verify", "there/n.report.zip")
    assert (status, "your own key" in out) == (0, True)


def test_what_was_changed_since_it_ran_is_told_before_the_report_goes_to_others(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    notebook(tmp_path / "n.ipynb", code("a", text("2")))
    status, out, err = agentvm(monkeypatch, capsys, "n.ipynb", "--zip")
    assert (status, out) == (0, f"{tmp_path}/n.report.zip\n")
    assert err == "Changed since they ran, as the report says: the outputs of 1 code cells (1)."


def test_a_notebooks_name_gives_the_terminal_no_orders(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copy(tmp_path / "n.ipynb", tmp_path / "n\x1b]0;owned\x07.ipynb")
    status, out, _ = agentvm(monkeypatch, capsys, "n\x1b]0;owned\x07.ipynb")
    assert (status, "\x1b" in out, "\x07" in out, "owned" in out) == (0, False, False, True)


def test_a_report_by_another_key_is_told_by_the_status(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    agentvm(monkeypatch, capsys, "n.ipynb", "--zip")
    shutil.rmtree(bed.paths.state)
    status, out, _ = agentvm(monkeypatch, capsys, "verify", "n.report.zip")
    assert status == 1
    name = out.split("a key that is not yours: ")[1].split(".")[0]
    status, _, _ = agentvm(monkeypatch, capsys, "verify", "n.report.zip", "--key", name)
    assert status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("absent.ipynb",), "cannot be read"), (("n.ipynb", "-o", "absent"), "There is no folder absent"),
        (("n.ipynb", "other"), "Valid is"), (("verify", "n.ipynb"), "no archive"),
        (("n.ipynb", "--key", "x"), "Valid is"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_clear_error(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    status, out, err = agentvm(monkeypatch, capsys, *words)
    assert (status, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


def test_without_chromium_a_pdf_is_refused_in_one_line(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    status, _, err = agentvm(monkeypatch, capsys, "n.ipynb", "--pdf")
    assert (status, "A PDF needs Chromium" in err) == (1, True)
    assert not (tmp_path / "n.report.html").exists()


class Host:
    """Stands for a kernel's host side, of which the magic wants only that the log is told everything first."""

    def __init__(self) -> None:
        self.told = 0
        self.machine = SimpleNamespace(network=self)

    async def audit(self, _last: int) -> tuple[()]:
        self.told += 1
        return ()


async def report(host: Any, line: str) -> str:
    magic = Registry().find(line)
    assert magic is not None
    return str((await magic.run(host))["text/plain"])


async def test_the_magic_writes_beside_the_notebook_and_says_that_it_shows_what_is_saved(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "n.ipynb"))
    host = Host()
    said = await report(host, "%report --zip")
    assert said == "The report is in n.report.zip, beside the notebook.\nIt shows the notebook as it was saved last."
    assert host.told == 1
    assert (tmp_path / "n.report.zip").exists()


async def test_the_magic_asks_for_the_notebook_where_nobody_has_told_it(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    with pytest.raises(ReportError, match="Nobody has told"):
        await report(Host(), "%report")
    await report(Host(), "%report n.ipynb")
    assert (tmp_path / "n.report.html").exists()
    with pytest.raises(UsageError, match="valid is %report"):
        await report(Host(), "%report a b")
    assert "needs no network" in await report(Host(), "%report?")
