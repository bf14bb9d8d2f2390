"""What the VM's owner asks over the control port."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agentvm_guest import qga
from agentvm_guest.card import Arrival, parse_card
from agentvm_guest.control import Reply
from agentvm_guest.errand import Errand
from agentvm_guest.facts import facts
from agentvm_guest.forwarding import Forwarding
from agentvm_guest.identity import Identity, RequestError, parse_identity, read_integer, read_network
from agentvm_guest.kernel import KernelProcess, KernelState
from agentvm_guest.limits import parse_limits
from agentvm_guest.link import LinkServer
from agentvm_guest.loop import Loop
from agentvm_guest.share import Share, parse_wanted
from agentvm_guest.system import System

SHARED = "shared"
_CARD_SECONDS = 20.0
_SHARE_SECONDS = 20.0
_FREEZE_SECONDS = 10.0
_DEAD: dict[str, object] = {"ok": False, "error": "ipykernel is dead"}


class Operations:
    """Does what is asked.

    Args:
        loop: The agent's loop.
        system: The privileged operations.
        kernel: The guest's ipykernel.
        link: Where hosts prove that they know the VM's key.
        forwarding: The forwarder, if there is one.
        confirm_seconds: How long ipykernel may take to renew its generators.
    """

    def __init__(
        self,
        loop: Loop,
        system: System,
        kernel: KernelProcess,
        link: LinkServer,
        forwarding: Forwarding | None,
        confirm_seconds: float,
    ) -> None:
        self._loop = loop
        self._system = system
        self._kernel = kernel
        self._link = link
        self._forwarding = forwarding
        self._confirm_seconds = confirm_seconds
        self._freezer = qga.Freezer(_FREEZE_SECONDS)
        self._waiting: list[Reply] = []
        self._is_ready = False

    def take(self, request: dict[str, object], reply: Reply) -> None:
        """Take a request; what is wrong with it is the answer."""
        operation = self._known().get(str(request.get("op")))
        if operation is None:
            reply({"ok": False, "error": f"there is no operation {str(request.get('op'))[:40]!r}"})
            return
        try:
            operation(request, reply)
        except (RequestError, OSError) as error:
            reply({"ok": False, "error": str(error)})

    def _known(self) -> dict[str, Callable[[dict[str, object], Reply], None]]:
        return {
            "ping": lambda _, reply: reply({"ok": True}),
            "ready": self._ready,
            "facts": lambda _, reply: reply({"ok": True, **facts(self._kernel, self._system)}),
            "quiesce": self._quiesce,
            "identity": self._identity,
            "clock": self._clock,
            "limits": self._limits,
            "network": self._network,
            "card": self._card,
            "mount": self._mount,
            "unmount": self._unmount,
            "freeze": lambda _, reply: self._do(self._freezer.freeze, reply),
            "thaw": lambda _, reply: self._do(self._freezer.thaw, reply),
        }

    def become_ready(self) -> None:
        """Answer who waits for the guest, and let identities be given."""
        self._is_ready = True
        self._answer_waiting({"ok": True})

    def give_up(self) -> None:
        """Answer who waits for the guest that it has no ipykernel."""
        self._answer_waiting(_DEAD)

    def _answer_waiting(self, answer: dict[str, object]) -> None:
        for reply in self._waiting:
            reply(answer)
        self._waiting.clear()

    def _ready(self, _request: dict[str, object], reply: Reply) -> None:
        if self._kernel.state is KernelState.DEAD:
            reply(_DEAD)
        elif self._is_ready:
            reply({"ok": True})
        else:
            self._waiting.append(reply)

    def _quiesce(self, _request: dict[str, object], reply: Reply) -> None:
        self._link.goodbye("the VM is about to be saved")
        self._system.sync()
        reply({"ok": True})

    def _clock(self, request: dict[str, object], reply: Reply) -> None:
        network = read_network(request)
        self._system.set_clock(read_integer(request, "time_ns", 1 << 63))
        self.set_limits(request.get("limits"))
        self._set_network(network)
        reply({"ok": True})

    def _network(self, request: dict[str, object], reply: Reply) -> None:
        self._set_network(read_network(request))
        reply({"ok": True})

    def _card(self, request: dict[str, object], reply: Reply) -> None:
        Arrival(self._loop, parse_card(request), self._system.set_up_card, reply, _CARD_SECONDS)

    def _do(self, work: Callable[[], dict[str, object]], reply: Reply) -> None:
        Errand(self._loop, work, reply)

    def _mount(self, request: dict[str, object], reply: Reply) -> None:
        wanted = parse_wanted(request)
        self._do(lambda: self._share().mount(wanted, _SHARE_SECONDS), reply)

    def _unmount(self, _request: dict[str, object], reply: Reply) -> None:
        self._do(self._share().unmount, reply)

    def _share(self) -> Share:
        account = self._system.account()
        if account is None:
            raise RequestError("nothing is mounted without privileges")
        return Share(Path(account.home, SHARED), (account.uid, account.gid))

    def _set_network(self, network: str | None) -> None:
        if self._forwarding is not None:
            self._forwarding.set_network(network)

    def _limits(self, request: dict[str, object], reply: Reply) -> None:
        self.set_limits(request)
        reply({"ok": True})

    def set_limits(self, limits: object) -> None:
        """Put limits on the user's processes.

        Args:
            limits: As the owner names them; ``None`` to leave them as they are.

        Raises:
            RequestError: they are not valid.
        """
        if limits is not None:
            self._system.set_limits(parse_limits(limits))

    def _identity(self, request: dict[str, object], reply: Reply) -> None:
        if not self._is_ready:
            raise RequestError("the guest is not ready")
        identity, network = parse_identity(request), read_network(request)
        self.set_limits(request.get("limits"))
        self._set_network(network)
        self.take_identity(identity, reply)

    def take_identity(self, identity: Identity, reply: Reply) -> None:
        """Become another machine.

        Args:
            identity: Which.
            reply: Called when ipykernel's generators are renewed, or why they are not.
        """
        self._system.set_clock(identity.time_ns)
        self._system.add_entropy(identity.entropy)
        self._system.set_names(identity.hostname, identity.machine_id)
        # Last: its generators draw from the kernel's.
        self._kernel.renew(identity, self._confirm_seconds, self._confirm(identity, reply))

    def _confirm(self, identity: Identity, reply: Reply) -> Reply:
        def done(answer: dict[str, object]) -> None:
            if answer.get("ok") is True:
                # Only now can the host prove itself, so nothing of the user's comes before this.
                self._link.rekey(identity.key, identity.epoch)
                if self._forwarding is not None:
                    self._forwarding.identify(identity.key, identity.epoch)
                answer = {
                    "ok": True,
                    "epoch": identity.epoch,
                    "hostname": identity.hostname,
                    "seeded": answer.get("seeded"),
                }
            reply(answer)

        return done
