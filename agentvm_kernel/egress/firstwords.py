"""What a program speaks, from the first bytes that it sends, and what of it can be held against the decided name."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from agentvm_kernel.egress.names import NameRefusedError, normalize, shown
from agentvm_kernel.errors import AgentVMError

LONGEST_LINE: Final = 16 * 1024
"""Bytes of a first line that may yet become a request of HTTP's; a longer one is held for it, and so checked."""

_TOKEN: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]*")
_PACKET: Final = re.compile(rb"([0-9a-fA-F]{4})git-(?:upload|receive)-(?:pack|archive) ")
_LONGEST_PACKET: Final = 4096


class Protocol(StrEnum):
    """What is spoken on a connection."""

    TLS = "tls"
    HTTP = "http"
    SSH = "ssh"
    GIT = "git"
    TCP = "tcp"


class SpeechError(AgentVMError):
    """What a program says is not for the host and port that were decided."""

    code = "speech"


def recognize(data: bytes) -> Protocol | None:
    """Return what is spoken; None while more is needed to tell.

    What a lenient server might take for HTTP counts as HTTP, whose names are then checked.

    Args:
        data: All that the program has sent, not empty.
    """
    text = data.lstrip(b"\r\n\t\v\f ")
    if data[0] == 0x16 or text.startswith(b"SSH-"):
        return Protocol.TLS if data[0] == 0x16 else Protocol.SSH
    token = _TOKEN.match(text)
    size = token.end() if token else 0
    if size < len(text) and (not size or text[size] not in b" \t\v\f"):
        return Protocol.GIT if _PACKET.match(data) else Protocol.TCP
    line, newline, _ = text.partition(b"\n")
    if b"http/" in line.lower() or len(line) > LONGEST_LINE:
        return Protocol.HTTP
    if _PACKET.match(data) or newline:
        return Protocol.GIT if _PACKET.match(data) else Protocol.TCP
    return None


def check_git(data: bytes, name: str) -> bool:
    """Return whether the first packet of git's own protocol is complete and fits; False while it is not complete.

    Args:
        data: All that the program has sent; begins as such a packet does.
        name: The decided name.

    Raises:
        SpeechError: it names another host.

    The packet is described in git's gitprotocol-pack(5): ``LENGTH git-upload-pack PATH NUL host=NAME[:PORT] NUL``.
    """
    head = _PACKET.match(data)
    size = int(head[1], 16) if head else 0
    if not 4 < size <= _LONGEST_PACKET:
        raise SpeechError("The request to the git server is not valid.")
    if len(data) < size:
        return False
    for parameter in data[:size].split(b"\0")[1:]:
        key, _, value = parameter.partition(b"=")
        if key == b"host" and not _is_host(value.decode("latin-1"), name):
            raise SpeechError(f"The request names the git server {shown(value.decode('latin-1'))!r}, not {name}.")
    return True


def _is_host(text: str, name: str) -> bool:
    try:
        return normalize(re.sub(r":[0-9]{1,5}$", "", text)) == name
    except NameRefusedError:
        return False
