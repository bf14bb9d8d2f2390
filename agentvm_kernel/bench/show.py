"""How a benchmark's figures are shown."""

from __future__ import annotations

import json

from rich.table import Table

from agentvm_kernel.bench.figures import Figure, Series

_VERDICTS = {"met": "[green]met[/]", "missed": "[red]missed[/]", None: ""}


def as_json(figures: list[Figure]) -> str:
    """Return figures as a JSON list."""
    return json.dumps([figure.describe() for figure in figures], indent=2)


def as_table(figures: list[Figure], title: str) -> Table:
    """Return figures as a table.

    Args:
        figures: The figures.
        title: What they were measured on.
    """
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for heading in ("figure", "median", "p95", "n", "baseline", "median", "ratio", "limit", ""):
        is_text = heading in {"figure", "baseline"}
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for figure in figures:
        values = figure.measured.describe()
        unit = figure.measured.unit
        table.add_row(
            figure.measured.name, f"{figure.measured.median:.1f} {unit}", f"{values['p95']:.1f}", str(values["n"]),
            figure.baseline.name if figure.baseline else "", _median(figure.baseline),
            f"{figure.ratio:.2f}" if figure.ratio is not None else "", _limit(figure), _VERDICTS[figure.verdict],
        )  # fmt: skip
    return table


def _median(series: Series | None) -> str:
    return f"{series.median:.1f} {series.unit}" if series else ""


def _limit(figure: Figure) -> str:
    if figure.limit is None:
        return ""
    return f"{figure.limit:g} x" if figure.limit_on == "ratio" else f"{figure.limit:g} {figure.measured.unit}"
