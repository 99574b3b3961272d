"""Canonical JSON (RFC 8785) for the values that a leaf may hold.

Knows: objects, arrays, strings, booleans and integers that a double represents exactly. Does not know: null (a field is
absent) and fractions (they are decimal strings), so the hard half of the RFC, the shortest form of a double, is not needed.
"""

from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import Final

JsonValue = str | int | bool | Sequence["JsonValue"] | Mapping[str, "JsonValue"]
INTEGER_MAX = 2**53 - 1
"""Largest magnitude that survives a reader whose numbers are doubles (RFC 7493, section 2.2)."""
quoted: Final = encode_basestring
"""Write a string. RFC 8785, 3.2.2.2 asks for the escapes that json also uses: two letters for the five that have such a name, the
quotation mark and the backslash, and \\u00xx in lower case for the rest below U+0020."""
_ARRAYS: Final = (list, tuple)


def canonical_json(value: JsonValue) -> bytes:
    """Serialise. Raises ValueError for an integer out of range or a lone surrogate, TypeError for any other type of value."""
    return canonical_text(value).encode("utf-8")


def canonical_text(value: JsonValue) -> str:
    """Serialise, short of the encoding: a lone surrogate is still to be found. Raises ValueError, TypeError."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, int):
        if isinstance(value, bool):
            return "true" if value else "false"
        if not -INTEGER_MAX <= value <= INTEGER_MAX:
            raise ValueError("an integer beyond 2**53 - 1 must be a decimal string")
        return int.__repr__(value)
    if isinstance(value, _ARRAYS):
        return "[" + ",".join(map(canonical_text, value)) + "]"
    if type(value) is dict or isinstance(value, Mapping):  # the first is what comes, and sooner asked
        # Code points are the order wanted where keys are ASCII, as those of every leaf are.
        names = sorted(value) if all(map(str.isascii, value)) else sorted(value, key=_utf16)
        return "{" + ",".join([f"{quoted(name)}:{canonical_text(value[name])}" for name in names]) + "}"
    raise TypeError(f"a leaf holds no {type(value).__name__}")


def _utf16(key: str) -> bytes:
    # Section 3.2.3: keys sort by UTF-16 code units, which differs from code points beyond the basic multilingual plane.
    return key.encode("utf-16-be")
