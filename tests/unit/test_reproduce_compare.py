"""What is the same and what is not: texts, numbers, pictures, markers, rules; seeded changes of one place are found."""

from __future__ import annotations

import base64
import io
import random
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_bed import Output, text

from agentvm_kernel.kernel.network import note
from agentvm_kernel.report.document import Cell
from agentvm_kernel.reproduce.compare import Comparison, Rules, compare
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.judge import Judge, file_verdicts, loose_verdicts, undone
from agentvm_kernel.reproduce.markers import Marker, markers_of
from agentvm_kernel.reproduce.normalise import DEFAULTS, OF_FORKS, Normaliser, read_normalisers
from agentvm_kernel.reproduce.path import Step
from agentvm_kernel.reproduce.pictures import Tolerance
from agentvm_kernel.reproduce.player import Shown
from agentvm_kernel.reproduce.verdict import FileVerdict, Outcome, Verdict, lines_of
from agentvm_kernel.supervisor.messages import Blocked

EXACT = Rules(())
USUAL = Rules()


def display(**data: Any) -> Output:
    names = {"plain": "text/plain", "html": "text/html", "png": "image/png", "json": "application/json"}
    return {"output_type": "display_data", "data": {names[name]: one for name, one in data.items()}, "metadata": {}}


def result(words: str) -> Output:
    return {"output_type": "execute_result", "data": {"text/plain": words}, "metadata": {}, "execution_count": 1}


def error(name: str = "ValueError", value: str = "no", *trace: str) -> Output:
    return {"output_type": "error", "ename": name, "evalue": value, "traceback": list(trace)}


def png(*pixels: tuple[int, int, int], width: int = 2, **options: Any) -> str:
    image = Image.new("RGB", (width, len(pixels) // width))
    image.putdata(list(pixels))
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return base64.b64encode(file.getvalue()).decode()


RED, DARK, BLUE = (255, 0, 0), (250, 0, 0), (0, 0, 255)


def same(saved: list[Output], shown: list[Output], rules: Rules = USUAL) -> Comparison:
    found = compare(saved, shown, rules)
    assert (found.is_same, found.what, found.diff) == (True, "", ())
    return found


def differs(saved: list[Output], shown: list[Output], rules: Rules = USUAL) -> Comparison:
    found = compare(saved, shown, rules)
    assert not found.is_same
    assert found.what
    return found


@pytest.mark.parametrize(
    ("saved", "shown"),
    [
        ([], []),
        ([text("a\n"), text("b\n")], [text("a\nb\n")]),
        ([text("a"), text("!", "stderr"), text("b")], [text("!", "stderr"), text("ab")]),
        ([{**text(""), "text": ["a\n", "b"]}], [text("a\nb")]),
        ([text("10%\r50%\r100%\n")], [text("99%\r100%\n")]),
        ([display(json={"a": 1, "b": [2]})], [display(json={"b": [2], "a": 1})]),
        ([display(png="aGVs\nbG8=\n")], [display(png="aGVsbG8=")]),
        ([{**result("1"), "execution_count": 7}], [result("1")]),
        ([result("1")], [display(plain="1")]),
    ],
)
def test_what_is_written_otherwise_only_is_the_same(saved: list[Output], shown: list[Output]) -> None:
    assert same(saved, shown, EXACT).by == ()


@pytest.mark.parametrize(
    ("saved", "shown", "what"),
    [
        ([text("1\n")], [], "it showed stdout, and shows nothing"),
        ([], [text("1\n")], "it showed nothing, and shows stdout"),
        ([text("1\n")], [text("1\n", "stderr")], "it showed stdout, and shows stderr"),
        ([text("a\nb\n")], [text("a\nc\n")], "stdout: line 2 differs"),
        ([text("a\n")], [text("a\nb\n")], "stdout: line 2 differs"),
        ([result("1"), result("2")], [result("1")], "it showed display, display, and shows display"),
        ([result("1"), result("2")], [result("2"), result("1")], "text/plain: line 1 differs"),
        ([display(plain="a")], [display(plain="a", html="a")], "a display had text/plain, and has text/html, text/pl"),
        ([display(json={"a": 1})], [display(json={"a": 2})], "application/json: line 2 differs"),
        ([error(value="1")], [error(value="2")], "error: line 1 differs"),
        ([error("A", "x", "in a")], [error("A", "x", "in b")], "error: line 2 differs"),
    ],
)
def test_what_differs_is_named(saved: list[Output], shown: list[Output], what: str) -> None:
    assert differs(saved, shown).what.startswith(what)


def test_a_difference_has_a_unified_diff() -> None:
    lines = [f"row {number}" for number in range(20)]
    found = differs([text("\n".join(lines))], [text("\n".join([*lines[:9], "other", *lines[10:]]))])
    assert found.diff[:2] == ("--- saved", "+++ now")
    assert [line for line in found.diff if line[0] in "+-"][2:] == ["-row 9", "+other"]


def test_one_changed_digit_is_found_wherever_it_is() -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(200):
        shown = "\n".join(f"{rng.random():.6f} value {rng.randrange(1000)}" for _ in range(rng.randrange(1, 12)))
        places = [place for place, one in enumerate(shown) if one.isdigit()]
        place = rng.choice(places)
        digit = rng.choice([one for one in "0123456789" if one != shown[place]])
        saved = f"{shown[:place]}{digit}{shown[place + 1 :]}"
        line = shown.count("\n", 0, place) + 1
        assert differs([text(saved)], [text(shown)]).what == f"stdout: line {line} differs", f"seed {seed}"


@pytest.mark.parametrize(
    ("saved", "shown", "name"),
    [
        ("<A at 0x7f00aa10>", "<A at 0x7f00bb20>", "memory-addresses"),
        ("took 1.23 ms", "took 4 s", "durations"),
        ("Cell In[3], line 1", "Cell In[14], line 1", "execution-counts"),
        ("/tmp/ipykernel_1/2.py", "/tmp/ipykernel_33/44.py", "cell-files"),
        ("2024-01-02 03:04:05", "2026-11-12 13:14:15.5", "timestamps"),
        ("machine: vm-40c5a94d", "machine: vm-e3afdbea", "machine-names"),
        ("123e4567-e89b-12d3-a456-426614174000", "00000000-e89b-12d3-a456-426614174fff", "uuids"),
    ],
)
def test_what_differs_by_nature_is_taken_out_and_named(saved: str, shown: str, name: str) -> None:
    assert same([text(saved)], [text(shown)]).by == (name,)
    differs([text(saved)], [text(shown)], EXACT)
    colour = "\x1b[38;5;32m"
    assert same([text(f"{colour}{saved}")], [text(f"{colour}{shown}")]).by == (name,), "as tracebacks have it"
    differs([text(f"{colour}{saved}")], [text(f"\x1b[31m{shown}")])
    differs([text(f"m{saved[-1]}{saved}")], [text(f"m{saved[-2]}{shown}")])


def test_a_traceback_of_another_cells_number_is_the_same() -> None:
    """As IPython colours it."""
    line = "\x1b[36mCell\x1b[39m\x1b[36m \x1b[39m\x1b[32mIn[{}]\x1b[39m\x1b[32m, line 1\x1b[39m"
    assert same([text(line.format(5))], [text(line.format(16))]).by == ("execution-counts",)


def refused(*names: str) -> str:
    return note([Blocked(name=name, port=80, reason="", hint=f"%net allow {name}") for name in names])


def test_which_refusals_the_host_has_told_of_by_then_is_chance() -> None:
    one, both = text(refused("a.example"), "stderr"), text(refused("a.example", "192.0.2.1"), "stderr")
    for saved, shown in (([one], [both]), ([text("x\n"), both], [text("x\n")]), ([], [one])):
        assert compare(saved, shown, Rules()) == Comparison(True, ("refusals",))
    assert compare([one], [one], Rules()) == Comparison(True)
    fonts = text("Matplotlib is building the font cache; this may take a moment.\n", "stderr")
    assert compare([fonts, one], [one], Rules()) == Comparison(True, ("font-cache",))


def test_beside_a_refusal_a_difference_is_one_and_no_other_text_passes_for_it() -> None:
    saved = [text("bad\n" + refused("a.example"), "stderr")]
    shown = [text("good\n" + refused("b.example"), "stderr")]
    assert "line 1 differs" in compare(saved, shown, Rules()).what
    started = "Refused by the network policy: x\n"
    for other in (refused("a.example"), f"{started}never ends\n", f"{started}{'more' * 99}\n%net log shows all.\n"):
        name = "stdout" if other == refused("a.example") else "stderr"
        assert not compare([text(other, name)], [], Rules()).is_same


def test_rules_that_were_not_needed_are_not_named() -> None:
    assert same([text("at 0x7f00aa10 in 1 s")], [text("at 0x7f00aa10 in 1 s")]).by == ()
    assert same([text("at 0x7f00aa10 in 1 s")], [text("at 0x7f00bb20 in 1 s")]).by == ("memory-addresses",)


def test_a_difference_beside_one_by_nature_is_found() -> None:
    found = differs([text("x = 1\nat 0x7f00aa10")], [text("x = 2\nat 0x7f00bb20")])
    assert found.what == "stdout: line 1 differs"
    assert "0xADDRESS" in "".join(found.diff)


@pytest.mark.parametrize(
    ("saved", "shown", "rules", "is_same"),
    [
        ("loss 1.0001", "loss 1.0002", Rules(relative=1e-3), True),
        ("loss 1.0001", "loss 1.0002", Rules(relative=1e-5), False),
        ("loss 1e-9", "loss 0.0", Rules(absolute=1e-6), True),
        ("loss 1e-9", "loss 0.0", Rules(relative=1e-3), False),
        ("a 1.0 b", "a 1.0 c", Rules(relative=0.5), False),
        ("1 2", "1 2 3", Rules(relative=0.5), False),
        ("nan 1.0", "nan 1.0001", Rules(relative=0.5), True),
        (f"{'9' * 400}", f"{'8' * 400}", Rules(relative=0.5), False),
        ("-1.0", "1.0", Rules(relative=0.5), False),
    ],
)
def test_numbers_may_differ_within_the_tolerance(saved: str, shown: str, rules: Rules, is_same: bool) -> None:
    found = compare([result(saved)], [result(shown)], rules)
    assert found.is_same == is_same
    assert ("tolerance" in found.by) == is_same


def test_pictures_are_compared_by_their_pixels() -> None:
    first = png(RED, BLUE, RED, BLUE)
    assert same([display(png=first)], [display(png=png(RED, BLUE, RED, BLUE, compress_level=0))]).by == ("pixels",)
    other = png(RED, BLUE, RED, RED)
    assert differs([display(png=first)], [display(png=other)]).what == "image/png: 1 of 4 pixels differ"
    same([display(png=first)], [display(png=other)], Rules(pictures=Tolerance(share=0.25)))
    differs([display(png=first)], [display(png=other)], Rules(pictures=Tolerance(share=0.24)))
    wide = png(RED, BLUE, RED, BLUE, width=4)
    assert "2 x 2 pixels before, 4 x 1 now" in differs([display(png=first)], [display(png=wide)]).what


@pytest.mark.parametrize(("level", "is_same"), [(4, False), (5, True)])
def test_a_pixel_may_differ_by_the_level(level: int, is_same: bool) -> None:
    rules = Rules(pictures=Tolerance(level=level))
    found = compare([display(png=png(RED, RED))], [display(png=png(RED, DARK))], rules)
    assert found.is_same == is_same


def test_pictures_that_cannot_be_decoded_or_are_too_large_differ() -> None:
    small = png(RED, RED)
    whole = base64.b64decode(small)
    huge = whole[:16] + (100_000).to_bytes(4, "big") * 2 + whole[24:]
    large = whole[:16] + (5001).to_bytes(4, "big") * 2 + whole[24:29] + b"\0" * 4 + whole[33:]
    checksum = zlib.crc32(large[12:29]).to_bytes(4, "big")
    large = large[:29] + checksum + large[33:]
    said = differs([display(png=small)], [display(png=base64.b64encode(large).decode())]).what
    assert "more than 25000000 pixels" in said
    for broken in (b"not a picture", whole[:40], huge, whole.replace(b"IDAT", b"IDAX")):
        said = differs([display(png=small)], [display(png=base64.b64encode(broken).decode())]).what
        assert "cannot be decoded" in said
    gif = io.BytesIO()
    Image.new("RGB", (2, 1)).save(gif, "GIF")
    said = differs([display(png=small)], [display(png=base64.b64encode(gif.getvalue()).decode())]).what
    assert "cannot be decoded" in said, "what says that it is a PNG is decoded as nothing else"


@pytest.mark.timeout(120)  # a pattern that backtracks takes days
def test_no_text_and_no_pattern_makes_a_comparison_hang() -> None:
    many = "a" * 400_000 + "0" * 400_000
    rule = Normaliser("evil", "(a+)+$|(0|0)*x", "")
    for saved, shown in (
        (many, f"{many}!"),
        ("\n".join("ab" * 1000), "\n".join("ba" * 1000)),
        ("1" * 9**6, "2" * 9**6),
    ):
        differs([text(saved)], [text(shown)], Rules((*DEFAULTS, rule), relative=0.1))


# Markers and verdicts


@pytest.mark.parametrize(
    ("source", "tags", "expected"),
    [
        ("# NBVAL_IGNORE_OUTPUT\n1", (), {Marker.IGNORE}),
        ("1\n  #NBVAL_SKIP", (), {Marker.SKIP}),
        ("# please NBVAL_SKIP", (), set()),
        ("'NBVAL_SKIP'", (), set()),
        ("NBVAL_SKIP", (), set()),
        ("1", ("nbval-ignore-output", "other"), {Marker.IGNORE}),
        ("1", ("NBVAL_CHECK_OUTPUT",), {Marker.CHECK}),
        ("1", ("raises-exception",), {Marker.RAISES}),
        ("# NBVAL_RAISES_EXCEPTION\n1", ("nbval-skip",), {Marker.RAISES, Marker.SKIP}),
    ],
)
def test_markers_are_comments_and_tags(source: str, tags: tuple[str, ...], expected: set[Marker]) -> None:
    assert markers_of(Cell("code", "", source, tags=tags)) == expected


def judged(source: str, saved: list[Output], shown: list[Output] | None, *tags: str, **about: Any) -> Verdict:
    cell = Cell("code", "", source, outputs=tuple(saved), tags=tags)
    now = None if shown is None else Shown(Step(source, 0, 7), tuple(shown), **about)
    return Judge(USUAL).verdict(1, cell, now)


def test_each_verdict() -> None:
    assert judged("f()", [text("1")], [text("1")]).word == "same"
    assert judged("f()", [text("1")], [text("2")]).word == "differs"
    failed = judged("f()", [text("1")], [error("KeyError", "'k'")])
    assert (failed.word, failed.run, "KeyError" in failed.what) == ("error", 7, True)
    assert judged("f()", [error()], [error()]).word == "same"
    assert judged("f()", [error()], [text("1")]).word == "differs"
    assert judged("f()", [text("1")], None).word == "not run"
    assert judged("f()", [text("1")], [], lost="the VM is gone").what == "the VM is gone"
    assert judged("%push x", [text("1")], [error()], refused="%push is not carried out").word == "not run"


def test_what_markers_do() -> None:
    assert judged("f()", [text("1")], [text("2")], "nbval-ignore-output").by == ("marker",)
    assert judged("f()", [text("1")], [error()], "nbval-ignore-output").word == "error"
    assert judged("f()", [], [error()], "nbval-ignore-output", "raises-exception").word == "same"
    assert judged("f()", [error()], [error()], "raises-exception").word == "same"
    assert judged("f()", [error(value="1")], [error(value="2")], "raises-exception").word == "differs"
    assert judged("f()", [], [], "raises-exception").word == "differs"
    skipped = judged("f()", [text("1")], [text("1")], "nbval-skip")
    assert (skipped.word, skipped.is_wanted) == ("not run", True)


def test_lax_compares_only_what_is_marked_to_be() -> None:
    judge = Judge(USUAL, is_lax=True)
    shown = Shown(Step("f()", 0), (text("2"),))
    assert judge.verdict(1, Cell("code", "", "f()", outputs=(text("1"),)), shown).by == ("lax",)
    checked = Cell("code", "", "f()", outputs=(text("1"),), tags=("nbval-check-output",))
    assert judge.verdict(1, checked, shown).word == "differs"


def test_what_host_magics_show_is_not_compared_but_whether_they_succeed() -> None:
    assert judged("%snapshots", [display(plain="a 3 s")], [display(plain="b 4 s")]).by == ("host-magic",)
    assert judged("%rollback x", [display(plain="Back")], [error()]).word == "error"
    assert judged("%rollback x", [error()], [display(plain="Back")]).word == "differs"


def test_no_report_is_made_again_and_that_is_as_wanted() -> None:
    one = judged("%report --zip", [display(plain="The report is in n.zip")], [error()], refused="not carried out")
    assert (one.word, one.is_wanted) == ("not run", True)


TABLE = "fork  status  time    CPU     memory   result\n1     ok      {}  0.10 s  {}  {}\n%adopt K makes fork K it."


def test_forks_are_compared_without_what_they_cost() -> None:
    saved = [display(plain=TABLE.format("0.20 s", "12.3 MB", "42"), html="a")]
    shown = [display(plain=TABLE.format("10.21 s", "9.1 MB ", "42"), html="b")]
    assert set(judged("%%fork 1\n42", saved, shown).by) == {"durations", "sizes", "columns"}
    other = [display(plain=TABLE.format("0.20 s", "12.3 MB", "43"))]
    assert judged("%%fork 1\n42", saved, other).word == "differs"


def test_the_line_of_what_a_cell_cost_is_left_out_and_that_is_said() -> None:
    footer = {**display(plain="0.20 s", html="<div>"), "metadata": {"agentvm": {"facts": True}}}
    assert judged("f()", [text("1"), footer], [text("1")]).by == ("costs",)


DIGEST = "ab" * 32


def pulled(saved: dict[str, Any], now: dict[str, Any], shown: str = "") -> list[FileVerdict]:
    cell = Cell("code", "", "%pull out.csv", outputs=(display(plain=shown),) if shown else (), metadata=saved)
    return file_verdicts([cell], {0: Shown(Step("%pull out.csv", 0), (), reply=now)})


def test_a_files_digest_is_held_against_the_recorded_one() -> None:
    recorded = {"agentvm": {"run": 1, "copied": {"way": "pull", "sha256": DIGEST}}}
    (one,) = pulled(recorded, {"copied": {"sha256": DIGEST}})
    assert (one.word, one.path) == ("same", "'out.csv'")
    (one,) = pulled(recorded, {"copied": {"sha256": "cd" * 32}})
    assert (one.word, one.saved, one.now) == ("differs", DIGEST, "cd" * 32)
    (one,) = pulled(recorded, {})
    assert one.word == "not run"
    (one,) = pulled({}, {"copied": {"sha256": DIGEST}}, f"out.csv is here as out.csv: 1 kB, SHA-256 {DIGEST[:12]}.")
    assert one.word == "same", "where no metadata is kept, the output has the beginning of it"
    (one,) = pulled({}, {"copied": {"sha256": DIGEST}})
    assert one.word == "differs", "what is not recorded is not the same"


def outcome(
    *words: str, is_exact: bool = True, is_wanted: bool = False, files: tuple[FileVerdict, ...] = ()
) -> Outcome:
    cells = tuple(Verdict(1, 1, word, is_wanted=is_wanted) for word in words)  # type: ignore[arg-type]
    return Outcome("n.ipynb", "document", (), {}, is_exact, (), cells, files)


def test_what_was_copied_without_a_cell_is_held_against_its_recorded_digest() -> None:
    paths = ("same", "other", "failed", "unreached")
    steps = [Step(f"%pull '{one}'", None, 1, "", "a" * 64) for one in paths]
    steps += [Step("%push 'in'", None, 1, "", "b" * 64), Step("%snapshot s"), Step("1 / 0"), Step("%pull x", 3, 1)]
    error = {"output_type": "error", "ename": "E", "evalue": "no such file", "traceback": []}
    copied = [{"copied": {"sha256": digest * 64}} for digest in "abb"]
    shown = [
        Shown(steps[0], (), reply=copied[0]), Shown(steps[1], (), reply=copied[1]), Shown(steps[2], (error,)),
        Shown(steps[4], (), reply=copied[0]), Shown(steps[5], (), refused="not here"), Shown(steps[6], (error,)),
    ]  # fmt: skip
    verdicts = loose_verdicts(steps, shown)
    assert [(one.cell, one.path, one.word) for one in verdicts] == [
        (0, "'same'", "same"), (0, "'other'", "differs"), (0, "'failed'", "not run"), (0, "'unreached'", "not run"),
    ]  # fmt: skip
    assert list(undone(shown)) == [
        "Not done: %pull 'failed': 'no such file'",
        f"Another file than then: %push 'in' (recorded {'b' * 64}, now {'a' * 64})",
        "Not done: %snapshot s: not here",
    ]


def test_the_exit_code_is_0_only_if_all_is_the_same_in_the_same_image() -> None:
    assert outcome("same", "same").status == 0
    assert outcome("same", is_exact=False).status == 3
    for word in ("differs", "error", "not run"):
        assert outcome("same", word).status == 1
        assert outcome("same", word, is_exact=False).status == 1
    assert outcome("not run", is_wanted=True).status == 0
    assert outcome("same", files=(FileVerdict(1, "x", "differs"),)).status == 1


# Rules from a file


def test_rules_are_read_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text("[[normaliser]]\nname = 'run-id'\npattern = 'run-([a-z])[0-9]+'\nreplacement = 'run-\\1N'\n")
    rules = Rules((*DEFAULTS, *read_normalisers(file)))
    assert same([text("run-a17 done")], [text("run-a42 done")], rules).by == ("run-id",)
    differs([text("run-a17")], [text("run-b17")], rules)


def test_the_rules_of_the_document_are_valid_and_its_table_names_all_that_are_usual(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
    file = tmp_path / "rules.toml"
    file.write_text(page.partition("```toml\n")[2].partition("```")[0])
    assert same([text("run-17")], [text("run-4")], Rules(read_normalisers(file))).by == ("run-id",)
    for rule in OF_FORKS:
        assert f"`{rule.name}`" in page


@pytest.mark.parametrize(
    "content",
    [
        "[[normaliser]]\nname = 'a'\npattern = '('",
        "[[normaliser]]\nname = 'a'\npattern = '(?=x)'",
        "[[normaliser]]\nname = 'a'\npattern = 'x'\nreplacement = '\\2'",
        "[[normaliser]]\nname = 'a'\npattern = 'x'\nreplacement = 'y\\9'",
        "[[normaliser]]\nname = 'A B'\npattern = 'x'",
        "[[normaliser]]\nname = 'a'\npattern = ''",
        "[[normaliser]]\nname = 'a'\npattern = 'x'\nother = 1",
        "[[normaliser]]\nname = 'a'\npattern = 'x{1000}{1000}'",
        f"[[normaliser]]\nname = 'a'\npattern = '{'x' * 1001}'",
        "[[normaliser]]\nname = 'a'\npattern = 'x'\n" * 51,
        "normaliser = 1",
        "not toml",
        "\0",
    ],
)
def test_a_file_that_has_no_rules_is_refused_with_the_remedy(tmp_path: Path, content: str) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(content)
    with pytest.raises(ReproduceError) as caught:
        read_normalisers(file)
    assert str(file) in caught.value.message
    assert "docs/reproduce.md" in caught.value.hint


def test_what_is_printed_names_each_verdict_and_whether_all_is_the_same() -> None:
    differing = Verdict(2, 5, "differs", "line 1 differs", diff=("--- saved", "+++ now", *[f"-{n}" for n in range(50)]))
    cells = (Verdict(1, 4, "same", by=("durations",)), differing)
    files = (FileVerdict(3, "'x'", "differs", "ab", "cd"),)
    lines = list(lines_of(Outcome("n", "by the record", ("signed by you",), {}, False, ("a note",), cells, files)))
    assert lines[:5] == [
        "signed by you", "Path: by the record.", "a note", "cell 1 (run 4): same: after durations",
        "cell 2 (run 5): differs: line 1 differs",
    ]  # fmt: skip
    assert "    … 12 more lines: see verdict.json" in lines
    assert lines[-2] == "file 'x' of cell 3: differs (recorded ab, now cd)"
    assert lines[-1].startswith("Not the same: 1 same, 1 differs; in a machine of ANOTHER IMAGE")
