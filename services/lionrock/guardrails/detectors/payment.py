"""Payment card numbers.

Knows: the Luhn check (ISO/IEC 7812-1, annex B) and which lengths the schemes issue under which prefixes. One random number in
ten passes Luhn, so a number outside the schemes' ranges is none. Does not know: policies.
"""

from typing import Final

from lionrock.guardrails.detectors.detector import Detector, Hit, digits_of, group_ends, shape

# (first, last, digits of the prefix, lengths). Visa, Mastercard, American Express, UnionPay, JCB, Discover, Diners Club, Maestro.
_RANGES: Final = (
    (4, 4, 1, frozenset({13, 16, 19})),
    (51, 55, 2, frozenset({16})),
    (2221, 2720, 4, frozenset({16})),
    (34, 34, 2, frozenset({15})),
    (37, 37, 2, frozenset({15})),
    (62, 62, 2, frozenset({16, 17, 18, 19})),
    (81, 81, 2, frozenset({16, 17, 18, 19})),
    (3528, 3589, 4, frozenset({16, 17, 18, 19})),
    (6011, 6011, 4, frozenset({16, 19})),
    (644, 659, 3, frozenset({16, 19})),
    (300, 305, 3, frozenset({14, 16, 19})),
    (36, 36, 2, frozenset({14, 16, 19})),
    (38, 39, 2, frozenset({14, 16, 19})),
    (5018, 5018, 4, frozenset({16})),
    (6759, 6763, 4, frozenset({16})),
)


def luhn_valid(number: str) -> bool:
    """Whether a string of digits passes the Luhn check."""
    doubled = "0246813579"
    return sum(int(doubled[int(d)]) if i % 2 else int(d) for i, d in enumerate(reversed(number))) % 10 == 0


def _issued_lengths(digits: str) -> frozenset[int]:
    """Return the lengths of the cards whose numbers begin like `digits`."""
    return next((sizes for low, high, width, sizes in _RANGES if low <= int(digits[:width]) <= high), frozenset())


def _check_card(match: str, context: str) -> Hit | None:
    if context[-1:] == "." and context[-2:-1].isdigit():
        return None
    digits = digits_of(match)
    lengths = _issued_lengths(digits)
    if not lengths:
        return None
    # A date or a code may follow in the same run of digits: "4111 1111 1111 1111 12/27".
    for end in group_ends(match):
        count = len(digits) - sum(c.isdigit() for c in match[end:])
        if count in lengths and luhn_valid(digits[:count]):
            return Hit(end, 0.95)
    return None


CARD: Final = Detector("card", (shape(r"[0-9](?:[ -]?[0-9]){12,18}"),), _check_card)
