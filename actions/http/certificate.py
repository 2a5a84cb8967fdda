"""Read when an X.509 certificate ends. Pure.

The standard library parses only certificates that it could verify; those that it could not are the ones asked about.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (tag, content) of each DER element in `data`. Raises ValueError."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise ValueError("it ends early")
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        if at + length > len(data):
            raise ValueError("it ends early")
        yield tag, data[at : at + length]
        at += length


def _inside(data: bytes) -> list[tuple[int, bytes]]:
    """Return the elements of the one SEQUENCE that `data` is."""
    parts = list(_parts(data))
    if len(parts) != 1 or parts[0][0] != _SEQUENCE:
        raise ValueError("it is not DER")
    return list(_parts(parts[0][1]))


def not_after(der: bytes) -> datetime:
    """Return the last moment at which a certificate is valid, UTC. Raises ValueError (RFC 5280, 4.1)."""
    certificate = _inside(der)
    signed = [part for part in _parts(certificate[0][1]) if part[0] != _VERSION] if certificate else []
    # What is signed begins with the serial number, the algorithm, the issuer and the validity: two times.
    validity = list(_parts(signed[3][1])) if len(signed) > 3 else []
    if len(validity) != 2:
        raise ValueError("it has no validity")
    tag, text = validity[1]
    return _time(tag, text.decode("ascii"))


def _time(tag: int, text: str) -> datetime:
    if tag == _UTC_TIME:
        # RFC 5280: two digits from 50 on are years of the twentieth century.
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("its end is not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
