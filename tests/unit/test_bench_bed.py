"""The surroundings of a benchmark, and what it asks ipykernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agentvm_kernel.bench import asking
from agentvm_kernel.bench.bed import (
    Wanted,
    bed,
    bench_settings,
    environment_of,
    is_full,
    settings_toml,
    temporary_paths,
)
from agentvm_kernel.bench.memory import memory_of
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ApiError, ConfigError, SupervisorError
from agentvm_kernel.profiles import Profile
from agentvm_kernel.settings import Pool, Settings
from agentvm_kernel.supervisor.operator_messages import PoolInfo, StockInfo

GUEST = Path(__file__).parents[2] / "guest"


def test_settings_are_the_users_with_the_benchmarks_image_and_profile() -> None:
    users = Settings(
        uri="qemu:///session", pool=Pool(warm=2), profiles={"big": Profile(vcpus=2, memory_mib=1024, disk_gb=9)}
    )
    settings = bench_settings(users, Wanted(image="standard", profile="big"))
    assert settings.uri == "qemu:///session"
    assert settings.image == "standard"
    assert settings.find_profile("")[1].memory_mib == 1024
    assert bench_settings(users, Wanted()).find_profile("")[1].memory_mib == 512
    with pytest.raises(ConfigError, match="tiny"):
        bench_settings(users, Wanted(profile="tiny"))


def test_settings_survive_being_written_down() -> None:
    settings = bench_settings(Settings(pool=Pool(warm=2)), Wanted())
    assert Settings.model_validate(tomllib.loads(settings_toml(settings))) == settings


def test_folders_are_temporary_except_for_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENTVM_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("AGENTVM_IMAGE", "standard")
    with temporary_paths() as paths:
        environment = environment_of(paths)
        assert "AGENTVM_IMAGE" not in environment
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        assert Paths.of_user() == paths
        assert paths.cache == tmp_path
        assert len(str(paths.runtime)) < 40
    assert not paths.config.parent.exists()


def stock(warm: int, blanks: int) -> StockInfo:
    return StockInfo(
        snapshot="a",
        image="b",
        vcpus=1,
        memory_mib=512,
        warm=warm,
        warm_wanted=2,
        blanks=blanks,
        blanks_wanted=1,
        rate=0,
    )


@pytest.mark.parametrize(
    ("stocks", "expected"),
    [
        ((), False),
        ((stock(1, 1),), False),
        ((stock(2, 0),), False),
        ((stock(2, 1),), True),
        ((stock(2, 1), stock(2, 0)), False),
    ],
)
def test_pool_is_full_when_it_has_all_it_wants(stocks: tuple[StockInfo, ...], expected: bool) -> None:
    pool = PoolInfo(stocks=stocks, out=0, max_vms=1, room=1, waiting=(), drained=False)
    assert is_full(pool) is expected


def test_a_supervisor_that_refuses_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, short_tmp: Path
) -> None:
    monkeypatch.setenv("AGENTVM_CONFIG", "/nonexistent")
    folder = short_tmp / "bed"
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: folder.mkdir() or str(folder))
    monkeypatch.setattr("agentvm_kernel.bench.bed.settings_toml", lambda _settings: "uri = 1\n")
    with pytest.raises(ApiError, match="uri") as caught, bed(Wanted()):
        pass
    assert caught.value.code == "config"
    monkeypatch.setattr("agentvm_kernel.bench.bed.sys.executable", "/bin/false")
    with pytest.raises(SupervisorError, match="did not start"), bed(Wanted()):
        pass
    assert not folder.exists()


def test_memory_of_a_process_is_measured() -> None:
    memory = memory_of(os.getpid())
    assert 0 < memory.private_dirty <= memory.private
    assert memory.proportional > 0


def test_script_for_the_vm_measures_with_both_clients() -> None:
    requests = [
        {"client": client, "code": code, "repeat": 2}
        for client in ("bare", "jupyter")
        for code in ("1", asking.DISPLAY)
    ]
    done = subprocess.run(
        [sys.executable, asking.__file__, str(GUEST)],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(answer) for answer in answers] == [2, 2, 2, 2]
    assert all(0 < seconds < asking.TIMEOUT for answer in answers for seconds in answer)
