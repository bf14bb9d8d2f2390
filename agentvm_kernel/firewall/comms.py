"""The comms of one guest: which may be open, and what is said over them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.firewall.context import Context, Mode
from agentvm_kernel.firewall.names import HOST_PREFIX
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.widgets import CleanOutput, Model, State, buffer_fits, clean_state, known_model

_WIDGET: Final = "jupyter.widget"
_CONTROL: Final = "jupyter.widget.control"
_NOT_YOURS: Final = "a message in the name of one of the host's own widgets"
_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,128}\Z")
_MOST: Final = 10_000
_MOST_MODELS: Final = 50_000
_MOST_CLIENTS: Final = 1000


@dataclass(frozen=True)
class Passed:
    """What of a comm message is passed on."""

    content: dict[str, object]
    metadata: dict[str, object]
    buffers: list[bytes]


class CommGuard:
    """Knows the comms of one guest, and what widget each is; one per kernel, rollbacks included.

    An id keeps its widget's class for good, so that a link in the browser never ends in another class than was checked.

    Args:
        clean_output: Cleans what Output widgets hold.
        targets: Comm targets that are let through unchecked, besides widgets.
        most: How many comms may be known.
    """

    def __init__(self, clean_output: CleanOutput, targets: Sequence[str] = (), most: int = _MOST) -> None:
        self._output = clean_output
        self._targets = frozenset(targets)
        self._most = most
        self._open: dict[str, str] = {}
        self._models: dict[str, Model] = {}
        self._clients: dict[str, None] = {}

    def opened_by_client(self, content: Mapping[str, object]) -> None:
        """Take notice of a front end's own ``comm_open``: it asks for the widgets' state that way."""
        name, target = content.get("comm_id"), content.get("target_name")
        if isinstance(name, str) and isinstance(target, str) and not name.startswith(HOST_PREFIX):
            self._clients[name] = None
            self._open[name] = target
            if len(self._clients) > _MOST_CLIENTS:
                oldest = next(iter(self._clients))
                del self._clients[oldest]
                self._open.pop(oldest, None)

    def opened(
        self, content: Mapping[str, object], metadata: Mapping[str, object], buffers: Sequence[bytes], context: Context
    ) -> Passed | None:
        """Clean a ``comm_open`` of the guest.

        Returns:
            What may be passed on, or None; then all that follows on the comm is blocked as well.
        """
        name, target, data = content.get("comm_id"), content.get("target_name"), content.get("data")
        if not (isinstance(name, str) and _ID.match(name) and isinstance(target, str) and isinstance(data, dict)):
            return _blocked(context, Reason.MALFORMED, "a comm without id, target or data")
        if name.startswith(HOST_PREFIX):
            return _blocked(context, Reason.MESSAGE, _NOT_YOURS)
        if len(self._open) - len(self._clients) >= self._most and name not in self._open:
            return _blocked(context, Reason.RATE, "too many comms open")
        if target == _WIDGET:
            passed = self._widget(name, data, buffers, context)
        elif self._passes(target, context):
            passed = Passed(data, dict(metadata), list(buffers))
        else:
            return _blocked(context, Reason.COMM, "a comm whose target is not allowed")
        if passed is None:
            return None
        self._open[name] = target
        # A target_module would make the front end load that module.
        opened: dict[str, object] = {"comm_id": name, "target_name": target, "data": passed.content}
        version: dict[str, object] = {"version": "2.1.0"} if target == _WIDGET else passed.metadata
        return Passed(opened, version, passed.buffers)

    def message(
        self, content: Mapping[str, object], metadata: Mapping[str, object], buffers: Sequence[bytes], context: Context
    ) -> Passed | None:
        """Clean a ``comm_msg`` of the guest."""
        name, data = content.get("comm_id"), content.get("data")
        if isinstance(name, str) and name.startswith(HOST_PREFIX):
            return _blocked(context, Reason.MESSAGE, _NOT_YOURS)
        target = self._open.get(name) if isinstance(name, str) else None
        if not isinstance(name, str) or target is None or not isinstance(data, dict):
            return _blocked(context, Reason.COMM, "a message on a comm that is not open")
        if target == _WIDGET:
            passed = self._widget(name, data, buffers, context)
        elif target == _CONTROL:
            passed = self._states(data, buffers, context)
        elif self._passes(target, context) or (name in self._clients and context.mode is not Mode.STRICT):
            passed = Passed(data, dict(metadata), list(buffers))  # who opened it listens for what the guest says
        else:
            return _blocked(context, Reason.COMM, "a message on a comm whose target is not allowed")
        return passed and Passed({"comm_id": name, "data": passed.content}, passed.metadata, passed.buffers)

    def closed(self, content: Mapping[str, object], context: Context) -> dict[str, object] | None:
        """Clean a ``comm_close`` of either side."""
        name = content.get("comm_id")
        if isinstance(name, str) and self._open.pop(name, None) is not None:
            self._clients.pop(name, None)
            return {"comm_id": name, "data": {}}
        if isinstance(name, str) and name.startswith(HOST_PREFIX):
            context.block(Reason.MESSAGE, _NOT_YOURS)
        else:
            context.block(Reason.COMM, "the end of a comm that is not open")
        return None

    def _passes(self, target: str, context: Context) -> bool:
        return context.mode is Mode.TRUSTED or target in self._targets

    def _widget(self, name: str, data: State, buffers: Sequence[bytes], context: Context) -> Passed | None:
        if data.get("method") == "custom":
            return self._custom(name, data, buffers, context)
        state = data.get("state")
        if not isinstance(state, dict) or data.get("method", "update") not in {"update", "echo_update"}:
            return _blocked(context, Reason.MALFORMED, "a widget's message without state")
        model = self._model(name, state, context)
        if model is None:
            return None
        cleaned = clean_state(model, state, self._models, self._output, context)
        paths, kept = _fitting(model, data.get("buffer_paths"), buffers, context)
        passed: State = {"state": cleaned, "buffer_paths": paths}
        return Passed(passed | ({"method": data["method"]} if "method" in data else {}), {}, kept)

    def _custom(self, name: str, data: State, buffers: Sequence[bytes], context: Context) -> Passed | None:
        model, content = self._models.get(name), data.get("content")
        if model is not None and not model.core:
            return Passed({"method": "custom", "content": content}, {}, list(buffers))
        # Not "focus": what the user types meanwhile, perhaps into another tab's terminal, would go to the guest.
        if model is not None and content in ({"do": "blur"}, {"do": "click"}):
            return Passed({"method": "custom", "content": content}, {}, [])
        return _blocked(context, Reason.WIDGET, "a widget's own message")

    def _model(self, name: str, state: State, context: Context) -> Model | None:
        """Return the widget, which is new if its class comes with its state."""
        known = self._models.get(name)
        if known is not None and "_model_name" not in state:
            return known
        told = known_model(state, context)
        if known is None or told is None:
            return self._remember(name, told) if told is not None else None
        if (known.module, known.name, known.core) == (told.module, told.name, told.core):
            return known
        context.block(Reason.WIDGET, "a widget that became another")
        return None

    def _remember(self, name: str, model: Model) -> Model:
        """Keep a widget's class, for good as far as there is room; the oldest that is closed gives way."""
        self._models[name] = model
        if len(self._models) > _MOST_MODELS:
            closed = next((one for one in self._models if one not in self._open), None)
            if closed is not None:
                del self._models[closed]
        return model

    def _states(self, data: State, buffers: Sequence[bytes], context: Context) -> Passed | None:
        """Clean the states of all widgets, which a front end asks for that has just been opened."""
        states = data.get("states")
        if data.get("method") != "update_states" or not isinstance(states, dict):
            return _blocked(context, Reason.MALFORMED, "an answer without the widgets' states")
        shown: dict[str, Model] = {}
        told: dict[str, State] = {}
        for name, entry in states.items():
            state = entry.get("state") if isinstance(entry, dict) else None
            if not isinstance(state, dict) or not _ID.match(name) or name.startswith(HOST_PREFIX):
                continue
            model = self._model(name, _named(entry, state), context)
            if model is not None:
                shown[name], told[name] = model, state
        passed: State = {}
        for name, model in shown.items():
            identity = {"model_name": model.name, "model_module": model.module, "model_module_version": model.version}
            passed[name] = identity | {"state": clean_state(model, told[name], self._models, self._output, context)}
        paths: list[object] = []
        kept: list[bytes] = []
        given = data.get("buffer_paths")
        for path, buffer in zip(given if isinstance(given, list) else [], buffers, strict=False):
            owner = shown.get(path[0]) if isinstance(path, list) and path and isinstance(path[0], str) else None
            if owner is not None and buffer_fits(owner, path[1:]):
                paths.append(path)
                kept.append(buffer)
        return Passed({"method": "update_states", "states": passed, "buffer_paths": paths}, {}, kept)


def _named(entry: State, state: State) -> State:
    """Put the class that is told beside a state into it."""
    return state | {f"_{key}": entry.get(key) for key in ("model_name", "model_module", "model_module_version")}


def _fitting(
    model: Model, paths: object, buffers: Sequence[bytes], context: Context
) -> tuple[list[object], list[bytes]]:
    pairs = list(zip(paths if isinstance(paths, list) else [], buffers, strict=False))
    kept = [(path, buffer) for path, buffer in pairs if buffer_fits(model, path)]
    if len(kept) < len(pairs):
        context.block(Reason.WIDGET, "binary data that the widget has no place for")
    return [path for path, _ in kept], [buffer for _, buffer in kept]


def _blocked(context: Context, reason: Reason, words: str) -> Passed | None:
    context.block(reason, words)
    return None
