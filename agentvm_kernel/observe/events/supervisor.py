"""Events of the supervisor itself, and of what it is configured with and made of."""

from __future__ import annotations

from typing import Literal

from agentvm_kernel.observe.fields import (
    Accelerator,
    Count,
    Event,
    Long,
    Text,
)


class ImageUpdated(Event):
    """An image was booted for the first time on some hardware, and its golden snapshot made.

    Attributes:
        flavour: The image's flavour.
        image: The image's digest.
        snapshot: The golden snapshot.
    """

    event: Literal["image_updated"] = "image_updated"
    flavour: Text = ""
    image: Text
    snapshot: Text = ""


class ConfigurationChanged(Event):
    """Limits, network or shared folder of a session were changed, or the supervisor read its configuration again.

    Attributes:
        what: What was changed.
        vm: The session's VM; empty for the supervisor.
        lease: The lease.
        notebook: Whose it is.
    """

    event: Literal["configuration_changed"] = "configuration_changed"
    what: Long
    vm: Text = ""
    lease: Text = ""
    notebook: Long = ""


class SupervisorStarted(Event):
    """A supervisor began.

    Attributes:
        version: Its version.
        pid: Its process id.
        accelerator: Under ``tcg`` QEMU promises no isolation.
        reason: Why that one.
    """

    event: Literal["supervisor_started"] = "supervisor_started"
    version: Text = ""
    pid: Count = 0
    accelerator: Accelerator = ""
    reason: Text = ""


class SupervisorStopped(Event):
    """It left in good order; where this is missing before the next start, it was killed."""

    event: Literal["supervisor_stopped"] = "supervisor_stopped"
