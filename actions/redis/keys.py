r"""Keys and key patterns. Keys are bytes; plans hold text, so bytes that don't print are written `\xNN` and read back. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from remediator.errors import PlanRefused

_SPECIAL = re.compile(r"[*?\[\]\\^-]")
_GLOB = re.compile(r"\\.|[*?\[]", re.DOTALL)


def key_text(key: bytes) -> str:
    r"""Write a key as text that prints and can be read back.

    >>> key_text(b"tts:\xff\r\n")
    'tts:\\xff\\x0d\\x0a'
    """
    return "".join(_printed(char) for char in key.decode("utf-8", "surrogateescape"))


def key_bytes(text: str) -> bytes:
    r"""Read what `key_text` wrote.

    >>> key_bytes('tts:\\xff\\x0d\\x0a')
    b'tts:\xff\r\n'
    """
    parts = re.split(r"\\(\\|x[0-9a-f]{2})", text)
    plain = [part.encode() for part in parts[::2]]
    escaped = [b"\\" if part == "\\" else bytes([int(part[1:], 16)]) for part in parts[1::2]]
    return b"".join(piece for pair in zip(plain, [*escaped, b""], strict=True) for piece in pair)


def _printed(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    if char.isprintable():
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode())


def escape_glob(value: str) -> str:
    r"""Make a value mean itself inside a pattern, between brackets too.

    >>> escape_glob("a*[b]")
    'a\\*\\[b\\]'
    """
    return _SPECIAL.sub(lambda found: "\\" + found[0], value)


def fill(pattern: str, args: Mapping[str, str | int]) -> str:
    r"""Put escaped values in the place of `{name}`, in one pass: a value that looks like a place is not filled again.

    Braces around other words stay (they are hash tags in a cluster). Raises `PlanRefused` for an empty value.

    >>> fill("tts:{tenant}:*", {"tenant": "a*"})
    'tts:a\\*:*'
    """
    for name, value in args.items():
        if value == "":
            raise PlanRefused(f"argument {name!r} of the key pattern is empty; an empty value would match more than was meant")
    if not args:
        return pattern
    places = re.compile("|".join(re.escape("{" + name + "}") for name in args))
    return places.sub(lambda found: escape_glob(str(args[found[0][1:-1]])), pattern)


def is_exact(pattern: str) -> bool:
    """Tell whether a pattern means one key only."""
    return all(found.startswith("\\") for found in _GLOB.findall(pattern))


def prefix(pattern: str) -> str:
    r"""Return the literal text before the first wildcard, escapes resolved.

    >>> prefix("tts:a\\*:*")
    'tts:a*:'
    """
    end = next((found.start() for found in _GLOB.finditer(pattern) if not found[0].startswith("\\")), len(pattern))
    return re.sub(r"\\(.)", r"\1", pattern[:end], flags=re.DOTALL)
