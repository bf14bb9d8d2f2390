"""Pictures: data of the format that it says, of a size that a browser can hold; SVG only where it is no document."""

from __future__ import annotations

import base64
import struct

import pytest
from firewall_bed import Said
from output_checker import html_problems

from agentvm_kernel.firewall.images import clean_picture
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.firewall.svg import MAX_CHARACTERS, clean_svg

SVG = """<?xml version="1.0"?><!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg" width="460pt"><style>*{stroke:red}
</style><defs><clipPath id="p1"><rect/></clipPath></defs><use href="#p1" onload="alert(1)"/><script>x</script></svg>"""


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0" + bytes(90)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(90)


@pytest.mark.parametrize(
    ("mime", "data"),
    [
        ("image/png", png(640, 480)),
        ("image/gif", gif(640, 480)),
        ("image/jpeg", b"\xff\xd8\xff\xe0" + bytes(90)),
        ("image/webp", b"RIFF\0\0\0\0WEBP" + bytes(90)),
        ("image/png", b"\x89PNG\r\n\x1a\n"),
        ("image/gif", b"GIF87a"),
    ],
)
def test_a_picture_stays_as_it_is(mime: str, data: bytes) -> None:
    said = Said()
    for value in (encoded(data), base64.encodebytes(data).decode(), encoded(data) + "\n"):
        assert clean_picture(mime, value, said.context) == value
    assert said.reasons == []


@pytest.mark.parametrize(
    ("mime", "value", "reason"),
    [
        ("image/png", encoded(gif(1, 1)), Reason.MALFORMED),
        ("image/png", encoded(b"<svg onload=x>" + bytes(60)), Reason.MALFORMED),
        ("image/jpeg", encoded(b"<html>" + bytes(60)), Reason.MALFORMED),
        ("image/png", "AAAA", Reason.MALFORMED),
        ("image/png", "A", Reason.MALFORMED),
        ("image/png", "", Reason.MALFORMED),
        ("image/png", encoded(png(1, 1)) + '" onerror="x', Reason.MALFORMED),
        ("image/png", encoded(png(1, 1)) + "é", Reason.MALFORMED),
        ("image/png", {"a": 1}, Reason.MALFORMED),
        ("image/png", None, Reason.MALFORMED),
        ("image/png", encoded(png(65536, 65536)), Reason.SIZE),
        ("image/gif", encoded(gif(65535, 65535)), Reason.SIZE),
    ],
)
def test_what_is_no_such_picture_is_not_shown(mime: str, value: object, reason: Reason) -> None:
    said = Said()
    assert clean_picture(mime, value, said.context) is None
    assert said.reasons == [reason]


def test_an_svg_becomes_an_image_in_which_nothing_of_it_runs() -> None:
    said = Said()
    html = clean_svg(SVG, {"width": 460, "height": 345.6, "onload": 1}, said.context)
    assert html is not None
    assert html.startswith('<img alt="SVG" width="460" height="345.6" ')
    shown = base64.b64decode(html.partition("base64,")[2].rstrip('">')).decode()
    assert shown == SVG.removeprefix('<?xml version="1.0"?>')
    assert list(html_problems(html)) == []
    assert said.reasons == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [(b"x", Reason.MALFORMED), (["x"], Reason.MALFORMED), ("x" * (MAX_CHARACTERS + 1), Reason.SIZE)],
)
def test_an_svg_that_is_none_or_too_long_is_not_shown(value: object, reason: Reason) -> None:
    said = Said()
    assert clean_svg(value, {}, said.context) is None
    assert said.reasons == [reason]
