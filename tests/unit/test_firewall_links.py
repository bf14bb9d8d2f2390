"""Links and pictures in HTML: addresses with a host may be clicked, and only data is drawn."""

from __future__ import annotations

import pytest
from firewall_bed import Said

from agentvm_kernel.firewall.links import clean_image, clean_link, clean_media, other_host
from agentvm_kernel.firewall.names import prefixed, prefixed_list
from agentvm_kernel.firewall.reasons import Reason


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://example.org/a?b=c#d", "https://example.org/a?b=c#d"),
        ("HTTP://example.org:8080/", "HTTP://example.org:8080/"),
        (" https://example.org ", "https://example.org"),
        ("mailto:a@example.org", "mailto:a@example.org"),
        ("#place", "#vm-place"),
        ("#vm-place", "#vm-place"),
    ],
)
def test_addresses_mail_and_places_in_the_output_may_be_clicked(url: str, kept: str) -> None:
    said = Said()
    assert clean_link(url, said.context) == kept
    assert said.reasons == []


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "java\tscript:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "blob:http://x/y",
        "file:///etc/passwd",
        "vscode://x",
        "jupyterlab:x",
        "/lab/tree/x",
        "lab",
        "../api/contents",
        "//example.org",
        "\\\\example.org",
        "https:/lab",
        "https:lab",
        "https:///lab",
        "https://\\example.org",
        "https://?x",
        "https://#x",
        "https://a b",
        "https://a\x00b",
        "https://a\\b",
        "https://a\nb",
        "ftp://example.org",
        "",
        "https://" + "a" * 5000,
    ],
)
def test_no_other_link_leads_anywhere(url: str) -> None:
    said = Said()
    assert clean_link(url, said.context) is None
    assert said.reasons == [Reason.LINK]


def test_a_place_with_another_name_than_elements_have_is_none() -> None:
    assert clean_link("#", Said().context) is None
    assert clean_link("#a b", Said().context) is None
    assert clean_link("#:~:text=x", Said().context) is None


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpg", "gif", "webp"])
def test_pictures_are_drawn_from_data(kind: str) -> None:
    said = Said()
    url = f"data:image/{kind};base64,AAAA"
    assert clean_image(f" {url} ", said.context) == url
    assert said.reasons == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/svg+xml;base64,AAAA", Reason.MIME),
        ("data:image/png,AAAA", Reason.MIME),
        ("data:image/png;base64,<svg>", Reason.MIME),
        ("data:text/html;base64,AAAA", Reason.MIME),
        ("DATA:,x", Reason.MIME),
        ("https://evil.example/x.png", Reason.REMOTE),
        ("//evil.example/x.png", Reason.REMOTE),
        ("/files/secret.png", Reason.REMOTE),
        ("x", Reason.REMOTE),
        ("blob:x", Reason.REMOTE),
        ("", Reason.REMOTE),
    ],
)
def test_no_picture_is_fetched_or_a_document(url: str, reason: Reason) -> None:
    said = Said()
    assert clean_image(url, said.context) is None
    assert said.reasons == [reason]


@pytest.mark.parametrize("url", ["data:audio/wav;base64,AAAA", "data:video/mp4;base64,AA=="])
def test_sound_and_film_are_played_from_data(url: str) -> None:
    assert clean_media(url, Said().context) == url


@pytest.mark.parametrize("url", ["https://evil.example/x.mp4", "data:text/html;base64,AAAA", "data:audio/wav,x", "x"])
def test_no_sound_or_film_is_fetched(url: str) -> None:
    said = Said()
    assert clean_media(url, said.context) is None
    assert said.reasons == [Reason.REMOTE]


def test_names_get_a_prefix_once() -> None:
    assert prefixed("a") == "vm-a"
    assert prefixed("vm-a") == "vm-a"
    assert prefixed("dataframe") == "dataframe"
    assert prefixed_list(" a  vm-b a.b agentvm-scope-1 ") == "vm-a vm-b"
    assert prefixed_list("a.b") is None


@pytest.mark.parametrize("name", ["", "a b", "a.b", "é", "a\n", "x" * 201, "agentvm-scope-0123456789abcdef"])
def test_what_is_no_plain_name_is_none(name: str) -> None:
    assert prefixed(name) is None


@pytest.mark.parametrize(
    "text",
    [
        "https://good.example",
        "good.example",
        "GOOD.example/login",
        "good<b>.exam</b>ple",
        "good&#46;example",
        "good\N{ONE DOT LEADER}example",
        "good\N{ZERO WIDTH SPACE}.example",
        "www.evil.example",
        "evil.example, as good as good.example",
        "192.0.2.1",
    ],
)
def test_a_link_whose_text_names_another_host_says_its_own(text: str) -> None:
    assert other_host(text, "https://evil.example/x") == "evil.example"


@pytest.mark.parametrize("text", ["here", "evil.example", "https://www.evil.example/x", "example", "1.5", "v2.0.1", ""])
def test_a_link_whose_text_names_its_host_or_none_says_no_more(text: str) -> None:
    assert other_host(text, "https://www.evil.example/x") is None


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://good.example@evil.example/", "evil.example"),
        ("https://evil.example:8443/good.example", "evil.example"),
        ("https://g\N{CYRILLIC SMALL LETTER O}od.example", "xn--god-sed.example"),
        ("https://[good.example", "https://[good.example"),
    ],
)
def test_a_host_is_told_as_the_browser_asks_for_it(url: str, host: str) -> None:
    assert other_host("good.example", url) == host


def test_mail_to_another_host_than_the_text_names_says_so() -> None:
    assert other_host("a@good.example", "mailto:a@evil.example?subject=x") == "evil.example"
    assert other_host("a@good.example", "mailto:a@good.example") is None
