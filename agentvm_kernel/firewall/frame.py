"""HTML that wants scripts, in a frame that reaches nothing.

The guest's document goes whole into the ``srcdoc`` of a frame of an opaque origin (``sandbox`` without
``allow-same-origin``), which stands in the ``srcdoc`` of a second such frame with a document of ours. The outer one's
policy holds for both: no network but the hosts the user has allowed, and, as ``frame-src`` of a parent governs where
its children go, the guest's document cannot leave for another address and take data along.

What remains outside is the host's own, the same for every frame: a handler that follows the height which the outer
frame tells, within bounds, and listens to no other window.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape, unescape
from typing import Final

from agentvm_kernel.firewall.context import Context
from agentvm_kernel.firewall.height import DEFAULT, FOLLOW, INNER, OUTER
from agentvm_kernel.firewall.reasons import Reason

MAX_CHARACTERS: Final = 32 * 1024 * 1024

_WANTS: Final = re.compile(r"<(?:script|iframe)[\s>/]", re.IGNORECASE)
_LOADER: Final = re.compile(r"<(script|link|img|iframe|source|video|audio|track|embed|input)\b([^>]*)", re.IGNORECASE)
_SCRIPT_END: Final = re.compile(r"</script", re.IGNORECASE)
_REMOTE: Final = re.compile(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//([^\s/"'<>?#\\]{1,253})""", re.IGNORECASE)
_HOST: Final = re.compile(r"(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(?::[0-9]{1,5})?\Z")

_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob: data:{hosts}; "
    "style-src 'unsafe-inline'{hosts}; img-src data: blob:{hosts}; font-src data:{hosts}; "
    "media-src data: blob:{hosts}; worker-src blob:; "
    "connect-src data: blob:{hosts}; frame-src 'none'; form-action 'none'; base-uri 'none'; webrtc 'block'"
)

_OUTER: Final = (
    "<!DOCTYPE html><html><head><meta charset='utf-8'><meta http-equiv='Content-Security-Policy' content=\"{policy}\">"
    "<meta http-equiv='x-dns-prefetch-control' content='off'><meta name='referrer' content='no-referrer'>"
    "<style>html,body{{margin:0;height:100%;overflow:hidden}}iframe{{border:0;width:100%;height:100%;display:block}}"
    "</style>{script}</head>"
    '<body><iframe sandbox="allow-scripts" srcdoc="{document}"></iframe></body></html>'
)


def needs_frame(html: str) -> bool:
    """Whether HTML would lose what it is for by cleaning: it has scripts, or a document in a frame of its own."""
    return _WANTS.search(html) is not None


def framed(html: str, context: Context) -> str:
    """The HTML within its frame.

    Args:
        html: A document or a part of one, of the guest; goes into the frame as it is.
        context: Of the message; its ``frame_hosts`` are the hosts the frame may load from.

    Returns:
        HTML for the page; empty if the document is too large.
    """
    if len(html) > MAX_CHARACTERS:
        context.block(Reason.SIZE, "a document of more than 32 million characters for a frame")
        return ""
    hosts = [host for host in context.frame_hosts if _HOST.match(host)]
    # Maps come as a document in an attribute of a frame.
    inner = unescape(html) if "srcdoc" in html else ""
    if any(not _allowed(host, hosts) for text in (html, inner) for host in _loaded_from(text)):
        context.block(Reason.REMOTE, "loading from a host in a frame; [output] frame_hosts allows hosts")
    policy = _POLICY.format(hosts="".join(f" https://{host}" for host in hosts))
    document = _OUTER.format(policy=policy, script=OUTER, document=escape("<!DOCTYPE html>" + INNER + html))
    return (
        f'<iframe class="agentvm-frame" sandbox="allow-scripts" referrerpolicy="no-referrer" width="100%" '
        f'height="{DEFAULT}" frameborder="0" style="border: 0; width: 100%; height: {DEFAULT}px" '
        f'onload="{escape(FOLLOW)}" srcdoc="{escape(document)}"></iframe>'
    )


def framed_script(script: str, context: Context, html: str = "") -> str:
    """JavaScript (``application/javascript``) in a frame, with an ``element`` to draw in, as notebooks have it.

    Args:
        script: The script.
        context: Of the message.
        html: What stands before the element: the HTML of the same output.
    """
    # Two ways in which a script's text could end its element or swallow its end; in JavaScript's strings both are same.
    text = re.sub(r"<(?=/script|script|!--)", r"\\x3c", script, flags=re.IGNORECASE)
    place = '<div id="element"></div><script>{const element=document.getElementById("element");'
    return framed(f"{html}{place}\n{text}\n}}</script>", context)


def _loaded_from(html: str) -> Iterator[str]:
    """The hosts that a document's elements load from; what its scripts will want is not known."""
    at = 0
    while (tag := _LOADER.search(html, at)) is not None:
        yield from _REMOTE.findall(tag[2])
        at = tag.end()
        if tag[1].lower() == "script":
            end = _SCRIPT_END.search(html, at)
            at = end.end() if end else len(html)


def _allowed(host: str, hosts: list[str]) -> bool:
    name = host.lower()
    return any(
        name == allowed.lower() or (allowed[0] == "*" and name.endswith(allowed[1:].lower())) for allowed in hosts
    )
