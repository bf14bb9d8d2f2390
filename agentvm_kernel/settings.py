"""What can be configured: a model for each section of the file."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from agentvm_kernel.anomalies import AnomalySettings
from agentvm_kernel.errors import ConfigError
from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.profiles import PROFILES, Profile

SYSTEM: Final = "qemu:///system"
_LISTEN: Final = re.compile(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([0-9.]{7,15})):([0-9]{1,5})")

Name = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
HostPattern = Annotated[str, Field(max_length=300)]


class Pool(BaseModel):
    """What is kept ready, for each image and profile that is in use.

    Attributes:
        warm: Warm VMs (acquired by a resume) at least.
        warm_max: Warm VMs at most, when many are asked for.
        blanks: Blanks (started, empty QEMU processes: a VM after a load) at least.
        blanks_max: Blanks at most.
        idle_after: Seconds after which what nobody has asked for gives way, down to nothing but the default's minimum.
        time_to_live: Seconds after which a warm VM or a blank is replaced.
        check_every: Seconds between two checks that the ready ones still answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    warm: int = Field(default=1, ge=0, le=64)
    warm_max: int = Field(default=8, ge=0, le=64)
    blanks: int = Field(default=1, ge=0, le=64)
    blanks_max: int = Field(default=8, ge=0, le=64)
    idle_after: float = Field(default=300, gt=0, allow_inf_nan=False)
    time_to_live: float = Field(default=3600, gt=0, allow_inf_nan=False)
    check_every: float = Field(default=60, gt=0, allow_inf_nan=False)


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

    @property
    def complete(self) -> int:
        """What complete memory files may take, bytes."""
        return int(self.complete_gb * 10**9)


class Network(BaseModel):
    """What VMs reach of the network; see docs/network.md for how hosts are written.

    Attributes:
        mode: ``filtered`` (what is allowed), ``isolated`` (nothing), or ``record-only`` (every public name; it is only
            written down).
        defaults: Whether the package registries, code hosts and model APIs that ship with this package are allowed.
        allow: Hosts that are allowed besides: names, ``*.NAME`` for one label more, ``**.NAME`` for any number, each
            with ``:PORT,PORT`` if other than the usual ports.
        deny: Hosts that are refused, whatever allows them.
        inspect: Hosts, of those that are allowed, whose TLS the gateway ends itself, as it does for hosts with a
            secret: needed to record and replay what they say.
        reachable: Addresses or networks that may be connected to although they are not public, such as
            ``10.1.0.0/16``, if an allowed name leads there.
        connections: Connections that a VM may have open.
        connections_per_second: New connections of a VM, a second.
        mb_per_second: What a VM may send and receive, MB (10^6 bytes) a second together; ``none`` for no limit.
        max_bytes: Bytes that a session may send and receive together; ``none`` for no limit.
        directives: Whether cells may change what their notebook reaches, by ``%net`` and ``# net: allow``.
        nat: Whether VMs have a network card besides, over which they reach any public address; only with
            ``uri = "qemu:///system"``. See docs/nat.md before you turn it on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("mb_per_second", "max_bytes", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        """Take the word ``none``, because TOML has no null."""
        return None if value == "none" else value

    mode: Literal["filtered", "isolated", "record-only"] = "filtered"
    defaults: bool = True
    allow: tuple[HostPattern, ...] = ()
    deny: tuple[HostPattern, ...] = ()
    inspect: tuple[HostPattern, ...] = ()
    reachable: tuple[HostPattern, ...] = ()
    connections: int = Field(default=512, ge=1, le=65536)
    connections_per_second: int = Field(default=200, ge=1, le=100_000)
    mb_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_bytes: int | None = Field(default=None, ge=1)
    directives: bool = True
    nat: bool = False


_OPENNESS: Final = (Mode.STRICT, Mode.STANDARD, Mode.TRUSTED)


class Output(BaseModel):
    """What of the VMs' output is let through to the browser; see docs/output.md.

    Attributes:
        mode: ``standard``; ``strict`` shows no scripts and no plots drawn by code of the front end, either; ``trusted``
            passes everything on as a plain kernel does.
        notebooks: Another mode for notebooks whose path matches a pattern such as ``"reports/*.ipynb"``; the first
            that matches holds.
        frame_hosts: Hosts that HTML with scripts may load from, such as ``cdn.jsdelivr.net``.
        widget_modules: JavaScript modules of widgets allowed besides those of ipywidgets; they are not checked.
        comm_targets: Comm targets allowed besides those of ipywidgets; what is said on them is not checked.
        mime_types: MIME types allowed besides the known ones, passed on unchanged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Mode.STANDARD
    notebooks: dict[str, Mode] = {}
    frame_hosts: tuple[HostPattern, ...] = ()
    widget_modules: tuple[str, ...] = ()
    comm_targets: tuple[str, ...] = ()
    mime_types: tuple[str, ...] = ()

    def policy(self, notebook: str, mode: str = "") -> Policy:
        """Return what holds for a notebook.

        Args:
            notebook: Its path.
            mode: What its kernelspec says, if it says so. That can only let less through: which kernelspec a notebook
                has stands in its file, which may come from anywhere.

        Raises:
            ConfigError: there is no such mode.
        """
        if mode and mode not in set(Mode):
            raise ConfigError(f"There is no output mode {mode!r:.40}.", f"There are: {', '.join(Mode)}.")
        found = [own for pattern, own in self.notebooks.items() if fnmatchcase(notebook, pattern)]
        holds = found[0] if found else self.mode
        if mode and _OPENNESS.index(Mode(mode)) < _OPENNESS.index(holds):
            holds = Mode(mode)
        return Policy(holds, self.frame_hosts, self.widget_modules, self.comm_targets, self.mime_types)


class Notebook(BaseModel):
    """How notebooks look.

    Attributes:
        footer: Whether a line under each cell says what it cost; ``%vm facts on`` and ``off`` change it in a notebook.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    footer: bool = False


class Files(BaseModel):
    """What a notebook's magics may use of this computer's files; see docs/files.md.

    Attributes:
        folders: Folders, with what is in them, and single files that `%push`, `%pull`, `%workspace` and `%report` may
            use besides what lies below the notebook's own folder; `~` is the home folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folders: tuple[Annotated[str, Field(max_length=4096)], ...] = Field(default=(), max_length=100)

    @field_validator("folders")
    @classmethod
    def _absolute(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not value.startswith(("/", "~/")) and value != "~":
                raise ValueError(f"{value!a} is no absolute path, such as /data or ~/data")
        return values


class Audit(BaseModel):
    """The audit log; see docs/audit.md.

    Attributes:
        days: How many files, one for each day on which something happened, are kept; 0 for all.
        code: Whether the code of cells is written down, not only its digest. It may hold what is secret.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: int = Field(default=365, ge=0, le=100_000)
    code: bool = False


class MetricsSettings(BaseModel):
    """Measuring, and metrics for Prometheus; see docs/metrics.md.

    Attributes:
        interval: Seconds between two looks at what the VMs use.
        listen: Address and port for Prometheus, such as ``127.0.0.1:9177``; only of the loopback interface. Empty:
            metrics are only on the supervisor's own socket.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    interval: float = Field(default=1, ge=0.1, le=60)
    listen: Annotated[str, Field(max_length=64)] = ""

    @field_validator("listen")
    @classmethod
    def _loopback(cls, value: str) -> str:
        """Take loopback addresses only: what is exposed there has no other protection."""
        if value and parse_listen(value) is None:
            raise ValueError(
                f"{value!a} is no address and port of the loopback interface, such as 127.0.0.1:9177 or [::1]:9177"
            )
        return value


def parse_listen(value: str) -> tuple[str, int] | None:
    """Return a loopback address and a port; ``None`` if it is not that.

    Args:
        value: ``ADDRESS:PORT``, with an IPv6 address in brackets.
    """
    found = _LISTEN.fullmatch(value)
    if found is None or not 1 <= int(found[3]) <= 65535:
        return None
    try:
        address = ipaddress.IPv4Address(found[2]) if found[2] else ipaddress.IPv6Address(found[1])
    except ValueError:
        return None
    return (str(address), int(found[3])) if address.is_loopback else None


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
        max_vms: VMs that may be out at the same time, forks among them; who asks for more waits.
        memory_share: Share of the host's available memory that VMs may take.
        on_shutdown: What becomes of leased VMs when the supervisor is told to leave: ``end`` them, or ``keep`` them as
            snapshots, of which their notebooks get clones from the next supervisor.
        pool: What is kept ready.
        snapshots: The snapshot store.
        network: What VMs reach of the network.
        output: What of their output is let through.
        notebook: How notebooks look.
        files: What magics may use of the host's files.
        audit: The audit log.
        metrics: Measuring, and metrics for Prometheus.
        anomalies: What is unusual in a VM, and what is done then.
        profiles: The user's own profiles, by name, beside the built-in ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = "embed"
    image: Name = "standard"
    profile: Name = "standard"
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    transport: Literal["auto", "vsock", "serial"] = "auto"
    idle_exit: float = Field(default=600, gt=0)
    max_vms: int = Field(default=64, ge=1, le=1024)
    memory_share: float = Field(default=0.7, gt=0, le=1)
    on_shutdown: Literal["end", "keep"] = "end"
    pool: Pool = Pool()
    snapshots: SnapshotSettings = SnapshotSettings()
    network: Network = Network()
    output: Output = Output()
    notebook: Notebook = Notebook()
    files: Files = Files()
    audit: Audit = Audit()
    metrics: MetricsSettings = MetricsSettings()
    anomalies: AnomalySettings = AnomalySettings()
    profiles: dict[Name, Profile] = {}

    def find_profile(self, name: str) -> tuple[str, Profile]:
        """Return a profile's name and values.

        Args:
            name: The profile's name; empty for the configured default.

        Raises:
            ConfigError: there is no profile of that name.
        """
        name = name or self.profile
        known = self.known_profiles
        if name not in known:
            raise ConfigError(f"There is no profile {name!r}.", f"Known profiles: {', '.join(sorted(known))}.")
        return name, known[name]

    @property
    def known_profiles(self) -> Mapping[str, Profile]:
        """All profiles: the user's own go over built-in ones of the same name."""
        return PROFILES | self.profiles
