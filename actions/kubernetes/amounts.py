"""Writing quantities the one way in which the API server writes them back, and letting them grow. Pure.

The server rewrites what it is sent (`0.5` → `500m`, `1024Mi` → `1Gi`); only what is already in that form comes back unchanged.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, localcontext

from actions.kubernetes.quantities import parse_quantity

_DECIMAL = {-3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_MILLI = Decimal("0.001")
_MOST = Decimal(2**63 - 1)


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
