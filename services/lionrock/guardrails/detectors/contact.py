"""Phone numbers and e-mail addresses.

Knows: numbers written with a country code, and the national forms of Hong Kong and the mainland; the numbering plans are
libphonenumber's (`phonenumbers`). Eight digits are also an amount, a date or an account number, so a bare Hong Kong number
needs a word beside it that says "phone". E-mail addresses as people write them: RFC 5321 without
quoted local parts, but with dots anywhere. Does not know: policies.
"""

from typing import Final

import phonenumbers
import re2

from lionrock.guardrails.detectors.detector import Detector, Hit, digits_of, group_ends, shape

_PHONE_WORDS: Final = re2.compile(
    r"(?i)\b(?:tel|telephone|phone|mobile|cell|call|whatsapp|wechat|fax|hotline|ring|dial|sms|text me|contact)\b"
    r"|[電电][話话]|手[機机]|[聯联]絡|[聯联]系|[致來来打]電|致电|打[畀俾]|傳真|传真|熱線|热线|短[訊讯信]|[號号][碼码]"
)
_MONEY_WORDS: Final = re2.compile(r"(?i)(?:[$€£¥₤元]|\b(?:hkd|usd|rmb|cny|eur|gbp|jpy|mop)) ?\z|[0-9][.,/:]\z")


def _plausible(number: str, region: str | None) -> bool:
    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_valid_number(parsed)


def _looks_like_date(digits: str) -> bool:
    return digits[:2] in ("19", "20") and "01" <= digits[4:6] <= "12" and "01" <= digits[6:] <= "31"


def _check_international(match: str, context: str) -> Hit | None:
    if context[-1:].isalnum() or context[-1:] == "+":
        return None
    for end in group_ends(match):
        if end < 8:
            break
        if _plausible(match[:end], None):
            return Hit(end, 0.95)
    return None


def _check_national(match: str, context: str) -> Hit | None:
    before = context.encode()
    if match[-1] == "%" or "." in match or "," in match or _MONEY_WORDS.search(before):
        return None
    digits = digits_of(match)
    if digits.startswith("852") and len(digits) == 11:
        return Hit(len(match), 0.8) if _plausible("+" + digits, None) else None
    if digits.startswith("86") and len(digits) == 13:
        return Hit(len(match), 0.9) if _plausible("+" + digits, None) else None
    named = _PHONE_WORDS.search(before) is not None
    if len(digits) == 8:
        # Two groups of four that begin like a mobile number; those that begin with 2 or 3 are as often two years.
        grouped = len(match) == 9 and digits[0] in "5679"
        if not (named or grouped) or (not named and _looks_like_date(digits)) or not _plausible(digits, "HK"):
            return None
        return Hit(len(match), 0.9 if named else 0.6)
    if not _plausible(digits, "CN"):
        return None
    return Hit(len(match), 0.95 if named else 0.75)


def _check_phone(match: str, context: str) -> Hit | None:
    return _check_international(match, context) if match[0] == "+" else _check_national(match, context)


def _check_email(match: str, context: str) -> Hit | None:
    local, _, domain = match.partition("@")
    domain = domain.rstrip(".-")
    labels = domain.split(".")
    if len(labels) < 2 or context[-1:] == "@":
        return None
    if any(not label or len(label) > 63 or label.startswith("-") or label.endswith("-") for label in labels):
        return None
    top = labels[-1].lower()
    if not (2 <= len(top) <= 24 and top.isalpha()) and not top.startswith("xn--"):
        return None
    return Hit(len(local) + 1 + len(domain), 0.97)


_AFTER_NUMBER: Final = r"(?:[.,][0-9]{1,12}|%)?"

PHONE: Final = Detector(
    "phone",
    (
        shape(r"\+[1-9](?:[ ().-]{0,2}[0-9]){6,14}", before=False),
        shape(rf"(?:852[ )-]{{0,2}})?[2-9][0-9]{{3}}[ -]?[0-9]{{4}}{_AFTER_NUMBER}"),
        shape(rf"(?:86[ )-]{{0,2}})?1[3-9][0-9][ -]?[0-9]{{4}}[ -]?[0-9]{{4}}{_AFTER_NUMBER}"),
        shape(r"0[1-9][0-9]{1,2}-[1-9][0-9]{6,7}"),
    ),
    _check_phone,
)
EMAIL: Final = Detector(
    "email",
    (shape(r"[A-Z0-9][A-Z0-9._%+-]{0,63}@[A-Z0-9-]{1,63}\.[A-Z0-9.-]{1,125}", after=False),),
    _check_email,
)
