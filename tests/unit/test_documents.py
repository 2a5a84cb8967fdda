"""JSON of other systems: read strictly, looked into by pointers, kept when it is small."""

from __future__ import annotations

from typing import Any

import pytest

from remediator.documents import DEEPEST, MOST_ITEMS, fits, follow, parse


def test_integers_beyond_64_bits_become_doubles() -> None:
    """The expression language has 64-bit integers."""
    assert parse("[9223372036854775807, 9223372036854775808]") == [9223372036854775807, 9.223372036854775808e18]


@pytest.mark.parametrize("text", ["", "NaN", "-Infinity", "1e999", '"\\ud800"', "[" * 60_000, "9" * 501])
def test_what_other_programs_would_not_read_alike_is_refused(text: str) -> None:
    """No number without a value, no half of a character, nothing nested beyond what can be walked."""
    with pytest.raises(ValueError, match=r".+"):
        parse(text)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"a": None, "b": [1, {"c": "x" * 500}]}, True),
        ("x" * 501, False),
        ({"x" * 501: 1}, False),
        ("a\0b", False),
        ([None], False),
        ([1] * (MOST_ITEMS + 1), False),
    ],
)
def test_only_small_documents_are_kept(value: Any, *, kept: bool) -> None:
    """Short texts, also as names, few members, and no null in a list, whose place could not be left out."""
    assert fits(value) is kept


def test_deep_documents_are_not_kept() -> None:
    """One level more than is kept."""
    value: Any = 1
    for _ in range(DEEPEST):
        value = [value]
    assert fits(value)
    assert not fits([value])


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("", {"a": [1, {"b/c": 2, "d~e": 3}]}),
        ("/a/0", 1),
        ("/a/1/b~1c", 2),
        ("/a/1/d~0e", 3),
        ("/a/2", None),
        ("/a/-1", None),
        ("/a/00", None),
        ("/a/0/x", None),
    ],
)
def test_pointer_follows_rfc_6901(pointer: str, value: Any) -> None:
    """Escapes, indices without leading zeros, and nothing for what is not there."""
    assert follow({"a": [1, {"b/c": 2, "d~e": 3}]}, pointer) == value
