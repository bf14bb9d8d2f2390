"""Formulas: mathematics is typeset, and no command reaches beyond its formula."""

from __future__ import annotations

import pytest
from firewall_bed import Said
from output_checker import tex_problems, text_problems

from agentvm_kernel.firewall.latex import MAX_CHARACTERS, clean_latex
from agentvm_kernel.firewall.reasons import Reason

FORMULAS = [
    r"$\displaystyle \frac{\sqrt{2}}{2} + \int_0^\infty e^{-x^2}\,dx$",
    r"\begin{equation}\label{a} x \ne \left(\begin{matrix}1 & 0\\0 & 1\end{matrix}\right) \tag{1}\end{equation}",
    r"$\mathbb{R} \to \mathcal{L}, \quad \hspace{1cm} \hat{x} \cdot \vec{y} \text{ if } x \in A$",
    r"$\operatorname{classify}\, \default \urlike \hrefs \definite$",
    r"$\color{red}{x} \boxed{y} \ce{H2O}$",
    "no formula at all: C:\\temp",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_mathematics_stays_as_it_is(text: str) -> None:
    said = Said()
    assert clean_latex(text, said.context) == text
    assert said.reasons == []


@pytest.mark.parametrize(
    "command",
    [
        r"\href{javascript:x}{y}",
        r"\url{javascript:x}",
        r"\class{jp-Dialog}{x}",
        r"\style{position:fixed}{x}",
        r"\cssId{main}{x}",
        r"\data{commandlinker-command=x}{y}",
        r"\require{html}",
        r"\unicode{x}",
        r"\mmlToken{mi}[href='javascript:x']{y}",
        r"\bbox[border:9px solid]{x}",
        r"\includegraphics{https://evil.example/x}",
        r"\htmlId{x}{y} \htmlClass{x}{y} \htmlStyle{x}{y} \htmlData{x}{y}",
        r"\def\x{y}",
        r"\gdef\x{y}",
        r"\let\x=\y",
        r"\newcommand{\x}{y}",
        r"\renewenvironment{x}{y}{z}",
        r"\csname cssId\endcsname{x}{y}",
        r"\llap{x} \rlap{x} \smash{x} \kern-9em \moveleft9em \Rule{9em}{9em}{9em}",
        r"\hspace{-9em} \mspace { -9em} \hspace*{-9em}",
    ],
)
@pytest.mark.parametrize("before", ["", "\\", "\\\\", "x"])
def test_a_command_that_reaches_beyond_its_formula_becomes_a_word(command: str, before: str) -> None:
    said = Said()
    cleaned = clean_latex(f"${before}{command}$", said.context) or ""
    assert list(tex_problems(cleaned)) == []
    assert "\\" + command.strip("\\").split("{")[0].split("[")[0].split("-")[0].split("9")[0] not in cleaned
    assert said.reasons == [Reason.MARKUP]
    assert clean_latex(cleaned, said.context) == cleaned


def test_control_characters_go() -> None:
    cleaned = clean_latex("$x$\x1b]0;title\x07\x00", Said().context)
    assert cleaned == "$x$"
    assert list(text_problems(cleaned)) == []


def test_latex_that_is_too_long_is_not_shown() -> None:
    said = Said()
    assert clean_latex("x" * (MAX_CHARACTERS + 1), said.context) is None
    assert said.reasons == [Reason.SIZE]
