"""Where the guest's links may lead, and what its images may be made of."""

from __future__ import annotations

import re
import unicodedata
from html import unescape
from typing import Final
from urllib.parse import urlsplit

from agentvm_kernel.firewall.context import Context
from agentvm_kernel.firewall.names import prefixed
from agentvm_kernel.firewall.reasons import Reason

SCHEMES: Final = frozenset({"http", "https", "mailto"})
"""A click on a link of any other scheme, or on a path of the Jupyter server, does nothing."""

_MAX_LINK: Final = 4096
_LINK: Final = re.compile(r"(?:https?://[^\s/\\?#]|mailto:)[^\s\x00-\x20\x7f\\]*\Z", re.IGNORECASE)
_DATA_IMAGE: Final = re.compile(r"data:image/(png|jpe?g|gif|webp);base64,([A-Za-z0-9+/\s]*={0,2})\s*\Z", re.IGNORECASE)
_DATA_MEDIA: Final = re.compile(
    r"data:(?:audio|video)/[a-z0-9.+-]{1,40};base64,[A-Za-z0-9+/\s]*={0,2}\s*\Z", re.IGNORECASE
)

_TAG: Final = re.compile(r"<[^>]*>")
_HOST_LIKE: Final = re.compile(r"[^\W_](?:[\w-]*\.)+[^\W\d_]{2,}|(?:[0-9]{1,3}\.){3}[0-9]{1,3}")


def clean_link(url: str, context: Context) -> str | None:
    """The target of a link that the user may click: an address with a host, mail, or a place in the same output.

    Paths are refused: they would lead to the Jupyter server, under the user's own login.
    """
    url = url.strip()
    if url.startswith("#"):
        name = prefixed(url[1:])
        return f"#{name}" if name else None
    if len(url) <= _MAX_LINK and _LINK.match(url):
        return url
    context.block(Reason.LINK, "a link to something else than a web address")
    return None


def clean_image(url: str, context: Context) -> str | None:
    """The source of an image: only the image itself (``data:``); fetching one would tell its server, or ask ours."""
    url = url.strip()
    if _DATA_IMAGE.match(url):
        return url
    if url[:5].lower() == "data:":
        context.block(Reason.MIME, "an image that is no PNG, JPEG, GIF or WebP")
    else:
        context.block(Reason.REMOTE, "an image that the browser would have to fetch")
    return None


def clean_media(url: str, context: Context) -> str | None:
    """The source of sound or film, likewise only as data."""
    url = url.strip()
    if _DATA_MEDIA.match(url):
        return url
    context.block(Reason.REMOTE, "sound or film that the browser would have to fetch")
    return None


def other_host(html: str, url: str) -> str | None:
    """The host of a link whose text names another one, or names it in letters that look like others; None if neither.

    Args:
        html: What is between the link's tags, cleaned.
        url: Where it leads; an address as `clean_link` lets through.
    """
    if html.isascii() and "." not in html and "&" not in html:
        return None
    host = _host(url)
    text = unicodedata.normalize("NFKC", unescape(_TAG.sub("", html))).lower()
    named = _HOST_LIKE.findall("".join(char for char in text if unicodedata.category(char) != "Cf"))
    if host is None or text.endswith(f"[{host}]"):
        return None
    return host if any(not f".{host}".endswith(f".{name}") for name in named) else None


def _host(url: str) -> str | None:
    """The host of an address as a browser asks for it, or that of a mailbox."""
    if url[:7].lower() == "mailto:":
        return url.partition("?")[0].rpartition("@")[2].lower() or None
    try:
        name = urlsplit(url).hostname
        return name.encode("idna").decode() if name else None
    except ValueError:
        return url
