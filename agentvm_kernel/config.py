"""Settings and folders: one TOML file, environment variables above it, defaults below it."""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentvm_kernel.errors import ConfigError


@dataclass(frozen=True)
class Paths:
    """Where things are kept; every folder is private to its user.

    Root's folders are the system's (``/var/cache``, ``/var/lib``, ``/run``), as systemd lays them out for services:
    QEMU then runs under a user of its own, which cannot look into root's home.

    Attributes:
        cache: Images and golden snapshots: large, can be made again.
        state: Libvirt's state, logs, what must survive a reboot.
        runtime: Sockets and the folders of running VMs. Short, because a Unix socket's path holds 107 bytes.
        config: The configuration file.
    """

    cache: Path
    state: Path
    runtime: Path
    config: Path

    @classmethod
    def of_user(cls) -> Paths:
        """Return the folders of the user who runs this process, with ``AGENTVM_*_DIR`` taken into account."""
        if os.geteuid() == 0:
            cache, state, config = Path("/var/cache/agentvm"), Path("/var/lib/agentvm"), Path("/etc/agentvm")
        else:
            cache = _xdg("XDG_CACHE_HOME", ".cache") / "agentvm"
            state = _xdg("XDG_STATE_HOME", ".local/state") / "agentvm"
            config = _xdg("XDG_CONFIG_HOME", ".config") / "agentvm"
        cache = _override("AGENTVM_CACHE_DIR", cache)
        state = _override("AGENTVM_STATE_DIR", state)
        config = _override("AGENTVM_CONFIG", config / "config.toml")
        return cls(cache, state, state / "run", config)

    @property
    def tag(self) -> str:
        """Tells this user's domains and this state folder's from others' in a shared libvirt."""
        return hashlib.sha256(f"{os.geteuid()}:{self.state}".encode()).hexdigest()[:8]

    @property
    def socket(self) -> Path:
        """The supervisor's API socket."""
        return self.runtime / "supervisor.sock"

    @property
    def log(self) -> Path:
        """The supervisor's log."""
        return self.state / "supervisor.log"


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / default


def _override(variable: str, default: Path) -> Path:
    value = os.environ.get(variable)
    if not value:
        return default
    path = Path(value)
    if not path.is_absolute():
        raise ConfigError(f"{variable} is {value!r}, which is not an absolute path.", f"Set {variable} to one.")
    return path


class Profile(BaseModel):
    """Named resources of a VM.

    Attributes:
        vcpus: Virtual CPUs.
        memory_mib: Guest memory in MiB.
        disk_gb: Size of the guest's disk in GB (10^9 bytes); only what is written takes room.
        network: ``filtered`` or ``none``.
        cell_deadline: Seconds that a cell may run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vcpus: int = Field(ge=1, le=64)
    memory_mib: int = Field(ge=256, le=1 << 20)
    disk_gb: int = Field(ge=2, le=4096)
    network: Literal["filtered", "none"] = "filtered"
    cell_deadline: int = Field(default=300, ge=1)


PROFILES = {
    "light": Profile(vcpus=1, memory_mib=1024, disk_gb=10, cell_deadline=60),
    "standard": Profile(vcpus=2, memory_mib=2048, disk_gb=20, cell_deadline=300),
    "intensive": Profile(vcpus=4, memory_mib=4096, disk_gb=40, cell_deadline=600),
    "isolated": Profile(vcpus=2, memory_mib=2048, disk_gb=20, network="none", cell_deadline=300),
}


class Pool(BaseModel):
    """How many VMs are kept ready.

    Attributes:
        warm: Warm VMs: acquired by a resume.
        blanks: Started, empty QEMU processes: a VM after a load.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    warm: int = Field(default=1, ge=0, le=64)
    blanks: int = Field(default=1, ge=0, le=64)


class SnapshotSettings(BaseModel):
    """The snapshot store.

    Attributes:
        quota_gb: What all snapshots together may take on disk, GB (10^9 bytes).
        complete_gb: What complete memory files, which make going back fast and can be made again, may take besides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quota_gb: float = Field(default=20, gt=0, allow_inf_nan=False)
    complete_gb: float = Field(default=10, ge=0, allow_inf_nan=False)

    @property
    def quota(self) -> int:
        """What all snapshots together may take on disk, bytes."""
        return int(self.quota_gb * 10**9)


class Settings(BaseModel):
    """The configuration file.

    Attributes:
        uri: Libvirt connection: ``embed`` (the driver inside the supervisor, the default) or a libvirt URI
            (``qemu:///session``, ``qemu:///system``).
        image: Flavour that notebooks get.
        profile: Profile that notebooks get.
        accelerator: ``auto`` (probe), ``kvm`` or ``tcg``.
        transport: ``auto`` (vsock where ``/dev/vhost-vsock`` can be opened), ``vsock`` or ``serial``.
        idle_exit: Seconds without a lease after which the supervisor leaves.
        pool: What is kept ready.
        snapshots: The snapshot store.
        profiles: The user's own profiles, by name, beside the built-in ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = "embed"
    image: str = Field(default="standard", pattern=r"^[a-z0-9-]{1,64}$")
    profile: str = Field(default="standard", pattern=r"^[a-z0-9-]{1,64}$")
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    transport: Literal["auto", "vsock", "serial"] = "auto"
    idle_exit: float = Field(default=600, gt=0)
    pool: Pool = Pool()
    snapshots: SnapshotSettings = SnapshotSettings()
    profiles: dict[str, Profile] = {}

    def find_profile(self, name: str) -> tuple[str, Profile]:
        """Return a profile's name and values.

        Args:
            name: The profile's name; empty for the configured default.

        Raises:
            ConfigError: there is no profile of that name.
        """
        name = name or self.profile
        known = PROFILES | self.profiles
        if name not in known:
            raise ConfigError(f"There is no profile {name!r}.", f"Known profiles: {', '.join(sorted(known))}.")
        return name, known[name]


def load_settings(paths: Paths) -> Settings:
    """Read the configuration file, if there is one, and put ``AGENTVM_*`` variables over it.

    ``AGENTVM_URI``, ``AGENTVM_IMAGE``, ``AGENTVM_PROFILE``, ``AGENTVM_ACCELERATOR`` and ``AGENTVM_TRANSPORT`` set the
    keys of the same names.

    Raises:
        ConfigError: the file cannot be read or holds something that is not valid.
    """
    values: dict[str, object] = {}
    if paths.config.exists():
        try:
            values = tomllib.loads(paths.config.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{paths.config}: {error}", "Correct the file, or remove it for the defaults.") from error
    for key in ("uri", "image", "profile", "accelerator", "transport"):
        if value := os.environ.get(f"AGENTVM_{key.upper()}"):
            values[key] = value
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{paths.config}: {where}: {first['msg']} (found: {first['input']!r}).",
            "Correct the file or the AGENTVM_* variable of that name, or remove it for the default.",
        ) from error
