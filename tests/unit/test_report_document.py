"""A notebook's file is hostile input: whatever is in it, it is read within bounds, or refused with one clear error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_bed import code, markdown, notebook, text

from agentvm_kernel.errors import ReportError
from agentvm_kernel.report import document as module
from agentvm_kernel.report.cleaning import Cleaner, plain
from agentvm_kernel.report.document import parse_document, read_document


def refused(content: bytes) -> str:
    with pytest.raises(ReportError) as caught:
        parse_document("n.ipynb", content)
    return caught.value.message


def test_cells_are_taken_as_they_stand(tmp_path: Path) -> None:
    cells = (markdown("# T"), code(["a\n", "b"], text(["1\n", "2"]), count=4, name="abc"))  # type: ignore[arg-type]
    first, second = read_document(notebook(tmp_path / "n.ipynb", *cells)).cells
    assert (first.kind, first.source) == ("markdown", "# T")
    assert (second.kind, second.id, second.source, second.count) == ("code", "abc", "a\nb", 4)
    assert len(second.outputs) == 1


def test_older_notebooks_are_read_too() -> None:
    cell = {"cell_type": "code", "input": "x = 1", "outputs": [], "language": "python", "prompt_number": 2}
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [cell], "metadata": {}}]}
    (read,) = parse_document("n.ipynb", json.dumps(old).encode()).cells
    assert (read.source, read.count) == ("x = 1", 2)


@pytest.mark.parametrize("brackets", [b"[]", b"{}"])
def test_depth_is_refused_before_anything_is_made_of_it(brackets: bytes) -> None:
    inner = brackets[:1] * 200_000 + brackets[1:] * 200_000
    assert "nested too deeply" in refused(b'{"cells": ' + inner + b"}")


def test_brackets_in_texts_are_no_depth() -> None:
    source = '["{[{[' * 500 + '\\"]}'
    content = json.dumps({"cells": [code(source)], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()
    assert parse_document("n.ipynb", content).cells[0].source == source


@pytest.mark.parametrize("rest", [b"", b"\\"])
def test_a_text_that_does_not_end_is_gone_through_once(rest: bytes) -> None:
    assert "is no JSON" in refused(b'{"a":"' + b'\\"' * 2_000_000 + rest)  # else it would take days


def test_very_many_parts_and_cells_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "too many parts" in refused(b'{"cells": [' + b"1," * 2_000_000 + b"1]}")
    monkeypatch.setattr(module, "MAX_CELLS", 2)
    values = {"cells": [code("a"), code("b"), code("c")], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    assert "more than 2 cells" in refused(json.dumps(values).encode())


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    huge = tmp_path / "n.ipynb"
    huge.touch()
    os.truncate(huge, 1 << 40)
    with pytest.raises(ReportError, match="larger than 128 MiB"):
        read_document(huge)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "absent"):
        with pytest.raises(ReportError, match=r"no file|cannot be read"):
            read_document(tmp_path / name)


@pytest.mark.parametrize(
    "values",
    [
        {}, [], 3, None, {"cells": []}, {"cells": {}, "metadata": {}, "nbformat": 4, "nbformat_minor": 5},
        {"cells": [1], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, {"nbformat": 99}, {"nbformat": "4"},
        {"nbformat": 3, "worksheets": 7}, {"nbformat": 1}, {"nbformat": -1, "cells": []},
        {"cells": [{"cell_type": "evil"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5},
        {"cells": [code("a", {"output_type": "x"})], "metadata": {}, "nbformat": 4, "nbformat_minor": 5},
    ],
)  # fmt: skip
def test_what_is_no_notebook_is_refused(values: Any) -> None:
    assert "'n.ipynb' is no" in refused(json.dumps(values).encode())


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{\0}\0", b"{", b'{"a": }', b"nonsense"])
def test_what_is_no_json_is_refused(content: bytes) -> None:
    assert refused(content) == "'n.ipynb' is no JSON."


def test_numbers_that_are_none_and_halves_of_pairs_do_no_harm() -> None:
    content = b'{"cells": [], "metadata": {"x": NaN, "y": "\\ud800"}, "nbformat": 4, "nbformat_minor": 5}'
    read = parse_document("n.ipynb", content)
    assert read.values["metadata"] == {"x": None, "y": "?"}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
)


@given(st.dictionaries(st.sampled_from(["cells", "metadata", "nbformat", "nbformat_minor", "worksheets"]), _JSON))
def test_nothing_but_our_own_error_comes_of_any_json(values: dict[str, Any]) -> None:
    try:
        parse_document("n.ipynb", json.dumps(values).encode())
    except ReportError as error:
        assert len(error.message) < 400  # noqa: PT017 - that there is an error is not what is tested


_MIME = st.sampled_from(["text/html", "text/plain", "image/png", "image/svg+xml", "application/json"])
_OUTPUT = st.fixed_dictionaries(
    {"output_type": st.sampled_from(["stream", "display_data", "execute_result", "error", "other"])},
    optional={
        "data": st.dictionaries(_MIME, _JSON) | _JSON,
        "text": _JSON, "name": _JSON, "traceback": _JSON, "metadata": _JSON, "ename": _JSON,
    },
)  # fmt: skip


@given(st.lists(_OUTPUT, max_size=3))
def test_any_output_can_be_shown_or_is_left_out_with_a_note(outputs: list[dict[str, Any]]) -> None:
    shown = Cleaner().outputs(tuple(outputs))
    assert len(shown) == len(outputs)
    assert all("<script" not in one.html.lower() for one in shown)


def test_text_that_would_be_read_in_another_order_is_marked() -> None:
    assert plain("a\u202eb\x1b[31mc\x07") == "a\N{REPLACEMENT CHARACTER}bc"
