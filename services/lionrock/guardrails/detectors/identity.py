"""Identity numbers of Hong Kong and of the mainland.

Knows: the Hong Kong identity card number (one or two letters, six digits, a check character mod 11 over weights 9 to 2, a
missing first letter counting 36) and the citizen identity number of GB 11643-1999 (ISO 7064 MOD 11-2), including the residence
permits for Hong Kong, Macao and Taiwan residents, which begin with 810000, 820000 and 830000 (State Council, 2018). A random
body passes the HKID's check once in eleven, so the bare form is only credible next to a word that says what it is. Does not
know: policies.
"""

import datetime
import re
from typing import Final

import re2

from lionrock.guardrails.detectors.detector import Detector, Hit, shape

_HKID_PARTS: Final = re.compile(r"([A-Za-z]{1,2}) ?([0-9]{6})[ -]?(?:([(\[]) ?([0-9Aa]) ?[)\]]|([0-9Aa]))")
_HKID_WORDS: Final = re2.compile(
    r"(?i)\bhk ?id\b|\bid ?(?:card|no|number|#)|\bidentity|身[份分] ?[證证]|[證证]件|hong kong id"
    r"|\bi\.?d\.?[ :]|回[鄉乡][證证]|登[記记][號号]"
)
_RESIDENT_WORDS: Final = re2.compile(
    r"(?i)身[份分] ?[證证]|公民|[證证]件|居民|\bid ?(?:card|no|number|#)|\bidentity|\bi\.?d\.?[ :]"
)
_RESIDENT_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
# GB/T 2260, first two digits; 81, 82, 83 are the residence permits.
_PROVINCES: Final = frozenset(
    [*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83]
)


def hkid_check_character(letters: str, digits: str) -> str:
    """Return the check character of an HKID with one or two upper-case letters and six digits."""
    values = [36, *(ord(c) - 55 for c in letters)][-2:] if len(letters) == 1 else [ord(c) - 55 for c in letters]
    total = sum(v * w for v, w in zip([*values, *map(int, digits)], range(9, 1, -1), strict=True))
    return "0A987654321"[total % 11]


def resident_check_character(body: str) -> str:
    """Return the check character of the first 17 digits of a resident identity number."""
    return "10X98765432"[sum(int(d) * w for d, w in zip(body, _RESIDENT_WEIGHTS, strict=True)) % 11]


def _check_hkid(match: str, context: str) -> Hit | None:
    parts = _HKID_PARTS.match(match)
    if parts is None:
        return None
    letters, digits, bracket, inside, bare = parts.groups()
    if hkid_check_character(letters.upper(), digits) != (inside or bare).upper():
        return None
    if bracket:
        return Hit(parts.end(), 0.97)
    # What follows the number in a match is a word that names it.
    named = parts.end() < len(match) or _HKID_WORDS.search(context.encode()) is not None
    return Hit(parts.end(), 0.95 if named else 0.4)


def _valid_date(text: str) -> bool:
    try:
        datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return "1850" <= text[:4] <= "2099"


def _check_resident_id(match: str, context: str) -> Hit | None:
    number = match.replace(" ", "").upper()
    if int(number[:2]) not in _PROVINCES:
        return None
    if number[:2] in ("81", "82", "83") and number[2:6] != "0000":
        return None
    if len(number) == 18:
        if not _valid_date(number[6:14]) or resident_check_character(number[:17]) != number[17]:
            return None
        return Hit(len(match), 0.99)
    # Numbers of 1984 to 1999 have two digits for the year and no check character.
    if not _valid_date("19" + number[6:12]):
        return None
    return Hit(len(match), 0.85 if _RESIDENT_WORDS.search(context.encode()) else 0.3)


HKID: Final = Detector(
    "hkid",
    (
        shape(r"[A-Z]{1,2} ?[0-9]{6}[ -]?[(\[] ?[0-9A] ?[)\]]", after=False),
        shape(r"[A-Z]{1,2} ?[0-9]{6}[ -]?[0-9A]"),
        shape(r"[A-Z]{1,2}[0-9]{6}[0-9A](?:[^0-9A-Za-z\n][^0-9\n]{0,11})?(?:hk ?id|id card|identity|身[份分][證证])", after=False),
    ),
    _check_hkid,
)
RESIDENT_ID: Final = Detector(
    "resident_id",
    (shape(r"[1-8][0-9]{5} ?[12][0-9]{3} ?[01][0-9][0-3][0-9] ?[0-9]{3}[0-9X]"), shape(r"[1-8][0-9]{7}[01][0-9][0-3][0-9]{4}")),
    _check_resident_id,
)
