"""How a benchmark's figures are shown."""

from __future__ import annotations

import json

from rich.table import Table

from agentvm_kernel.bench.figures import Figure, Series
from agentvm_kernel.bench.run import Result

_VERDICTS = {"met": "[green]met[/]", "missed": "[red]missed[/]", None: ""}


def as_json(result: Result) -> str:
    """Return figures as a JSON list."""
    load = {"load_average": result.load}
    return json.dumps([figure.describe() | load for figure in result.figures], indent=2)


def as_table(result: Result) -> Table:
    """Return figures as a table."""
    before, after = result.load
    title = f"image {result.wanted.image}, profile {result.wanted.profile}, load average {before:.1f} to {after:.1f}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for heading in ("figure", "median", "p95", "n", "baseline", "median", "ratio", "limit", ""):
        is_text = heading in {"figure", "baseline"}
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for figure in result.figures:
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
