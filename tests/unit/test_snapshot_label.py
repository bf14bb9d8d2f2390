"""Labels come from users and from imported files."""

from __future__ import annotations

import pytest

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.snapshots.label import check_label


@pytest.mark.parametrize("text", ["a", "7", "before-the-split", "v1.2_final", "A" * 64, "deadbeef", "deadbeefcafe0"])
def test_a_plain_name_is_a_label(text: str) -> None:
    assert check_label(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "../x",
        "..",
        ".hidden",
        "a/b",
        "a\0b",
        "a\n",
        "a b",
        "-m",
        "--now",
        "~2",
        "_x",
        "A" * 65,
        "A" * 300,
        "\u0430bc",
        "ab\u200bc",
        "\uff11",
        "\u0662",
        "\u017f",
        "\u00e4",
        "\u202eabc",
    ],
)
def test_anything_else_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(SnapshotError, match="A label is 1 to 64 characters long") as caught:
        check_label(text)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


def test_a_label_cannot_be_taken_for_an_id() -> None:
    with pytest.raises(SnapshotError, match="taken for an id"):
        check_label("deadbeefcafe")
