"""Canonical JSON (RFC 8785) for the values that a leaf may hold.

Knows: objects, arrays, strings, booleans and integers that a double represents exactly. Does not know: null (a field is
absent) and fractions (they are decimal strings), so the hard half of the RFC, the shortest form of a double, is not needed.
"""

import json
from collections.abc import Mapping, Sequence

JsonValue = str | int | bool | Sequence["JsonValue"] | Mapping[str, "JsonValue"]
INTEGER_MAX = 2**53 - 1
"""Largest magnitude that survives a reader whose numbers are doubles (RFC 7493, section 2.2)."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def canonical_json(value: JsonValue) -> bytes:
    """Serialise. Raises ValueError for an integer out of range or a lone surrogate, TypeError for any other type of value."""
    # RFC 8785, 3.2.2.2 asks for the escapes that json also uses: \\b \\t \\n \\f \\r \\" \\\\ and \\u00xx in lower case
    # below U+0020.
    return _encode(_ordered(value)).encode("utf-8")


def _ordered(value: JsonValue) -> JsonValue:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise ValueError("an integer beyond 2**53 - 1 must be a decimal string")
        return value
    if isinstance(value, Mapping):
        return {key: _ordered(value[key]) for key in sorted(value, key=_utf16)}
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    raise TypeError(f"a leaf holds no {type(value).__name__}")


def _utf16(key: str) -> bytes:
    # Section 3.2.3: keys sort by UTF-16 code units, which differs from code points beyond the basic multilingual plane.
    return key.encode("utf-16-be")
