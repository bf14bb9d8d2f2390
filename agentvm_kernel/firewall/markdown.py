"""Markdown: rendered here, since each front end reads it in a way of its own; what comes out is cleaned as HTML is."""

from __future__ import annotations

from functools import cache
from html import escape
from typing import Any, Final

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from agentvm_kernel.firewall.context import Context
from agentvm_kernel.firewall.html import clean_html
from agentvm_kernel.firewall.reasons import Reason

MAX_CHARACTERS: Final = 200_000


def clean_markdown(text: str, context: Context) -> str | None:
    """Markdown as HTML that runs nothing, with formulas for MathJax.

    Args:
        text: Markdown of the guest.
        context: Of the message.

    Returns:
        HTML, or None if it is too large or nothing is left of it.
    """
    if len(text) > MAX_CHARACTERS:
        context.block(Reason.SIZE, "Markdown of more than 200,000 characters")
        return None
    return clean_html(_renderer().render(text), context)


@cache
def _renderer() -> MarkdownIt:
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    renderer.use(dollarmath_plugin, allow_blank_lines=False, double_inline=True, renderer=_formula)
    # The plugin's own rules put an element around a formula; MathJax looks for the signs.
    for kind, sign in (("math_inline", "$"), ("math_inline_double", "$$"), ("math_block", "$$")):
        renderer.add_render_rule(kind, _rule(sign))
    return renderer


def _formula(text: str, _options: dict[str, Any]) -> str:
    return escape(text)


def _rule(sign: str) -> Any:
    def render(_self: object, tokens: Any, index: int, _options: object, _environment: object) -> str:
        return f"{sign}{escape(tokens[index].content)}{sign}"

    return render
