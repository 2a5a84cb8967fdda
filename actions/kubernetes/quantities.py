"""Kubernetes' quantities (`500m`, `1.5Gi`, `1e3`): as exact numbers, written the one way in which the server writes them, and grown. Pure.

The server rewrites what it is sent (`0.5` → `500m`, `1024Mi` → `1Gi`); only what is already in that form comes back unchanged.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, localcontext

_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30}))(?:[eE](?P<exponent>[+-]?[0-9]{1,2})|(?P<suffix>[numkMGTPE]|[KMGTPE]i)?)"
)
_SUFFIXES = {
    **{name: Decimal(10) ** power for name, power in zip(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), range(-9, 19, 3), strict=True)},
    **{f"{name}i": Decimal(1024) ** power for power, name in enumerate("KMGTPE", start=1)},
}

_DECIMAL = {-3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_MILLI = Decimal("0.001")
_MOST = Decimal(2**63 - 1)


def parse_quantity(text: str) -> Decimal:
    """Parse a quantity. Raises ValueError.

    >>> parse_quantity("250m"), parse_quantity("1.5Gi"), parse_quantity("2e3"), parse_quantity("1E")
    (Decimal('0.250'), Decimal('1610612736.0'), Decimal('2000'), Decimal('1000000000000000000'))
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a quantity such as 500m, 2, 1.5Gi")
    factor = Decimal(10) ** int(match["exponent"]) if match["exponent"] else _SUFFIXES[match["suffix"] or ""]
    return Decimal(match["number"]) * factor


def whole(quantity: Decimal) -> int:
    """Round a quantity up to a whole number, as the API server does: bytes, Pods."""
    return int(quantity.to_integral_value(rounding=ROUND_CEILING))


def canonical(text: str) -> str:
    """Return a quantity as the server would write it. Raises ValueError for none, a negative one, and one beyond 2^63 - 1.

    >>> [canonical(text) for text in ("0.5", "1000m", "1024Mi", "1.5Gi", "4096M", "1e3", "0.0001", "512Ki", "1023", "0.5Gi", "0")]
    ['500m', '1', '1Gi', '1536Mi', '4096M', '1e3', '1m', '512Ki', '1023', '512Mi', '0']
    """
    return write(parse_quantity(text), like=text)


def write(value: Decimal, *, like: str) -> str:
    """Write `value`, rounded up to thousandths, with the family of suffixes that `like` has. Raises ValueError.

    >>> write(Decimal(3221225472), like="2Gi"), write(Decimal("1.5"), like="1"), write(Decimal("1.5"), like="1Ki")
    ('3Gi', '1500m', '1500m')
    """
    if value < 0 or value > _MOST:
        raise ValueError(f"{like[:40]!r} is not between 0 and 2^63 - 1")
    with localcontext(prec=60):
        milli = int((value / _MILLI).to_integral_value(rounding=ROUND_CEILING))
    if like.endswith("i") and milli >= 1024 * 1000 and milli % 1000 == 0:
        return _binary(milli // 1000)
    return _decimal(milli, exponential="e" in like or ("E" in like and not like.endswith(("E", "Ei"))))


def _binary(number: int) -> str:
    power = 0
    while number % 1024 == 0 and power < len(_BINARY) - 1:
        number, power = number // 1024, power + 1
    return f"{number}{_BINARY[power]}"


def _decimal(milli: int, *, exponential: bool) -> str:
    number, exponent = milli, -3
    while number and number % 1000 == 0 and exponent < max(_DECIMAL):
        number, exponent = number // 1000, exponent + 3
    if not number or not exponent:
        return str(number)
    return f"{number}e{exponent}" if exponential else f"{number}{_DECIMAL[exponent]}"


def grown(text: str, factor: Decimal) -> str:
    """Return a quantity times `factor`, rounded up to what people would write: whole Mi (or M), thousandths of a CPU.

    >>> grown("1Gi", Decimal("1.1")), grown("250m", Decimal("1.5")), grown("100M", Decimal("1.25")), grown("500", Decimal("1.001"))
    ('1127Mi', '375m', '125M', '500500m')
    """
    step = Decimal(2**20) if text.endswith("i") else Decimal(10**6)
    with localcontext(prec=60):
        value = parse_quantity(text) * factor
        if value >= step:
            value = (value / step).to_integral_value(rounding=ROUND_CEILING) * step
    return write(value, like=text)
