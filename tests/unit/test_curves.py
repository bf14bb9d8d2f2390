"""What VMs use over time: what is written down of it, and the picture of it in reports."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_bed import NOON, Bed, code, notebook

from agentvm_kernel.observe import curves as written
from agentvm_kernel.observe.curves import FOLDER, Curves, Moment
from agentvm_kernel.report.axis import Axis, clock, said
from agentvm_kernel.report.curves import curves_of, draw_curves
from agentvm_kernel.report.make import gather, make_report
from agentvm_kernel.report.record import Session

SVG = "{http://www.w3.org/2000/svg}"


def moment(time: float, cpu: float = 0.0, lease: str = "lease-1", vm: str = "vm-1", **more: float) -> Moment:
    return Moment(time=time, lease=lease, vm=vm, cpu=cpu, memory=more.pop("memory", 100e6), **more)


def kept(folder: Path) -> list[Moment]:
    lines = b"".join(path.read_bytes() for path in sorted(folder.glob("*.jsonl"))).splitlines()
    return [Moment.model_validate_json(line) for line in lines]


def test_a_vm_that_works_is_written_down_each_time_and_one_that_does_nothing_now_and_then(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    for second in range(600):
        works = 200 <= second < 230
        cpu = 0.02 * second + max(0, min(second - 199, 30)) * 0.9
        curves.take([moment(second, cpu), moment(second, 0.01 * second, lease="lease-2", vm="vm-2")])
        assert not works or max(one.time for one in kept(tmp_path)) == second
    times = {lease: [one.time for one in kept(tmp_path) if one.lease == lease] for lease in ("lease-1", "lease-2")}
    assert set(range(199, 230)) <= set(times["lease-1"]), "where it began to work is known to a second"
    assert len(times["lease-1"]) < 31 + 15
    assert times["lease-2"] == [0, 60, 120, 180, 240, 300, 360, 420, 480, 540]


@pytest.mark.parametrize("what", ["read", "written", "sent", "received", "memory"])
def test_whatever_a_vm_does_is_written_down(tmp_path: Path, what: str) -> None:
    curves = Curves(tmp_path)
    for second in range(10):
        curves.take([moment(second, **{what: 1e9 if second >= 5 else 2e8})])
    assert [one.time for one in kept(tmp_path)] == [0, 4, 5]


def test_another_vm_in_its_place_is_written_down_at_once(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    for second in range(6):
        curves.take([moment(second, vm="vm-1" if second < 3 else "vm-2")])
    assert [(one.time, one.vm) for one in kept(tmp_path)] == [(0, "vm-1"), (3, "vm-2")]


def test_a_day_of_work_is_some_thousand_lines(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    for second in range(0, 86_400, 2):
        curves.take([moment(second, 0.9 * second)])
    assert 1000 < len(kept(tmp_path)) < 10_000


def test_a_full_day_and_a_folder_that_is_none_are_no_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "_DAY_BYTES", 1000)
    curves = Curves(tmp_path / "c")
    for second in range(100):
        curves.take([moment(second, second)])
    (path,) = (tmp_path / "c").iterdir()
    assert 500 < path.stat().st_size <= 1000
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").write_text("")
    Curves(tmp_path / "file").take([moment(1)])


def test_old_days_go_and_a_link_is_not_written_through(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for day in range(1, 41):
        (folder / f"2020-01-{day:02}.jsonl").write_text("")
    Curves(folder).take([moment(1)])
    assert len(list(folder.iterdir())) == 30
    today = max(folder.iterdir())
    today.unlink()
    today.symlink_to(tmp_path / "elsewhere")
    Curves(folder).take([moment(2)])
    assert not (tmp_path / "elsewhere").exists()


# In reports


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def measured(bed: Bed, seconds: int = 60, vm: str = "vm-1", cpu: float = 0.5) -> None:
    curves = Curves(bed.paths.state / FOLDER)
    for second in range(seconds):
        more = {"read": 1e6 * second, "sent": 2e3 * second, "received": 5e3 * second}
        curves.take([moment(NOON + second, cpu * second, vm=vm, memory=1e8 + 2e6 * second, **more)])


def session_of(bed: Bed, *cells: str) -> tuple[Session, list[Moment]]:
    path = notebook(bed.paths.state.parent / "n.ipynb", *(code(cell) for cell in cells))
    (session,) = gather(path, bed.paths).found.sessions
    return session, curves_of([session], bed.paths.state / FOLDER).get(session.lease, [])


def paths_of(svg: str, colour: str) -> list[list[list[tuple[float, float]]]]:
    """The lines of a colour, each as its stretches, as points."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if path.get("stroke") == colour:
            stretches = path.attrib["d"].split("M")[1:]
            numbers = [[float(one) for one in re.findall(r"[0-9.]+", stretch)] for stretch in stretches]
            found.append([list(zip(one[::2], one[1::2], strict=True)) for one in numbers])
    return found


def test_the_page_shows_what_was_used_over_time_with_a_band_for_each_run(bed: Bed) -> None:
    path = bed.paths.state.parent / "n.ipynb"
    bed.begin(notebook=str(path))
    bed.now = NOON + 5
    bed.run("a")
    bed.snapshot("s1")
    bed.now = NOON + 30
    bed.run("b", error="ValueError")
    bed.back("s1", "vm-1b")
    bed.end()
    measured(bed)
    page = make_report(notebook(path, code("a"), code("b")), bed.paths).page
    (svg,) = re.findall(r'<svg [^>]*class="curves".*?</svg>', page)
    root = ElementTree.fromstring(svg)
    titles = [one.text or "" for one in root.iter(f"{SVG}title")]
    assert [re.sub(", .*", "", one) for one in titles[1:]] == ["run 1: completed", "run 2: failed"]
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert {"CPU, cores", "memory", "disk", "network", "0.50", "1.0 MB/s", "5.0 kB/s"} <= set(texts)
    assert len(list(root.iter(f"{SVG}path"))) == 6 + 2, "a line for each measure, and where it was saved and gone back"
    assert not re.search(r"<script|href|url\(|on[a-z]+=", svg)
    bands = [one for one in root.iter(f"{SVG}rect") if one.get("fill") in {"#e8eef5", "#dbe5f0"}]
    assert len(bands) == 2


def test_a_rate_that_stays_the_same_is_a_level_line_and_breaks_where_the_vm_is_another(bed: Bed) -> None:
    bed.begin(notebook=str(bed.paths.state.parent / "n.ipynb"))
    bed.run("a")
    bed.end()
    first = [moment(NOON + second, 0.5 * second) for second in range(20)]
    second = [moment(NOON + 20 + second, 0.25 * second, vm="vm-2") for second in range(20)]
    session, _ = session_of(bed, "a")
    (cpu, memory) = paths_of(draw_curves(session, [*first, *second]), "#1f77b4")[:2]
    assert len(cpu) == 2, "what happened between two VMs is not known"
    assert [len({y for _, y in stretch}) for stretch in cpu] == [1, 1]
    (above,), (below,) = ({y for _, y in stretch} for stretch in cpu)
    assert below > above, "half as much is lower"
    assert all(x < other for stretch in (*cpu, *memory) for (x, _), (other, _) in itertools.pairwise(stretch))


def test_a_long_session_makes_no_long_picture(bed: Bed) -> None:
    bed.begin(notebook=str(bed.paths.state.parent / "n.ipynb"))
    for number in range(2000):
        bed.run(f"{number}")
    bed.end()
    session, _ = session_of(bed, "1")
    moments = [moment(NOON + second, second * (second % 7), sent=second * second) for second in range(20_000)]
    svg = draw_curves(session, sorted(moments, key=lambda one: one.time))
    assert len(svg) < 250_000
    ElementTree.fromstring(svg)


def test_no_picture_is_drawn_of_nothing(bed: Bed) -> None:
    path = bed.paths.state.parent / "n.ipynb"
    bed.begin(notebook=str(path))
    bed.run("a")
    bed.end()
    page = make_report(notebook(path, code("a")), bed.paths).page
    assert 'class="curves"' not in page
    assert "Over time" not in page


def test_lines_that_are_none_are_left_out_and_other_sessions_too(bed: Bed) -> None:
    bed.begin(notebook=str(bed.paths.state.parent / "n.ipynb"))
    bed.run("a")
    bed.end()
    measured(bed, 5)
    (path,) = (bed.paths.state / FOLDER).iterdir()
    good = path.read_text().splitlines()
    other = good[1].replace("lease-1", "lease-2").replace('"vm":"vm-1"', '"vm":"lease-1"')
    evil = '{"time":1e999,"lease":"lease-1","vm":"v","cpu":1,"memory":1}'
    path.write_text("\n".join([good[0][:-9], *good, "lease-1", other, evil, '{"lease":"lease-1"}', good[2][:30]]))
    _, moments = session_of(bed, "a")
    assert [one.time - NOON for one in moments] == [0, 1, 2, 3, 4]


def test_an_axis_leaves_out_what_is_long_and_idle() -> None:
    axis = Axis([(0, 10), (3600, 3640), (3645, 3650)], 90, 750)
    assert axis.x(-100) == axis.x(-0.5) == 90
    assert axis.x(3650.5) == pytest.approx(750)
    assert axis.x(10.5) == axis.x(1800) == axis.x(3000)
    places = [axis.x(second) for second in (0, 5, 10, 3600, 3620, 3640, 3642, 3650)]
    assert places == sorted(places)
    assert places[1] - places[0] == pytest.approx((places[4] - places[3]) / 4), "one scale for all"
    ticks = list(axis.ticks())
    assert [label for _, label, is_cut in ticks if is_cut] == ["59.8 min"]
    labels = [(x, label) for x, label, is_cut in ticks if not is_cut]
    assert labels[0] == (pytest.approx(90), "0 s")
    assert all(other - x >= 40 for (x, _), (other, _) in itertools.pairwise(labels))


def test_an_axis_of_many_pieces_stays_an_axis() -> None:
    axis = Axis([(number * 1000, number * 1000 + 1) for number in range(500)], 90, 750)
    places = [axis.x(second) for second in range(0, 500_000, 250)]
    assert places == sorted(places)
    assert places[0] >= 90
    assert places[-1] <= 750.001
    assert len(list(axis.ticks())) < 50
    assert Axis([(5, 5)], 90, 750).x(5) == pytest.approx(420)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (0.5, "0.5 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2 h"), (1e6, "11.6 d")]
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert said(seconds) == text


def test_moments_are_told_as_clocks_do() -> None:
    told = [clock(seconds) for seconds in (0, 0.2, 30, 60, 3599, 3600, 90_061)]
    assert told == ["0 s", "0.2 s", "30 s", "1:00", "59:59", "1:00:00", "25:01:01"]


def test_nothing_of_a_file_is_read_without_end(tmp_path: Path, bed: Bed) -> None:
    folder = bed.paths.state / FOLDER
    folder.mkdir(parents=True)
    (folder / "2026-01-01.jsonl").write_bytes(b'{"lease":"lease-1"' + b" " * (8 << 20))
    os.truncate(folder / "2026-01-01.jsonl", 64 << 20)
    bed.begin(notebook=str(bed.paths.state.parent / "n.ipynb"))
    bed.run("a")
    bed.end()
    assert session_of(bed, "a")[1] == []
