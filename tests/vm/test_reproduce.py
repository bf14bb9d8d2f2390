"""Notebooks run again in real VMs: all the same where they are deterministic, else exactly what was changed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from audited import audited, audited_soon
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packed import files_of, signed, write
from soak import IS_SOAK
from vms import environment_of, own_supervisor

from agentvm_kernel.config import Paths
from agentvm_kernel.report.signature import own_key

dear = pytest.mark.skipif(not IS_SOAK, reason="takes long; AGENTVM_SOAK=1 runs it")

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

pytestmark = pytest.mark.timeout(900)


@dataclass
class Bed:
    """A supervisor, and a folder in which notebooks lie."""

    paths: Paths
    folder: Path

    def agentvm(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from agentvm_kernel.cli import main; main()", *words]
        environment = os.environ | environment_of(self.paths)
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=600, check=False
        )

    def recorded(self, notebook: Path, *options: str) -> Path:
        """Run a notebook as users do, and pack its report."""
        out = self.folder / notebook.stem
        before = len(audited(self.paths.state, "lease_released"))
        ran = self.agentvm("run", str(notebook), "--out", str(out), *options)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        audited_soon(self.paths.state, before + 1, "lease_released")
        made = self.agentvm("report", str(out / notebook.name), "--zip")
        assert made.returncode == 0, made.stderr
        return out / f"{notebook.stem}.report.zip"

    def reproduced(self, source: Path, *options: str) -> tuple[int, dict[str, Any], str]:
        """Run it again; return the exit code, the verdict, and what was said besides."""
        out = self.folder / f"{source.name}.out"
        done = self.agentvm("reproduce", str(source), "--out", str(out), "--json", *options)
        verdict = json.loads((out / "verdict.json").read_text()) if out.is_dir() else {}
        if verdict:
            assert json.loads(done.stdout) == verdict
            assert sorted(one.name for one in out.iterdir() if one.name != "files") == [
                "notebook.ipynb",
                "verdict.json",
            ]
            nbformat.validate(nbformat.read(out / "notebook.ipynb", as_version=4))
        return done.returncode, verdict, done.stderr


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with own_supervisor() as paths:
        yield Bed(paths, tmp_path_factory.mktemp("reproduce"))


def words(verdict: dict[str, Any]) -> list[str]:
    return [one["verdict"] for one in verdict["cells"]]


def assert_all_same(status: int, verdict: dict[str, Any], said: str) -> None:
    others = [one for one in verdict.get("cells", ()) if one["verdict"] != "same" and not one["is_wanted"]]
    assert (others, status) == ([], 0), (said, others, verdict.get("notes"))
    assert verdict["image"]["exact"]
    assert verdict["order"] == "by the record"


def test_time_travel(bed: Bed) -> None:
    status, verdict, said = bed.reproduced(bed.recorded(NOTEBOOKS / "time_travel.ipynb"))
    assert_all_same(status, verdict, said)
    assert verdict["notes"] == [], "the whole path is gone"
    (own,) = json.loads(bed.agentvm("snapshot", "list", "--json").stdout)["trees"]
    assert not own["notebook"].startswith("reproduce-"), "of the second run no snapshots are left"


def test_forks_draw_the_same_random_numbers_again(bed: Bed) -> None:
    status, verdict, said = bed.reproduced(bed.recorded(NOTEBOOKS / "fork.ipynb"))
    assert_all_same(status, verdict, said)
    compared = [one for one in verdict["cells"] if not {"host-magic", "marker"} & set(one["by"])]
    assert len(compared) >= 8, "what forks found, and what the notebook says of it, is compared"
    made = audited(bed.paths.state, "forks_made")
    assert len(made) == 10
    seeds = [one["seed"] for one in made]
    assert (seeds[:5], len(set(seeds))) == (seeds[5:], 5)


@pytest.mark.parametrize(
    ("name", "image", "compared"),
    [
        ("prompt_injection", "minimal", 4),
        pytest.param("quickstart", "standard", 7, marks=dear),
        pytest.param("agent_repair", "standard", 4, marks=dear),
        pytest.param("data_analysis", "standard", 6, marks=dear),
        pytest.param("random_seeds", "standard", 2, marks=dear),
    ],
)  # fmt: skip
def test_the_worked_examples(bed: Bed, name: str, image: str, compared: int) -> None:
    notebook = Path(shutil.copy(NOTEBOOKS / f"{name}.ipynb", bed.folder))
    status, verdict, said = bed.reproduced(bed.recorded(notebook, "--image", image))
    assert_all_same(status, verdict, said)
    assert [one for one in verdict["notes"] if "Not" in one] == []
    own = [one for one in verdict["cells"] if not {"host-magic", "marker"} & set(one["by"]) and not one["is_wanted"]]
    assert len(own) >= compared


# One change, one difference

WRITES = """\
from pathlib import Path
Path("made.csv").write_text("".join(f"{n},{n * n}\\n" for n in range(100)))"""
MEASURES = """\
import time
began = time.perf_counter()
print(object(), f"took {time.perf_counter() - began:.6f} s")"""
ASKS = "import urllib.request\nprint(urllib.request.urlopen('http://api.example.org/v1', timeout=30).read())"
CASSETTE = (
    {"format": "agentvm-cassette", "version": 1},
    {
        "request": {
            "method": "GET",
            "url": "http://api.example.org/v1",
            "headers": [],
            "body": "",
            "encoding": "utf-8",
        },
        "response": {"status": 200, "reason": "OK", "headers": [], "body": "recorded answer", "encoding": "utf-8"},
    },
)
LARGE = "import os\nprint('large:', os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') > 420 << 20)"
CELLS = (
    "total = sum(range(1234))\nprint('total', total, 'mean', total / 1234)",
    WRITES,
    "%pull made.csv",
    MEASURES,
    "1 / 0",
    "%net replay demo",
    ASKS,
    LARGE,
    "print(open('given.txt').read())",
)


def change_digit(text: str, rng: random.Random) -> str:
    place = rng.choice([place for place, one in enumerate(text) if one.isdigit()])
    digit = rng.choice([one for one in "0123456789" if one != text[place]])
    return f"{text[:place]}{digit}{text[place + 1 :]}"


@pytest.fixture(scope="module")
def packed(bed: Bed) -> Path:
    raises = {"tags": ["raises-exception"]}
    cells = [new_code_cell(one, metadata=raises if one == "1 / 0" else {}) for one in CELLS]
    notebook = bed.folder / "plain.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Plain"), *cells]), notebook)
    lines = "".join(json.dumps(line) + "\n" for line in CASSETTE)
    (bed.folder / "demo.cassette.jsonl").write_text(lines)
    (bed.folder / "given.txt").write_text("what was given")
    made = bed.recorded(notebook, "--allow", "api.example.org", "--in", "given.txt", "--result", "made.csv")
    assert "recorded answer" in made.with_name("plain.ipynb").read_text()
    made.with_name("demo.cassette.jsonl").write_text(lines)
    return made


def test_a_digit_a_file_and_a_package_that_were_changed_are_the_differences(bed: Bed, packed: Path) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    files = files_of(packed)
    node = json.loads(files["plain.ipynb"])
    record = json.loads(files["record.json"])
    code = [cell for cell in node["cells"] if cell["cell_type"] == "code"]
    (stream,) = code[0]["outputs"]
    stream["text"] = change_digit("".join(stream["text"]), rng)
    copied = code[2]["metadata"]["agentvm"]["copied"]
    before = copied["sha256"]
    copied["sha256"] = hashlib.sha256(b"another file").hexdigest()
    (digest,) = record["images"]
    packages = record["images"][digest]["packages"]["python_packages"]
    session = record["sessions"][0]
    session["limits"] = json.dumps(json.loads(session["limits"]) | {"cell_deadline": 77, "processes": 99_999})
    session["network"] += "; deny denied.example"
    assert (session["vcpus"], session["memory_mib"], session["disk_gb"]) == (1, 512, 4)
    session |= {"vcpus": 3, "memory_mib": 400}
    name = rng.choice(sorted(packages))
    packages[name] += ".post1"
    # An image of other packages has another digest.
    other = "f" * 64
    record["images"] = {other: record["images"][digest]}
    record["sessions"][0]["image"] = other
    changed = packed.with_name("changed.zip")
    content = {"plain.ipynb": json.dumps(node).encode(), "record.json": json.dumps(record).encode()}
    write(changed, signed(files | content, own_key(bed.paths.state)))

    status, verdict, said = bed.reproduced(changed)
    assert (status, verdict) == (2, {}), f"seed {seed}"
    differing = [line for line in said.splitlines() if " package " in line]
    assert len(differing) == 1, said
    assert f"Python package {name!a}: recorded {packages[name]}, now {packages[name].removesuffix('.post1')}" in said

    status, verdict, said = bed.reproduced(changed, "--anyway", "--allow-recorded", "--input", "given.txt")
    assert status == 1, f"seed {seed}"
    assert "Allowed as recorded, besides what the configuration allows:\napi.example.org\n" in said
    assert words(verdict) == ["differs", *["same"] * 6, "differs", "same"], (
        f"seed {seed}",
        json.dumps(verdict["cells"], indent=1),
    )
    assert verdict["cells"][7]["diff"][3:5] == ["-large: True", "+large: False"]
    (acquired,) = of_last(bed, "lease_acquired")
    assert (acquired["vcpus"], acquired["memory_mib"], acquired["disk_gb"]) == (1, 400, 4)
    started = [one for one in audited(bed.paths.state, "vm_started") if one["vm"] == acquired["vm"]]
    assert (bed.paths.cache / "golden" / started[0]["snapshot"] / "passing").is_file(), "it is not kept for ever"
    assert "The machine is smaller than the profile test has it, as recorded: 400 MiB of memory." in verdict["notes"]
    assert [line[0] for line in verdict["cells"][0]["diff"][3:5]] == ["-", "+"]
    assert verdict["cells"][0]["diff"][3][1:] == stream["text"].rstrip("\n")
    assert "Hosts are answered for by demo.cassette.jsonl, beside the notebook." in verdict["notes"]
    assert verdict["cells"][4]["by"] == [], "copies besides cells have no number"
    assert set(verdict["cells"][3]["by"]) == {"memory-addresses", "durations"}
    file, result = verdict["files"]
    assert (file["verdict"], file["saved"], file["now"]) == ("differs", copied["sha256"], before)
    assert (result["cell"], result["verdict"], result["saved"], result["now"]) == (0, "same", before, before)
    given = hashlib.sha256(b"what was given").hexdigest()
    assert [(one["way"], one["path"], one["digest"]) for one in of_last(bed, "files_copied")] == [
        ("push", "given.txt", given), ("pull", "made.csv", before), ("pull", "made.csv", before),
    ]  # fmt: skip
    terms = [one["what"] for one in of_last(bed, "configuration_changed")]
    assert terms[0] == "limits: {'cell_deadline': 77.0}"
    assert '"deny":["denied.example"]' in terms[1]
    larger, raised = [one for one in verdict["notes"] if "Not granted" in one]
    assert f"vcpus = 3, memory_mib = 512, disk_gb = 4 in {bed.paths.config} gives it" in larger
    assert "processes=99999 (here 2048)" in raised
    assert not verdict["image"]["exact"]
    assert len(verdict["image"]["differences"]) == 1
    assert name in verdict["image"]["differences"][0]


def of_last(bed: Bed, event: str) -> list[dict[str, Any]]:
    """Return what was written down of the newest session."""
    lease = audited(bed.paths.state, "lease_acquired")[-1]["lease"]
    return [one for one in audited(bed.paths.state, event) if one["lease"] == lease]


HOSTILE = (
    "%push /etc/hostname stolen",
    "%net allow evil.example",
    "# net: allow evil.example\nprint('reached')",
    "%report",
    "%limits timeout=9h",
    "open('x', 'w').write('from the guest')",
    "%pull x ../../../escaped",
    "import pathlib\nprint(pathlib.Path('stolen').exists())",
)


def test_a_hostile_notebook_runs_in_the_machine_only(bed: Bed) -> None:
    notebook = bed.folder / "hostile.ipynb"
    forged = {"agentvm": {"verdict": "same", "run": 1}}
    outputs = [new_output("stream", text="reached\n")]
    cells = [new_code_cell(one, metadata=forged, outputs=outputs) for one in HOSTILE]
    kept = {"profile": "test", "memory_mib": 400, "network": "isolated; allow evil.example", "vcpus": 64}
    nbformat.write(new_notebook(cells=cells, metadata={"agentvm": kept}), notebook)
    before = {path.name for path in bed.folder.iterdir()}
    status, verdict, _ = bed.reproduced(notebook, "--image", "minimal")
    assert status == 1
    assert words(verdict)[:5] == ["not run"] * 5
    assert all("not carried out" in one["what"] for one in verdict["cells"][:5])
    assert {path.name for path in bed.folder.iterdir()} - before == {"hostile.ipynb.out"}
    out = bed.folder / "hostile.ipynb.out"
    assert [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()].count("files/1/escaped") == 1
    assert (out / "files" / "1" / "escaped").read_text() == "from the guest"
    last = nbformat.read(out / "notebook.ipynb", as_version=4).cells[-1]
    assert last.outputs[0].text == "False\n", "nothing was copied in"
    allowed = [one for one in audited(bed.paths.state, "configuration_changed") if "evil" in json.dumps(one)]
    assert allowed == []
    (acquired,) = of_last(bed, "lease_acquired")
    assert (acquired["vcpus"], acquired["memory_mib"]) == (1, 400), (
        "what the metadata say takes away, and gives nothing"
    )
