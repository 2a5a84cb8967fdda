"""Kubernetes' quantities (`500m`, `1.5Gi`, `1e3`) as exact numbers. Pure."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30}))(?:[eE](?P<exponent>[+-]?[0-9]{1,2})|(?P<suffix>[numkMGTPE]|[KMGTPE]i)?)"
)
_SUFFIXES = {
    **{name: Decimal(10) ** power for name, power in zip(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), range(-9, 19, 3), strict=True)},
    **{f"{name}i": Decimal(1024) ** power for power, name in enumerate("KMGTPE", start=1)},
}


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
