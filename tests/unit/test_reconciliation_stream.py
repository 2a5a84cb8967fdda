"""A list taken apart while it arrives gives what it gives when read whole, however it is cut; anything else is an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.errors import TemporaryError
from remediator.reconciliation.stream import MAX_ELEMENT, ArrayReader

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def read(text: bytes, *, size: int) -> list[Any]:
    """Feed a text in parts of `size` bytes."""
    reader, found = ArrayReader(), []
    for begin in range(0, len(text), size):
        found += reader.feed(text[begin : begin + size])
    reader.close()
    return found


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=6), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_any_list_in_any_parts(items: list[dict[str, Any]], size: int, indent: int | None, plain: bool) -> None:
    """Blanks, escapes and characters of several bytes included."""
    text = json.dumps(items, indent=indent, ensure_ascii=plain)
    assert read(text.encode("utf-8", "surrogatepass" if plain else "replace"), size=size) == json.loads(text.encode("utf-8", "replace"))


def test_objects_come_as_soon_as_they_are_complete() -> None:
    """Nothing is kept that was given."""
    reader = ArrayReader()
    assert reader.feed(b'[{"a": 1}, {"b"') == [{"a": 1}]
    assert reader.feed(b': 2}, {"c": 3') == [{"b": 2}]
    assert reader.feed(b"}]\n") == [{"c": 3}]
    reader.close()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b"[{}",
        b"[{},",
        b"[{},]",
        b"[,{}]",
        b"[{} {}]",
        b"[1]",
        b"[[]]",
        b'["a"]',
        b"{}",
        b"null",
        b"[]]",
        b"[] []",
        b"[{]",
        b"\xff[]",
    ],
)
def test_anything_else_is_an_error(text: bytes) -> None:
    """Also what ends in the middle: half a list must not pass for a whole one."""
    with pytest.raises(TemporaryError):
        read(text, size=3)


def test_an_element_has_a_limit() -> None:
    """However long it goes on, no more is kept."""
    reader = ArrayReader()
    reader.feed(b'[{"a": "')
    for _ in range(MAX_ELEMENT // 100_000):
        reader.feed(b"x" * 100_000)
    with pytest.raises(TemporaryError, match="more than"):
        reader.feed(b"x" * 100_000)


def test_what_is_nested_too_deeply_or_counts_too_far_is_an_error() -> None:
    """As a body made to hurt would be."""
    with pytest.raises(TemporaryError, match="nested"):
        read(b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", size=1 << 20)
    with pytest.raises(TemporaryError, match="number"):
        read(b'[{"a": ' + b"9" * 5000 + b"}]", size=1 << 20)
