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
_encode_sorted = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, sort_keys=True).encode


def canonical_json(value: JsonValue) -> bytes:
    """Serialise. Raises ValueError for an integer out of range or a lone surrogate, TypeError for any other type of value."""
    # RFC 8785, 3.2.2.2 asks for the escapes that json also uses: \\b \\t \\n \\f \\r \\" \\\\ and \\u00xx in lower case
    # below U+0020. json sorts keys by code points, which is the order wanted where they are ASCII, as those of every leaf are.
    return (_encode_sorted(value) if _is_plain(value) else _encode(_ordered(value))).encode("utf-8")


def _is_plain(value: object) -> bool:
    """Whether `value` is of plain types within bounds, with ASCII keys: what json writes canonically by itself."""
    kind = type(value)
    if kind is str or kind is bool:
        return True
    if kind is int:
        return -INTEGER_MAX <= value <= INTEGER_MAX  # type: ignore[operator]
    if kind is dict:
        for key, item in value.items():  # type: ignore[attr-defined]
            if type(key) is not str or not key.isascii() or (type(item) is not str and not _is_plain(item)):
                return False
        return True
    return (kind is list or kind is tuple) and all(map(_is_plain, value))  # type: ignore[call-overload]


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
