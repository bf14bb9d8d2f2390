r"""Formulas: what MathJax in the page may be told.

MathJax typesets formulas in Markdown and LaTeX outputs and in the text of HTML. Some of its commands make links, set
styles, ids and classes, or define macros for every formula of the page; their backslash is taken away, which leaves the
word to be read. No other command can be put together from pieces, since definitions go too.
"""

from __future__ import annotations

import re
from typing import Final

from agentvm_kernel.firewall.context import Context
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.text import clean_text

MAX_CHARACTERS: Final = 1_000_000

_REACHING: Final = (
    "href|url|class|style|cssId|data|attr|require|autoload|unicode|char|mmlToken|bbox|includegraphics|toggle|mathtip|"
    "texttip|htmlClass|htmlData|htmlId|htmlStyle|hskip|kern|mskip|mkern|moveleft|moveright|llap|rlap|clap|mathllap|mathrlap|mathclap|smash|rule|Rule|Space"
)
# The latter half moves ink out of the formula's own box, so it could draw over the page; what follows outlasts it.
_DEFINING: Final = (
    "def|gdef|edef|xdef|let|futurelet|newcommand|renewcommand|providecommand|newenvironment|renewenvironment|"
    "DeclareMathOperator|DeclarePairedDelimiters?|DeclarePairedDelimiterX|DeclarePairedDelimiterXPP|"
    "NewDocumentCommand|RenewDocumentCommand|csname|endcsname|begingroupSandbox|begingroupReset|catcode|"
    "definecolor|newtagform|renewtagform|usetagform"
)
_COMMAND: Final = re.compile(rf"(?<!\\)\\++(?=(?:{_REACHING}|{_DEFINING})(?![A-Za-z])|[hm]space\*?\s*\{{\s*-)")


def neutral(text: str, context: Context) -> str:
    r"""The same text with nothing in it that MathJax would do more than typeset: ``\href`` becomes `` href``.

    Takes every backslash before such a word, since of two the second would be left to begin a command.
    """
    if "\\" not in text:
        return text
    text, found = _COMMAND.subn(" ", text)
    if found:
        context.block(Reason.MARKUP, "a command in a formula that reaches beyond it")
    return text


def clean_latex(text: str, context: Context) -> str | None:
    """A LaTeX output; the front end shows it as text and lets MathJax typeset it."""
    if len(text) > MAX_CHARACTERS:
        context.block(Reason.SIZE, "LaTeX of more than a million characters")
        return None
    return neutral(clean_text(text, context), context)
