"""Folders, and reading the settings: one TOML file, environment variables above it, defaults below it."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from agentvm_kernel.errors import ConfigError
from agentvm_kernel.settings import SYSTEM, Settings
from agentvm_kernel.tomllines import lines_of
from agentvm_kernel.validation import Problem, problems

_FROM_ENVIRONMENT: Final = ("uri", "image", "profile", "accelerator", "transport")
_PLACE: Final = re.compile(r"\(at line (\d+), column (\d+)\)")
"""How tomllib says where."""


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
    def environment(self) -> dict[str, str]:
        """Variables with which ``of_user`` returns these folders in another process."""
        return {
            "AGENTVM_CACHE_DIR": str(self.cache),
            "AGENTVM_STATE_DIR": str(self.state),
            "AGENTVM_CONFIG": str(self.config),
        }

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


@dataclass(frozen=True)
class Loaded:
    """Settings, and where each of them comes from.

    Attributes:
        settings: All of them.
        origins: ``FILE:LINE`` or the environment variable, by path, of what is not the default.
    """

    settings: Settings
    origins: Mapping[tuple[str, ...], str]


def load_settings(paths: Paths) -> Settings:
    """Read the configuration file, if there is one, and put ``AGENTVM_*`` variables over it.

    ``AGENTVM_URI``, ``AGENTVM_IMAGE``, ``AGENTVM_PROFILE``, ``AGENTVM_ACCELERATOR`` and ``AGENTVM_TRANSPORT`` set the
    keys of the same names.

    Raises:
        ConfigError: the file cannot be read or something in it, or in a variable, is not valid; says all that is not.
    """
    return read_configuration(paths).settings


def read_configuration(paths: Paths) -> Loaded:
    """Do the same, and tell where each setting comes from.

    Raises:
        ConfigError: as ``load_settings``.
    """
    text = _read(paths.config)
    values = _parse(text, paths.config)
    variables = {key: f"AGENTVM_{key.upper()}" for key in _FROM_ENVIRONMENT if os.environ.get(f"AGENTVM_{key.upper()}")}
    values |= {key: os.environ[name] for key, name in variables.items()}
    try:
        settings = Settings.model_validate(values)
        wrong = _unknown_profile(settings) + _impossible_nat(settings) + settings.anomalies.incomplete()
    except ValidationError as error:
        wrong = problems(error, Settings)
    origins = {path: f"{paths.config}:{line}" for path, line in lines_of(text).items()}
    origins |= {(key,): name for key, name in variables.items()}
    if wrong:
        raise ConfigError(
            "\n".join(f"{_origin(problem.path, origins, paths.config)}: {problem.text}" for problem in wrong),
            "Correct that, or remove it for the default; `agentvm config reference` lists all that is valid.",
        )
    return Loaded(settings, origins)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: This is no UTF-8 text.", "Save the file as UTF-8.") from error
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}.", "Make it a readable file, or set AGENTVM_CONFIG.") from error


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.search(str(error))
        line = int(place[1]) if place else text.count("\n") + 1
        said = _PLACE.sub(lambda match: f"(column {match[2]})", str(error))
        raise ConfigError(
            f"{file}:{line}: {said}.",
            "The file is TOML: lines like `key = value`, texts in quotes, [tables] in brackets.",
        ) from error


def _unknown_profile(settings: Settings) -> list[Problem]:
    known = sorted(settings.known_profiles)
    if settings.profile in known:
        return []
    near = difflib.get_close_matches(settings.profile, known, n=1)
    guess = f" Did you mean {near[0]}?" if near else ""
    return [Problem(("profile",), f'There is no profile "{settings.profile}".{guess} Known are: {", ".join(known)}.')]


def _impossible_nat(settings: Settings) -> list[Problem]:
    if not settings.network.nat:
        return []
    wrong = ""
    if settings.uri != SYSTEM:
        wrong = f'is true, but uri is "{settings.uri}". Set uri = "{SYSTEM}", or remove nat.'
    elif settings.network.mode == "isolated":
        wrong = 'is true, but mode is "isolated", which means no network. Set another mode, or remove nat.'
    return [Problem(("network", "nat"), f"network.nat {wrong}")] if wrong else []


def _origin(path: tuple[str | int, ...], origins: Mapping[tuple[str, ...], str], file: Path) -> str:
    """Return where a setting is, or else the table that it is, or should be, in."""
    names = tuple(map(str, path))
    return next((origins[names[:end]] for end in range(len(names), 0, -1) if names[:end] in origins), str(file))
