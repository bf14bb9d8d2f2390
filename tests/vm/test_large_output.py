"""What is too much for a notebook: who follows the words of its note has all of it on the host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import pytest
from kernel_client import Notebook, notebook
from travel import ok

pytestmark = pytest.mark.timeout(300)

LINES = "".join(f"{number} {str(number) * 100}\n" for number in range(5_000))
CODE = "for number in range(5_000):\n    print(number, str(number) * 100)"
HTML = "<p>some <b>text</b></p>" * 400_000


@pytest.fixture
def nb(vm_environment: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    monkeypatch.chdir(tmp_path)
    with notebook(vm_environment) as running:
        yield running


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def test_the_whole_output_of_a_cell_is_had_as_its_note_says(nb: Notebook, tmp_path: Path) -> None:
    ok(nb, "%limits output=1MiB")
    cell = nb.run(CODE)
    assert len(cell.text()) < len(LINES)
    magic, write, pull = re.findall("`(.+?)`", cell.text("stderr"))
    ok(nb, f"{magic}\n{CODE}")
    ok(nb, write)
    ok(nb, pull)
    assert digest(tmp_path / "output.txt") == sha256(LINES.encode()).hexdigest()


def test_html_that_is_too_large_is_had_as_its_note_says(nb: Notebook, tmp_path: Path) -> None:
    make = "html = '<p>some <b>text</b></p>' * 400_000"
    cell = ok(nb, f"{make}\ndisplay({{'text/html': html}}, raw=True)")
    assert cell.of("display_data") == []
    assert "write it to a file in the VM, and fetch that with %pull FILE" in cell.text("stderr")
    ok(nb, "open('large.html', 'w').write(html)")
    ok(nb, "%pull large.html")
    assert digest(tmp_path / "large.html") == sha256(HTML.encode()).hexdigest()
