"""Profiles: named resources of a VM, and the limits on what runs in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agentvm_kernel.errors import LimitError, RequestError


class Limits(BaseModel):
    """What may change while a VM runs.

    Attributes:
        cell_deadline: Seconds that a cell may run.
        lifetime: Seconds that a VM may be leased; ``none`` for no limit.
        cpu: Share of the host's CPUs, in cores; ``none`` for as many as the VM has.
        user_memory_mib: What the user's processes may use together, MiB; ``none`` for all that the VM has.
        disk_mb_per_second: Bytes read and written, MB (10^6 bytes) a second together; ``none`` for no limit.
        disk_iops: Reads and writes a second, together; ``none`` for no limit.
        processes: Processes and threads of the user's code.
        open_files: Files that each of its processes may have open.
        output_mib: Output of a cell, MiB; what is more is left out.
        output_mib_per_second: How fast it may come, MiB a second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("lifetime", "cpu", "user_memory_mib", "disk_mb_per_second", "disk_iops", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        """Take the word ``none``, because TOML has no null."""
        return None if value == "none" else value

    cell_deadline: float = Field(default=300, ge=1, allow_inf_nan=False)
    lifetime: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    cpu: float | None = Field(default=None, ge=0.05, le=1024)
    user_memory_mib: int | None = Field(default=None, ge=128, le=1 << 20)
    disk_mb_per_second: int | None = Field(default=200, ge=1, le=1 << 20)
    disk_iops: int | None = Field(default=5000, ge=1, le=1 << 24)
    processes: int = Field(default=2048, ge=32, le=1 << 22)
    open_files: int = Field(default=4096, ge=64, le=1 << 20)
    output_mib: int = Field(default=256, ge=1, le=1 << 20)
    output_mib_per_second: int = Field(default=64, ge=1, le=1 << 20)


def changed(limits: Limits, changes: Mapping[str, float | None]) -> Limits:
    """Return limits with some of them changed.

    Args:
        limits: What holds now.
        changes: New values by name.

    Raises:
        LimitError: there is no such limit, or it cannot have this value.
    """
    try:
        return Limits.model_validate(limits.model_dump() | dict(changes))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise LimitError(
                f"There is no limit {name!r:.40}.", f"There are: {', '.join(Limits.model_fields)}."
            ) from error
        raise LimitError(f"The limit {name} cannot be {first['input']!r:.40}: {first['msg']}.") from error


class Sizes(BaseModel):
    """How large a machine is to be where that is less than its profile gives; ``None`` for what the profile gives.

    Attributes:
        vcpus: Virtual CPUs.
        memory_mib: Guest memory in MiB.
        disk_gb: Size of the guest's disk in GB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vcpus: int | None = Field(default=None, ge=1, le=64)
    memory_mib: int | None = Field(default=None, ge=256, le=1 << 20)
    disk_gb: int | None = Field(default=None, ge=2, le=4096)


class Profile(Limits):
    """Named resources of a VM.

    Attributes:
        vcpus: Virtual CPUs.
        memory_mib: Guest memory in MiB.
        disk_gb: Size of the guest's disk in GB (10^9 bytes); only what is written takes room.
        network: ``filtered`` or ``none``.
    """

    vcpus: int = Field(ge=1, le=64)
    memory_mib: int = Field(ge=256, le=1 << 20)
    disk_gb: int = Field(ge=2, le=4096)
    network: Literal["filtered", "none"] = "filtered"

    @property
    def limits(self) -> Limits:
        """The limits alone."""
        values: dict[str, Any] = {name: getattr(self, name) for name in Limits.model_fields}
        return Limits(**values)

    @property
    def sizes(self) -> Sizes:
        """How large its machines are."""
        return Sizes(vcpus=self.vcpus, memory_mib=self.memory_mib, disk_gb=self.disk_gb)

    def reduced(self, sizes: Sizes) -> Profile:
        """Return it with a smaller machine.

        Args:
            sizes: How large that is to be.

        Raises:
            RequestError: it would be a larger one.
        """
        wanted = sizes.model_dump(exclude_none=True)
        larger = [f"{name} = {value}" for name, value in wanted.items() if value > getattr(self, name)]
        if larger:
            raise RequestError(
                f"The machine would be larger than its profile allows: {', '.join(larger)}.",
                "Ask for no more than the profile has, or for another profile.",
            )
        if self.user_memory_mib is not None and sizes.memory_mib is not None:
            wanted["user_memory_mib"] = min(self.user_memory_mib, sizes.memory_mib)
        return self.model_copy(update=wanted)


LIMIT_WORDS: Final = {
    "cell_deadline": ("timeout", "s"),
    "lifetime": ("lifetime", "s"),
    "cpu": ("cpu", ""),
    "user_memory_mib": ("memory", "MiB"),
    "processes": ("processes", ""),
    "open_files": ("open_files", ""),
    "disk_mb_per_second": ("disk_rate", "MB"),
    "disk_iops": ("disk_iops", ""),
    "output_mib": ("output", "MiB"),
    "output_mib_per_second": ("output_rate", "MiB"),
}
"""What `%limits` calls a limit, and the unit of its value."""

PROFILES: Final = {
    "light": Profile(vcpus=1, memory_mib=1024, disk_gb=10, cell_deadline=60),
    "standard": Profile(vcpus=2, memory_mib=2048, disk_gb=20, cell_deadline=300),
    "intensive": Profile(vcpus=4, memory_mib=4096, disk_gb=40, cell_deadline=600),
    "isolated": Profile(vcpus=2, memory_mib=2048, disk_gb=20, network="none", cell_deadline=300),
}
