"""Writes a report as one HTML page that runs nothing, loads nothing and prints."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agentvm_kernel.report.content import Content


def render(content: Content) -> str:
    """Return the page.

    Args:
        content: What it shows; all texts are escaped here, what is marked as HTML has been cleaned.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(report=content)
