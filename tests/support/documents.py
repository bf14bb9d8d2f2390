"""The blocks of the documents: code in README.md and docs/*.md that stands by itself, and what a test does with each.

A comment in the line before a block says what is done with it:

    <!-- run: host -->            its commands are run on the host, in an empty folder
    <!-- run: vm -->              the same, while a notebook runs; magics are run in that notebook
    <!-- run by: tests/… -->      another test runs it
    <!-- not run: reason -->      it is not run, and the tests say so

Without one, TOML is read as a configuration, JSON and YAML are parsed, the names in Python are resolved; every other
block must have one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
CHECKED = frozenset({"toml", "json", "yaml", "python"})

_MARK = re.compile(r"<!-- (run|run by|not run): (.+?) -->")
_EXPLANATION = re.compile(r"\s{2,}.*| +# .*")
_PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b…?")


_README = {
    "$ make quickstart": ("not run", "it runs these tests, and the notebook that tests/vm/test_quickstart.py runs"),
    "$ jupyter lab": ("not run", "it serves until it is ended; tests/browser starts it"),
}
"""What is done with the blocks of the README, which has no comments, by their beginnings."""


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        page: The document's file.
        line: Where it begins, from 1.
        language: What it is said to be.
        text: What is in it.
        mark: What the comment says is done with it: ``run``, ``run by`` or ``not run``; empty without one.
        word: How, by which test, or why not.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str
    word: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def kind(self) -> str:
        """What a test does with it; empty if nobody has said that."""
        if self.mark == "run":
            return f"run: {self.word}"
        return self.mark or (self.language if self.language in CHECKED else "")

    @property
    def is_notebook(self) -> bool:
        """Whether its lines are magics."""
        return self.text.startswith("%")

    def cells(self) -> list[str]:
        """The cells of magics: a cell magic with its body, or each line with what is explained beside it left out."""
        return [self.text] if self.text.startswith("%%") else list(self._lines())

    def commands(self, filled: dict[str, str]) -> Iterator[str]:
        """What a shell is given: a script as a whole, a list of commands one by one.

        Args:
            filled: What is put in the place of words in capitals, such as ID.
        """
        if self.language == "bash":
            yield self.text
        elif self.language == "console":
            yield from (line[2:] for line in self.text.splitlines() if line.startswith("$ "))
        else:
            for line in self._lines():
                yield _PLACEHOLDER.sub(lambda found: shlex.quote(filled[found[0].rstrip("…")]), line)

    def _lines(self) -> Iterator[str]:
        lines = (_EXPLANATION.sub("", line) for line in self.text.splitlines())
        return (line for line in lines if line.strip(" …"))


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a document."""
    text = page.read_text()
    lines = text.splitlines()
    found = []
    for token in MarkdownIt().parse(text):
        if token.type in {"fence", "code_block"} and token.map:
            mark = _MARK.fullmatch(lines[token.map[0] - 1].strip()) if token.map[0] else None
            said = (mark[1], mark[2]) if mark else ("", "")
            if page == PAGES[0]:
                said = next((kept for begin, kept in _README.items() if token.content.startswith(begin)), said)
            found.append(Block(page, token.map[0] + 1, token.info, token.content, *said))
    return found


def all_blocks(kind: str = "") -> list[Block]:
    """Return the blocks of all documents, or those of a kind."""
    return [one for page in PAGES for one in blocks(page) if not kind or one.kind == kind]
