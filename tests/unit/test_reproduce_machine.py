"""In which machine a notebook is run again: of the recorded image, or it is said what differs; never a larger one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_image import fake_layer, make_sources
from report_bed import code, notebook

from agentvm_kernel.config import Paths
from agentvm_kernel.egress.names import Pattern
from agentvm_kernel.errors import ImageError
from agentvm_kernel.image import ImageStore
from agentvm_kernel.profiles import Limits, Sizes
from agentvm_kernel.report.document import read_document
from agentvm_kernel.reproduce.again import Order, _stage
from agentvm_kernel.reproduce.compare import Rules
from agentvm_kernel.reproduce.environment import Used, compare_packages, find_image
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.hosts import recorded_hosts
from agentvm_kernel.reproduce.judge import Judge
from agentvm_kernel.reproduce.path import Leg, Step
from agentvm_kernel.reproduce.recorded import RecordedImage, RecordedSession, read_record
from agentvm_kernel.reproduce.source import Source
from agentvm_kernel.settings import Network
from agentvm_kernel.supervisor.execution_messages import digest_of
from agentvm_kernel.supervisor.lease_network import configured, summary_of

OTHER = "e" * 64


def quiet(_stage: str, _done: float | None) -> None:
    """Take progress and say nothing."""


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "cache", sources=make_sources(tmp_path), build_layer=fake_layer)


def recorded(**python: str) -> RecordedImage:
    packages = {"python_packages": python, "debian_packages": {"bash:amd64": "5"}}
    return RecordedImage(flavour="minimal", packages=packages)


def test_the_recorded_image_is_found_by_its_digest(store: ImageStore) -> None:
    image = store.build("minimal", quiet)
    used = find_image(image.digest, RecordedImage(), "", store, quiet)
    assert (used.digest, used.flavour, used.is_exact, used.differences) == (image.digest, "minimal", True, ())


def test_an_image_of_an_older_recipe_is_found_as_well(store: ImageStore, tmp_path: Path) -> None:
    old = store.build("minimal", quiet)
    (tmp_path / "guest" / "agentvm_guest" / "init.py").write_text("# newer\n")
    new = store.build("minimal", quiet)
    assert new.digest != old.digest
    assert find_image(old.digest, recorded(), "", store, quiet).is_exact
    assert store.find(old.digest) == old
    assert store.find("minimal") == new


def test_an_image_that_was_changed_is_not_leased_by_its_digest(store: ImageStore) -> None:
    image = store.build("minimal", quiet)
    manifest = image.folder / "manifest.json"
    manifest.chmod(0o600)
    manifest.write_text(manifest.read_text().replace("7.4.0", "7.4.1"))
    with pytest.raises(ImageError, match="was changed"):
        store.find(image.digest)


def test_an_image_that_is_nowhere_is_built_and_its_packages_are_held_against_the_recorded(store: ImageStore) -> None:
    used = find_image(OTHER, recorded(ipykernel="7.3.9", numpy="2.0"), "", store, quiet)
    assert not used.is_exact
    assert used.digest == store.build("minimal", quiet).digest
    assert used.differences == (
        "Python package 'ipykernel': recorded 7.3.9, now 7.4.0", "Python package 'numpy': recorded 2.0, now none"
    )  # fmt: skip


def test_what_is_not_known_of_an_image_is_told(store: ImageStore) -> None:
    assert "are not known" in find_image(OTHER, RecordedImage(), "minimal", store, quiet).differences[0]
    assert "not recorded" in find_image("", RecordedImage(), "minimal", store, quiet).differences[0]
    same = find_image(OTHER, recorded(ipykernel="7.4.0"), "", store, quiet)
    assert "all packages are the same" in same.differences[0]


@pytest.mark.parametrize("flavour", ["../../x", "other", "\x1b[31m"])
def test_a_flavour_that_is_none_is_refused(store: ImageStore, flavour: str) -> None:
    with pytest.raises(ReproduceError, match="not known here") as caught:
        find_image(OTHER, RecordedImage(), flavour, store, quiet)
    assert "minimal" in caught.value.hint
    assert caught.value.message.isprintable()


def test_many_packages_are_counted_and_hostile_names_do_nothing() -> None:
    before = {"python_packages": {f"p{number:04}": "1" for number in range(1000)} | {"\x1b[2J": "\n\x1b"}}
    lines = compare_packages(before, {})
    assert len(lines) == 51
    assert lines[-1] == "and 951 packages more"
    assert all(line.isprintable() for line in lines)


# The machine's profile, limits and network


PROFILE = "[profiles.test]\nvcpus = 1\nmemory_mib = 512\ndisk_gb = 4\n"


def stage_of(
    tmp_path: Path,
    session: dict[str, Any] | None,
    *steps: str,
    config: str = PROFILE,
    kept: dict[str, Any] | None = None,
    **wanted: Any,
) -> tuple[Any, list[str]]:
    (tmp_path / "config.toml").write_text(config)
    paths = Paths(tmp_path / "c", tmp_path / "s", tmp_path / "r", tmp_path / "config.toml")
    place = tmp_path / "place"
    place.mkdir()
    document = read_document(notebook(tmp_path / "n.ipynb", code("a"), **({"agentvm": kept} if kept else {})))
    source = Source(document, None, (), tmp_path)
    recorded = None if session is None else RecordedSession.model_validate({"profile": "test", **session})
    leg = Leg(recorded, tuple(map(Step, steps)))
    order = replace(Order(Judge(Rules()), tmp_path / "out"), **wanted)
    return _stage(source, leg, Used("1", "1", "minimal"), order, paths, place)


GIVEN = Limits().model_dump(exclude_none=True)


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ({"cell_deadline": 60}, "timeout=60s"),
        ({"cell_deadline": 60.5, "processes": 100}, "timeout=60.5s processes=100"),
        ({"lifetime": 3600, "cpu": 0.5, "user_memory_mib": 256}, "lifetime=3600s cpu=0.5 memory=256MiB"),
        ({"open_files": 100, "disk_mb_per_second": 5, "disk_iops": 7}, "disk_rate=5MB disk_iops=7 open_files=100"),
        ({"output_mib": 2, "output_mib_per_second": 1}, "output=2MiB output_rate=1MiB"),
        # The profile has one CPU and 512 MiB, though it limits neither.
        ({"cpu": 1, "user_memory_mib": 512}, ""),
        ({"cpu": 4, "user_memory_mib": 1 << 19}, ""),
        ({"cell_deadline": 300}, ""),
        ({"cell_deadline": 9e9}, ""),
        ({"cell_deadline": "61", "processes": True, "cpu": "1; !rm", "open_files": 70.5}, ""),
        ({"cell_deadline": 0, "processes": -1, "other": 5, "vcpus": 64}, ""),
        ([60], ""),
    ],
)
def test_limits_are_lowered_to_the_recorded_and_never_raised(tmp_path: Path, limits: Any, asked: str) -> None:
    said = GIVEN | limits if isinstance(limits, dict) else limits
    stage, _ = stage_of(tmp_path, {"limits": json.dumps(said)})
    assert stage.asked == ((f"%limits {asked}",) if asked else ())
    assert stage.permits.limits == tuple(asked.split())


def test_limits_that_were_higher_are_told_and_not_granted(tmp_path: Path) -> None:
    limits = GIVEN | {"cell_deadline": 600, "processes": 4096, "open_files": 100}
    del limits["disk_iops"]
    stage, notes = stage_of(tmp_path, {"limits": json.dumps(limits)})
    assert stage.asked == ("%limits open_files=100",)
    assert notes == [
        "Not granted, for the profile here gives less: timeout=600s (here 300s), disk_iops=none (here 5000), "
        "processes=4096 (here 2048)."
    ]


RULES = f"120 rules, SHA-256 {'1a' * 32}"
OPEN = f'[network]\nmode = "record-only"\n{PROFILE}'
LOCKED = f'[network]\nmode = "record-only"\ndirectives = false\n{PROFILE}'
SHUT = f'{PROFILE}network = "none"\n'


@pytest.mark.parametrize(
    ("config", "network", "asked", "told"),
    [
        (PROFILE, "isolated", ("%net mode isolated",), ""),
        (PROFILE, "filtered", (), ""),
        (PROFILE, "record-only", (), "was record-only, and is filtered here"),
        (OPEN, "filtered", ("%net mode filtered",), ""),
        (OPEN, "isolated", ("%net mode isolated",), ""),
        (OPEN, "record-only", (), ""),
        (LOCKED, "isolated", ("%net mode isolated",), ""),
        (LOCKED, "filtered", (), "lets no notebook change"),
        (SHUT, "filtered", (), "was filtered, and is isolated here"),
        (SHUT, "isolated", (), ""),
        (PROFILE, "filtered; deny a.example; allow b.example; deny **.c.example",
         ("%net deny a.example **.c.example",), "b.example"),
        (PROFILE, "filtered; deny a.example\n!rm; deny; deny a b; deny --x=$(y); deny ,", (), ""),
        (PROFILE, "", (), ""),
        (PROFILE, "; ; ;", (), ""),
        (PROFILE, "open; allow", (), ""),
    ],
)  # fmt: skip
def test_a_network_is_closed_as_it_was_and_never_opened(
    tmp_path: Path, config: str, network: str, asked: tuple[str, ...], told: str
) -> None:
    stage, notes = stage_of(tmp_path, {"network": network}, config=config)
    assert stage.asked == asked
    assert stage.permits.allow == ()
    assert [told in note for note in notes] == ([True] if told else [])


def test_the_mode_that_a_notebook_may_ask_for_is_the_users_own(tmp_path: Path) -> None:
    for place, (config, mode) in enumerate(((PROFILE, "filtered"), (OPEN, "record-only"), (SHUT, "isolated"))):
        folder = tmp_path / str(place)
        folder.mkdir()
        stage, _ = stage_of(folder, {"network": "record-only"}, config=config)
        assert stage.permits.mode == mode


def test_rules_that_were_others_are_told(tmp_path: Path) -> None:
    own = summary_of(configured(Network()).allow(Pattern.parse("a.example")).deny(Pattern.parse("b.example")))
    for place, (network, told) in enumerate(
        (
            (own, 0), (own.replace("SHA-256", "SHA-1"), 0), (f"filtered; {RULES}", 1), (f"isolated; {RULES}", 0)
        )
    ):  # fmt: skip
        folder = tmp_path / str(place)
        folder.mkdir()
        _, notes = stage_of(folder, {"network": network}, allow=("a.example",))
        assert ["had other rules" in note for note in notes] == [True] * told


def test_hosts_that_were_allowed_are_told_and_allowed_only_by_the_user(tmp_path: Path) -> None:
    session = {"network": "filtered; allow a.example; allow b.example"}
    _, notes = stage_of(tmp_path, session, allow=("a.example",))
    assert ["b.example" in note and "a.example" not in note for note in notes] == [True]


def test_a_profile_that_is_not_configured_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ReproduceError, match="not configured here") as caught:
        stage_of(tmp_path, {"profile": "huge"})
    assert "standard" in caught.value.hint
    (tmp_path / "y").mkdir()
    stage, _ = stage_of(tmp_path / "y", {"profile": "huge"}, profile="test")
    assert stage.profile == "test"


@pytest.mark.parametrize(
    ("recorded", "sizes", "told"),
    [
        ({"vcpus": 1, "memory_mib": 512, "disk_gb": 4}, {}, []),
        ({}, {}, []),
        ({"vcpus": 1, "memory_mib": 384, "disk_gb": 3}, {"memory_mib": 384, "disk_gb": 3},
         ["The machine is smaller than the profile test has it, as recorded: 384 MiB of memory, 3 GB of disk."]),
        ({"vcpus": 4, "memory_mib": 512, "disk_gb": 4}, {},
         ["Not granted: the recorded machine had 4 CPUs (here 1 CPUs); "
          "[profiles.test] with vcpus = 4, memory_mib = 512, disk_gb = 4 in CONFIG gives it."]),
        ({"vcpus": 64, "memory_mib": 300}, {"memory_mib": 300},
         ["The machine is smaller than the profile test has it, as recorded: 300 MiB of memory.",
          "Not granted: the recorded machine had 64 CPUs (here 1 CPUs); "
          "[profiles.test] with vcpus = 64, memory_mib = 512, disk_gb = 4 in CONFIG gives it."]),
        ({"memory_mib": 100, "disk_gb": 1}, {}, ["Not granted: no machine has 100 MiB of memory, 1 GB of disk."]),
    ],
)  # fmt: skip
def test_a_machine_is_as_small_as_it_was_and_never_larger(
    tmp_path: Path, recorded: dict[str, int], sizes: dict[str, int], told: list[str]
) -> None:
    stage, notes = stage_of(tmp_path, recorded)
    assert stage.permits.sizes == Sizes(**sizes)
    assert notes == [line.replace("CONFIG", str(tmp_path / "config.toml")) for line in told]


def test_limits_are_held_against_the_machine_as_it_is(tmp_path: Path) -> None:
    """The recorded machine was smaller: what its memory was is no limit of its own."""
    session = {"memory_mib": 256, "limits": json.dumps(GIVEN | {"user_memory_mib": 256, "cpu": 0.5})}
    stage, _ = stage_of(tmp_path, session)
    assert stage.asked == ("%limits cpu=0.5",)


KEPT = {"profile": "test", "vcpus": 1, "memory_mib": 300, "disk_gb": 4, "network": "isolated; deny a.example"}


@pytest.mark.parametrize(
    ("kept", "asked", "memory"),
    [
        (KEPT | {"limits": {"cell_deadline": 60}}, ("%limits timeout=60s", "%net deny a.example", "%net mode isolated"),
         300),
        (KEPT | {"limits": "cell_deadline"}, ("%net deny a.example", "%net mode isolated"), 300),
        ({"profile": "test", "limits": {"processes": 10**9}}, (), None),
        (KEPT | {"memory_mib": "300"}, (), None),
        (KEPT | {"network": ["isolated"]}, (), None),
        (KEPT | {"memory_mib": -5}, (), None),
        ({}, (), None),
        ({"profile": ["test"]}, (), None),
    ],
)  # fmt: skip
def test_without_a_record_the_metadata_may_take_away_but_not_give(
    tmp_path: Path, kept: dict[str, Any], asked: tuple[str, ...], memory: int | None
) -> None:
    stage, _ = stage_of(tmp_path, None, kept=kept, config=f'profile = "test"\n{PROFILE}')
    assert (stage.asked, stage.permits.sizes, stage.permits.allow) == (asked, Sizes(memory_mib=memory), ())


def test_hosts_of_the_metadata_are_granted_only_in_a_word(tmp_path: Path) -> None:
    kept = {"agentvm": {"network": "filtered; allow b.example"}}
    document = read_document(notebook(tmp_path / "n.ipynb", code("%net allow c.example"), **kept))
    assert list(recorded_hosts(Source(document, None, (), tmp_path))) == ["b.example", "c.example"]


def test_hosts_that_were_allowed_are_found_in_the_record_and_in_the_cells(tmp_path: Path) -> None:
    source = hosts_of(
        tmp_path, "filtered; allow a.example; allow **.b.example:443; deny c.example; allow 10.0.0.1",
        "%net allow d.example E.example", "# net: allow f.example:80\nprint(1)", "%net deny g.example",
        "# net: forbid h.example\nprint(1)", "%net allow bad..name i.example", "print('%net allow j.example')",
    )  # fmt: skip
    found = recorded_hosts(source)
    assert found == {
        "a.example": "a.example", "**.b.example:443": "**.b.example:443", "d.example": "d.example",
        "E.example": "e.example", "f.example:80": "f.example:80", "i.example": "i.example",
    }  # fmt: skip


def test_more_hosts_than_anybody_looks_through_are_not_allowed_in_one_word(tmp_path: Path) -> None:
    few, many = (f"%net allow {' '.join(f'h{n}.example' for n in range(count))}" for count in (200, 201))
    assert len(recorded_hosts(hosts_of(tmp_path, "filtered", few))) == 200
    with pytest.raises(ReproduceError, match="allows 201 hosts; --allow-recorded allows 200"):
        recorded_hosts(hosts_of(tmp_path, "filtered", many))


def hosts_of(tmp_path: Path, network: str, *sources: str) -> Source:
    """A source of cells that have all run, or are magics."""
    document = read_document(notebook(tmp_path / "n.ipynb", code("a"), *map(code, sources)))
    runs = [{"run": 1, "digest": digest_of("a"), "cell": 0}]
    runs += [
        {"run": place + 1, "digest": digest_of(one), "cell": place}
        for place, one in enumerate(sources, 1) if not one.startswith("%")
    ]  # fmt: skip
    record = read_record({"format": 1, "sessions": [{"network": network, "runs": runs}]})
    return Source(document, record, (), tmp_path)


def test_only_recordings_beside_the_notebook_are_given_to_its_machine(tmp_path: Path) -> None:
    (tmp_path / "demo.cassette.jsonl").write_text("{}\n")
    secret = tmp_path.parent / "secret.cassette.jsonl"
    secret.write_text("{}\n")
    steps = ("%net replay demo", "%net replay ../secret", f"%net replay {secret}", "%net record none", "print(1)")
    stage, notes = stage_of(tmp_path, {}, *steps)
    assert [one.name for one in stage.folder.iterdir()] == ["demo.cassette.jsonl"]
    assert len(notes) == 1
