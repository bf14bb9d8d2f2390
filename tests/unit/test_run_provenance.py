"""What `agentvm run` keeps in a notebook of its runs: what the host says, small, and nothing where it says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentvm_kernel.run.provenance import of_cell, of_image, of_notebook
from agentvm_kernel.supervisor.status import LeaseInfo, Status

FACTS = {"seconds": 0.1, "snapshot_before": "aaaaaaaaaaaa", "snapshot_after": "bbbbbbbbbbbb"}


def reply(**said: Any) -> dict[str, Any]:
    return {"metadata": {"agentvm": {"run": 3, "vm": "vm-1", "code": "d" * 64, "snapshot": "bbbbbbbbbbbb", **said}}}


def test_a_cells_record_has_the_names_that_jupyterlab_gives_them() -> None:
    assert of_cell(reply(facts=FACTS), "k") == {
        "run": 3, "vm": "vm-1", "base": "aaaaaaaaaaaa", "after": "bbbbbbbbbbbb", "kernel": "k",
        "code": "d" * 64, "facts": {"seconds": 0.1},
    }  # fmt: skip


def test_without_facts_the_snapshot_is_where_the_machine_stands() -> None:
    record = of_cell(reply(), "k")
    assert record is not None
    assert (record["base"], record["after"], record["facts"]) == ("bbbbbbbbbbbb", "bbbbbbbbbbbb", {})


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"facts": FACTS | {"hosts": ["h" * 100] * 30}}, set()),
        ({"facts": FACTS, "copied": {"way": "push", "path": "\N{SNOWMAN}" * 2000}}, {"facts"}),
        ({"facts": FACTS, "shared": {"path": "p" * 1000}, "forks": {"seed": "0" * 32}}, {"facts", "shared", "forks"}),
        ({"facts": FACTS | {"hosts": ["h" * 100] * 10}, "shared": {"path": "p" * 1000}}, {"shared"}),
    ],
)
def test_a_record_is_never_larger_than_2_kb_and_keeps_what_there_is_room_for(said: Any, kept: set[str]) -> None:
    record = of_cell(reply(**said), "k")
    assert record is not None
    assert record.keys() - {"run", "vm", "base", "after", "kernel", "code"} == kept
    assert len(json.dumps(record)) <= 2000


@pytest.mark.parametrize("other", [{}, {"metadata": {}}, {"metadata": {"agentvm": 3}}, {"metadata": {"agentvm": {}}}])
def test_where_the_host_says_nothing_nothing_is_kept(other: dict[str, Any]) -> None:
    assert of_cell(other, "k") is None


def test_of_an_image_its_packages_of_python_are_kept() -> None:
    manifest = {"kernel": "6.12", "python": "3.13", "python_packages": {"ipython": "9"}, "debian_packages": {"a": "1"}}
    assert of_image(manifest) == {"kernel": "6.12", "python": "3.13", "python_packages": {"ipython": "9"}}


def test_with_a_cell_its_forks_with_their_seed_and_what_it_copied_are_kept() -> None:
    forks = {"count": 2, "randomness": "diverge", "seed": "0" * 32}
    copied = {"way": "pull", "path": "x", "sha256": "1" * 64, "size": 3}
    reply = {"metadata": {"agentvm": {"run": 1, "vm": "v", "snapshot": "", "forks": forks, "copied": copied}}}
    record = of_cell(reply, "k")
    assert record is not None
    assert (record["forks"], record["copied"]) == (forks, copied)


def test_of_what_a_machine_could_reach_whole_rules_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [f"deny host-{number}.example" for number in range(100)]
    lease = LeaseInfo(
        lease="l", owner="o", vm="v", image="i", flavour="minimal", profile="p", vcpus=1, memory_mib=256, disk_gb=2,
        pid=1, network="; ".join(["filtered", *rules]), hypervisor="qemu 1, libvirt 2",
    )  # fmt: skip
    status = Status(version="1", pid=1, uptime=1, libvirt="embed", accelerator="tcg", leases=(lease,))
    monkeypatch.setenv("AGENTVM_CACHE_DIR", str(tmp_path))
    kept = of_notebook(status, lease)
    assert (kept["hypervisor"], kept["memory_mib"]) == ("qemu 1, libvirt 2", 256)
    mode, *some = kept["network"].split("; ")
    assert (mode, some) == ("filtered", rules[: len(some)])
    assert 20 < len(some) < 100
    assert len(kept["network"]) <= 1000
    assert "python_packages" not in kept, "the image is not there any more"
