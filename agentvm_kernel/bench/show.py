"""How a benchmark's figures are shown."""

from __future__ import annotations

import json

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agentvm_kernel.bench.figures import Figure, Series
from agentvm_kernel.bench.run import Result

_VERDICTS = {"met": "[green]met[/]", "missed": "[red]missed[/]", None: ""}


def as_json(result: Result) -> str:
    """Return figures as a JSON list."""
    load = {"load_average": result.load}
    return json.dumps([figure.describe() | load for figure in result.figures], indent=2)


def as_table(result: Result) -> Table:
    """Return figures as a table that fits into 80 columns: below each figure stands its baseline."""
    before, after = result.load
    title = f"image {result.wanted.image}, profile {result.wanted.profile}, load average {before:.1f} to {after:.1f}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("figure, and baseline")
    for heading in ("median", "p95", "n", "ratio", "limit", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in result.figures:
        ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else ""
        name = Text(figure.measured.name)
        table.add_row(name, *_numbers(figure.measured), ratio, _limit(figure), _VERDICTS[figure.verdict])
        if figure.baseline:
            table.add_row(Padding(Text(figure.baseline.name), (0, 0, 0, 2)), *_numbers(figure.baseline))
    return table


def _numbers(series: Series) -> tuple[str, str, str]:
    values = series.describe()
    return f"{series.median:.1f} {series.unit}", f"{values['p95']:.1f}", str(values["n"])


def _limit(figure: Figure) -> str:
    if figure.limit is None:
        return ""
    return f"{figure.limit:g} x" if figure.limit_on == "ratio" else f"{figure.limit:g} {figure.measured.unit}"
