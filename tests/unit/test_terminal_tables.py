"""What commands print is cut to a terminal's width, and to nothing else's."""

from __future__ import annotations

import io

import pytest

from agentvm_kernel.terminal import add_row, console, table

LONG = "/a/" + 60 * "long/" + "path"


def test_without_a_terminal_no_cell_is_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = table("name", "place", "note")
    add_row(shown, "one", LONG, "what follows")
    console().print(shown)
    assert [line.split() for line in capsys.readouterr().out.splitlines()][1] == ["one", LONG, "what", "follows"]


def test_a_bounded_width_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = console()
    out.file = io.StringIO()
    shown = table("name", "place")
    add_row(shown, "one", LONG)
    out.print(shown)
    assert max(map(len, out.file.getvalue().splitlines())) <= 40
