"""How a cell calls a host magic."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Final

from agentvm_kernel.errors import AgentVMError

_LINE: Final = re.compile(r"(?P<before>\?{0,2})%(?P<name>%?[a-z]+)(?P<after>\?{0,2})(?=\s|$)(?P<rest>.*)")


class UsageError(AgentVMError):
    """A magic was called wrongly; the message says what is valid."""

    code: ClassVar[str] = "usage"


@dataclass(frozen=True)
class Call:
    """A cell that begins with a host magic.

    Attributes:
        name: The magic's name, without the percent sign; a cell magic's with one of its two.
        words: What follows it on its line; quotes hold words together.
        help: Help is asked for (``%vm?`` or ``?%vm``).
        alone: Nothing else is in the cell but blank lines and comments.
        body: The lines below.
    """

    name: str
    words: tuple[str, ...]
    help: bool
    alone: bool
    body: str = field(default="", compare=False)

    def wrong(self, valid: str) -> UsageError:
        """Return the error for a call that cannot be understood.

        Args:
            valid: What can.
        """
        said = " ".join([f"%{self.name}", *self.words])
        shown = "".join(c if c.isprintable() else "?" for c in said[:80])
        return UsageError(f"{shown}: valid is {valid}; %{self.name}? has help.")

    def read(self, valid: str, *, most: int, flags: Collection[str] = (), texts: Collection[str] = ()) -> Arguments:
        """Sort the words.

        Args:
            valid: What the error says that is valid.
            most: How many words there may be that belong to no option.
            flags: Options that stand alone.
            texts: Options that are followed by a text, up to the next option.

        Raises:
            UsageError: there is another option, an option without its text, or a word too many.
        """
        read = Arguments()
        option = ""
        for word in self.words:
            if word in flags:
                option = ""
                read.flags.add(word)
            elif word in texts and word not in read.texts:
                option = word
                read.texts[word] = ""
            elif option:
                read.texts[option] = f"{read.texts[option]} {word}".strip()
            elif word.startswith("-"):
                raise self.wrong(valid)
            else:
                read.words.append(word)
        if len(read.words) > most or not all(read.texts.values()):
            raise self.wrong(valid)
        return read


@dataclass
class Arguments:
    """The words of a call, sorted.

    Attributes:
        words: Those that belong to no option.
        flags: Options that were given.
        texts: What was given with options that take something.
    """

    words: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)


def find_call(code: str, names: Collection[str]) -> Call | None:
    """Return the host magic that a cell begins with, if it does.

    Args:
        code: The cell.
        names: The magics that there are.
    """
    lines = code.splitlines()
    said = [(number, line) for number, raw in enumerate(lines) if (line := raw.strip()) and not line.startswith("#")]
    match = _LINE.fullmatch(said[0][1]) if said else None
    if match is None or match["name"] not in names:
        return None
    body = "\n".join(lines[said[0][0] + 1 :])
    asked = bool(match["before"] or match["after"])
    return Call(match["name"], _words(match["rest"]), asked, len(said) == 1, body)


def _words(rest: str) -> tuple[str, ...]:
    """Split a line as a shell does, but for backslashes; an apostrophe that is left alone is one."""
    lexer = shlex.shlex(rest, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape = True, ""
    try:
        return tuple(lexer)
    except ValueError:
        return tuple(rest.split("#", 1)[0].split())
