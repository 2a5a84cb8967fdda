"""Texts from outside, such as what containers wrote, as they may be kept and shown. Pure."""

from __future__ import annotations

LONGEST_TEXT = 500


def clean(text: str) -> str:
    """Cut a text from outside to 500 characters, without NULs, which PostgreSQL can't store, and without halves of surrogate pairs."""
    return text[:LONGEST_TEXT].replace("\0", "").encode(errors="replace").decode()
