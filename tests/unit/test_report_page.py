"""A report's page says what the log has, and nothing in a notebook's file can run in it, load anything or forge it."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_bed import Bed, code, markdown, notebook, text

from agentvm_kernel.errors import ReportError
from agentvm_kernel.report.make import Report, make_report
from agentvm_kernel.report.path import recorded

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def report(bed: Bed, *cells: dict[str, Any], **metadata: Any) -> Report:
    bed.log.close()
    return make_report(notebook(bed.paths.state.parent / "n.ipynb", *cells, **metadata), bed.paths)


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


def words(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)))


def test_the_page_says_what_the_log_has(bed: Bed) -> None:
    bed.begin(
        notebook=str(bed.paths.state.parent / "n.ipynb"),
        version="0.1.0",
        network="filtered; 7 rules",
        limits='{"cell_deadline":300.0,"disk_mb_per_second":50,"open_files":4096,"other":5,"lifetime":"x"}',
        disk_gb=20,
    )
    bed.run("x = 1", count=1)
    bed.snapshot("s1", "good")
    bed.run("1/0", error="ZeroDivisionError")
    bed.snapshot("s2", "bad")
    bed.back("s1", "vm-2")
    bed.forks(4, "5" * 32)
    bed.forks(2)
    bed.copied("push", "/home/somebody/prices.csv")
    run = bed.run("print(x)", text("1\n"))
    bed.refused("evil.example", run)
    bed.allowed("a.example", run)
    bed.blocked(run, 3)
    bed.end()
    made = report(bed, markdown("# Title"), code("x = 1"), code("1/0"), code("print(x)", text("1\n")))
    said = words(made.page)
    for wanted in (
        f"is whole: {made.log.records} records", made.log.last.digest, "Emulated processor (TCG)", "filtered; 7 rules",
        "timeout 300 s, open files 4096, disk rate 50 MB", "2 CPUs, 2048 MiB of memory, 20 GB of disk",
        "3, of which 1 failed", "outputs as recorded", "on a branch that was left", "ZeroDivisionError",
        "good (s1)", "gone back to 1\N{MULTIPLICATION SIGN}", "Runs on the way: 1, 3; left behind: 2",
        "connection to evil.example:443", "output: script", "agentvm reproduce 'n.ipynb'",
        f"4 diverge {'5' * 32}", "2 diverge new for each", f"2 in prices.csv 1.2 kB {'c' * 64}",
    ):  # fmt: skip
        assert wanted in said, wanted
    assert re.search(r"evil\.example 443 1 ", said)
    assert made.page.count("<svg") == 2


def test_a_damaged_log_is_called_damaged(bed: Bed) -> None:
    bed.begin(notebook=str(bed.paths.state.parent / "n.ipynb"))
    bed.run("a")
    bed.end()
    (file,) = (bed.paths.state / "audit").glob("*-*-*.jsonl")
    file.write_bytes(file.read_bytes().replace(b'"cpu_seconds":0.25', b'"cpu_seconds":0.99'))
    page = report(bed, code("a")).page
    assert "The audit log is damaged" in page
    assert "is whole" not in page


def test_a_notebook_that_the_log_does_not_know_is_called_that(bed: Bed) -> None:
    page = report(bed, code("a", text("all is well")), code("%vm status", text("ended"))).page
    assert "The audit log has no session of this notebook" in page
    assert '<span class="off">no known run</span>' in page
    assert "<span>a magic has no run: nobody vouches for what this shows</span>" in page


def test_paths_and_owners_are_not_in_it(bed: Bed) -> None:
    bed.begin(notebook=str(bed.paths.state.parent / "n.ipynb"), owner="kernel-of-somebody")
    bed.run("a")
    bed.copied("push", str(bed.paths.state.parent / "prices.csv"))
    made = report(bed, code("a"))
    page = made.page
    assert str(bed.paths.state.parent) not in page + json.dumps(recorded(made))
    assert "kernel-of-somebody" not in page


def showing(mime: str, value: str) -> dict[str, Any]:
    output = {"output_type": "display_data", "data": {mime: value}, "metadata": {}}
    return code(f"show {len(value)}", output)


HOSTILE = [
    markdown("<script>alert(1)</script><img src=x onerror=alert(1)> ![](https://evil.example/a.png)"),
    markdown("[link](javascript:alert(1)) </div></body><h2>Summary</h2><style>*{display:none}</style>"),
    markdown("<iframe srcdoc='<script>1</script>'></iframe>"),
    code("</pre><script>alert(2)</script>"),
    showing("text/html", "<script>alert(3)</script><b onclick=alert(4)>x</b><form action=//evil.example><input>"),
    showing("text/html", '<img src="https://evil.example/x.png"><link rel=stylesheet href=//evil.example/x.css>'),
    showing("text/html", "<style>body{background:url(https://evil.example/)} .good{position:fixed}</style>"),
    showing("text/html", '<div style="position:fixed;top:0;z-index:9">is whole</div>'),
    showing("text/markdown", "<script>10</script>![](//evil.example/y)"),
    showing("image/svg+xml", "<svg onload=alert(5)><script>1</script></svg>"),
    showing("application/javascript", "alert(6)"),
    showing("image/png", 'x" onerror="alert(9)'),
    code("t", text("\x1b]0;title\x07\x1b[31mred\x1b[0m <script>alert(7)</script> \u202eesrever")),
    code("e", {"output_type": "error", "ename": "<b>", "evalue": "<b>", "traceback": ["</pre><script>8</script>"]}),
]


def test_nothing_in_a_notebook_runs_or_loads_in_the_page(bed: Bed) -> None:
    page = Page(report(bed, *HOSTILE, title="<script>alert(0)</script>").page)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "embed", "link", "form", "input", "base", "frame"} & set(names)
    assert names.count("body") == names.count("head") == names.count("title") - names.count("svg") == 1
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert "javascript:" not in (attributes.get("href") or "")
        assert "fixed" not in (attributes.get("style") or "")
    assert "url(" not in "".join(value or "" for _, attributes in page.tags for value in attributes.values())


def test_the_page_forbids_itself_to_run_or_load_anything(bed: Bed) -> None:
    page = Page(report(bed).page)
    (policy,) = [one["content"] for tag, one in page.tags if tag == "meta" and one.get("http-equiv")]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"], rules["base-uri"]) == ("'none'", "data:", "'none'")
    assert "script-src" not in rules


def test_what_guests_name_cannot_become_markup(bed: Bed) -> None:
    evil = "<script>alert(1)</script>"
    bed.begin(notebook=str(bed.paths.state.parent / "n.ipynb"), network=evil)
    run = bed.run("a", error=evil)
    bed.refused(evil, run)
    bed.snapshot("s1", evil)
    bed.copied("pull", evil)
    page = report(bed, code("a")).page
    assert "<script" not in page
    assert page.count("script&gt;") >= 5


@pytest.mark.parametrize("mime", ["image/png", "image/svg+xml", "text/html", "text/plain", "text/latex", "x/y"])
@pytest.mark.parametrize("value", [None, 5, 1e400, {}, [[5]], [], {"a": [1]}, "\ud800"])
def test_what_no_output_has_is_no_error(bed: Bed, mime: str, value: Any) -> None:
    bed.begin(notebook=str(bed.paths.state.parent / "n.ipynb"))
    bed.run("show 1")
    output = {"output_type": "display_data", "data": {mime: value}, "metadata": {}}
    try:
        made = report(bed, code("show 1", output))
    except ReportError:
        return  # it is no notebook
    assert made.matches[0].standing in {"changed", "as recorded"}


def test_large_outputs_are_cut_with_a_note(bed: Bed) -> None:
    many = [text(f"{number}\n", "stdout" if number % 2 else "stderr") for number in range(300)]
    page = report(bed, code("a", text("x" * 50_000)), code("b", *many)).page
    assert "30000 more characters are left out" in page
    assert "100 more outputs are left out" in page
    assert len(page) < 200_000


def test_pictures_are_in_the_page(bed: Bed) -> None:
    one = {"output_type": "display_data", "data": {"image/png": PNG, "text/plain": "<Figure>"}, "metadata": {}}
    assert f'src="data:image/png;base64,{PNG}"' in report(bed, code("a", one)).page
