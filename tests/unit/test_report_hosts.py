"""A report has hosts with verdicts from the audit log, bytes from the log of connections, and pictures of it all."""

from __future__ import annotations

from pathlib import Path

import pytest
from defusedxml.ElementTree import fromstring
from report_bed import Bed

from agentvm_kernel.egress.log import ConnectionLog
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.report.hosts import Host, hosts_of
from agentvm_kernel.report.picture import draw_tree
from agentvm_kernel.report.plots import draw_runs
from agentvm_kernel.report.record import Session, find_sessions

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def session(bed: Bed) -> Session:
    bed.log.close()
    (found,) = find_sessions(bed.paths.state / "audit", {"/n.ipynb"}, (), ()).sessions
    return found


def connection(number: int, lease: str, name: str, sent: int, received: int) -> Connection:
    return Connection(
        id=number, time=1.0, session=lease, vm="vm-1", cell="1", name=name, address="192.0.2.1", port=443,
        verdict="allowed", rule="a", reason="", bytes_sent=sent, bytes_received=received, duration=1.0,
    )  # fmt: skip


def test_bytes_are_added_up_for_each_host_of_these_sessions_only(bed: Bed) -> None:
    bed.begin("lease-1", "/n.ipynb")
    for name in ("a.example", "b.example", "a.example"):
        bed.allowed(name, bed.run("get()"))
    bed.refused("a.example", 3)
    folder = bed.paths.state / "connections"
    log = ConnectionLog(folder)
    for number, (lease, sent, received) in enumerate([("lease-1", 10, 1000), ("lease-1", 5, 1), ("other", 7, 7)]):
        log.put(connection(number, lease, "a.example", sent, received))
    log.close()
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes() + b'{"session": "lease-1", half a line')
    assert hosts_of([session(bed)], folder) == [
        Host("a.example", 443, 2, 1, "a.example", (1, 3), 15, 1001), Host("b.example", 443, 1, 0, "a.example", (2,)),
    ]  # fmt: skip


def test_without_a_log_of_connections_there_are_verdicts_all_the_same(bed: Bed) -> None:
    bed.begin("lease-1", "/n.ipynb")
    bed.refused("a.example", 3)
    assert hosts_of([session(bed)], bed.paths.state / "absent") == [Host("a.example", 443, 0, 1, "", (3,))]


def test_the_tree_has_each_snapshot_the_way_and_the_ways_back(bed: Bed) -> None:
    bed.begin("lease-1", "/n.ipynb")
    bed.snapshot("s1", "a & <b>")
    bed.snapshot("s2")
    bed.back("s1", "vm-2")
    bed.snapshot("s3")
    tree = fromstring(draw_tree(session(bed)))
    texts = ["".join(text.itertext()) for text in tree.iter(f"{SVG}text")]
    assert [text.split()[0] for text in texts] == ["start", "a", "s2", "s3"]
    assert texts[1].startswith("a & <b> (s1)")
    assert [text.endswith("(the end)") for text in texts] == [False, False, False, True]
    edges = [path.get("stroke") for path in tree.iter(f"{SVG}path") if path.get("stroke-width") in {"3", "1.5"}]
    assert edges.count("#1b5e20") == 2
    assert edges.count("#9aa5b1") == 1
    assert edges.count("#b5179e") == 1
    places = [(circle.get("cx"), circle.get("cy")) for circle in tree.iter(f"{SVG}circle")]
    assert len(set(places)) == 4
    assert places[2][0] != places[3][0], "a branch stands aside"


def test_very_many_snapshots_are_drawn_within_bounds(bed: Bed) -> None:
    bed.begin("lease-1", "/n.ipynb")
    for number in range(300):
        bed.snapshot(f"s{number}")
        bed.back(f"s{number // 2}", f"vm-{number + 2}")
    tree = fromstring(draw_tree(session(bed)))
    assert len(list(tree.iter(f"{SVG}circle"))) == 201


def test_each_run_has_a_bar_in_each_plot_where_it_was_measured(bed: Bed) -> None:
    bed.begin("lease-1", "/n.ipynb")
    bed.run("a")
    bed.run("b", error="E")
    plots = fromstring(draw_runs(session(bed)))
    bars = [bar for bar in plots.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    assert len(bars) == 2 * 4
    assert {bar.get("fill") for bar in bars} == {"#1f77b4", "#c62828"}


def test_without_runs_there_is_no_plot(bed: Bed) -> None:
    bed.begin("lease-1", "/n.ipynb")
    assert draw_runs(session(bed)) == ""
