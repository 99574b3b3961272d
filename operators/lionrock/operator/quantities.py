"""Kubernetes quantities: "64Gi", 8, "1500m".

Exact arithmetic on decimals, no floats. Source: `k8s.io/apimachinery/pkg/api/resource/quantity.go`. Knows no resources.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Final

_SUFFIXES: Final = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(1 << 10),
    "Mi": Decimal(1 << 20),
    "Gi": Decimal(1 << 30),
    "Ti": Decimal(1 << 40),
    "Pi": Decimal(1 << 50),
    "Ei": Decimal(1 << 60),
}
_FORM: Final = re.compile(
    r"([+-]?[0-9]{1,30}(?:\.[0-9]{0,30})?|[+-]?\.[0-9]{1,30})(?:[eE]([+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i)?)"
)
_BINARY: Final = ("Ti", "Gi", "Mi", "Ki")


class QuantityError(Exception):
    """A value is no quantity of Kubernetes, or not one of its use."""


def parse_quantity(value: object) -> Decimal:
    """Return the number that the API server reads. Raises QuantityError."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise QuantityError("a quantity is a number or a string")
    if isinstance(value, int):
        return Decimal(value)
    matched = _FORM.fullmatch(value)
    if matched is None:
        raise QuantityError(f"{value[:40]!r} is no quantity")
    number, exponent, suffix = matched.groups()
    return Decimal(number) * (Decimal(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""])


def parse_count(value: object) -> int:
    """Whole things, as extended resources are counted. Raises QuantityError for a negative or broken number."""
    number = parse_quantity(value)
    if number < 0 or number != number.to_integral_value():
        raise QuantityError(f"{value!r} is no whole number of things")
    return int(number)


def parse_bytes(value: object) -> int:
    """Bytes, a part of one rounded up as the API server does. Raises QuantityError for a negative number."""
    number = parse_quantity(value)
    if number < 0:
        raise QuantityError(f"{value!r} is negative")
    return int(number.to_integral_value(ROUND_CEILING))


def format_bytes(count: int) -> str:
    """Bytes in the largest binary unit that loses nothing: 64Gi."""
    for suffix in _BINARY:
        unit = int(_SUFFIXES[suffix])
        if count and count % unit == 0:
            return f"{count // unit}{suffix}"
    return str(count)
