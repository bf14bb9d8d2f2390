"""Outputs as libraries make them: on the host, and as a script inside a VM (standard library only, but for pandas)."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib

ROWS = 1000
_COLUMNS = "abcdef"
_STYLE = """\
<style scoped>
    .dataframe tbody tr th:only-of-type {
        vertical-align: middle;
    }

    .dataframe tbody tr th {
        vertical-align: top;
    }

    .dataframe thead th {
        text-align: right;
    }
</style>
"""


def line() -> str:
    """Return a short line of text."""
    return "1\n"


def table() -> str:
    """Return a table of 1,000 rows of numbers, as pandas shows it; by itself, or in the same words."""
    rows = [[(row * 7919 + column * 104729) % 100003 / 1000 for column in range(len(_COLUMNS))] for row in range(ROWS)]
    try:
        import pandas as pd  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415
    except ImportError:
        return _table(rows)
    with pd.option_context("display.max_rows", ROWS):
        return str(pd.DataFrame(rows, columns=list(_COLUMNS))._repr_html_())


def _table(rows: list[list[float]]) -> str:
    head = "".join(f"      <th>{name}</th>\n" for name in _COLUMNS)
    body = "".join(_row(number, row) for number, row in enumerate(rows))
    return (
        f'<div>\n{_STYLE}<table border="1" class="dataframe">\n  <thead>\n    <tr style="text-align: right;">\n'
        f"      <th></th>\n{head}    </tr>\n  </thead>\n  <tbody>\n{body}  </tbody>\n</table>\n"
        f"<p>{len(rows)} rows \N{MULTIPLICATION SIGN} {len(_COLUMNS)} columns</p>\n</div>"
    )


def _row(number: int, row: list[float]) -> str:
    cells = "".join(f"      <td>{value:.6f}</td>\n" for value in row)
    return f"    <tr>\n      <th>{number}</th>\n{cells}    </tr>\n"


def picture() -> str:
    """Return a PNG of 1 MB of noise, which nothing makes smaller, in base64."""
    side = 591
    noise = random.Random(1)  # nosec B311 - pixels
    rows = b"".join(b"\0" + noise.randbytes(3 * side) for _ in range(side))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 1)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return base64.b64encode(data).decode()


def plot() -> str:
    """Return a plot of 200 kB: a script with its data, as libraries for interactive plots write them."""
    points = json.dumps([{"x": x, "y": x * x % 997 / 10, "name": f"point {x}"} for x in range(4200)])
    script = f'const data = {points};\ndraw("plot", data);'
    return f'<div id="plot"></div>\n<script type="text/javascript">\n{script}\n</script>'
