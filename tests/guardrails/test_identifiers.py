"""Published and self-computed identifiers, valid and invalid, plain and disguised."""

import random

import pytest

from lionrock.guardrails.detectors.identity import hkid_check_character, resident_check_character
from lionrock.guardrails.detectors.payment import luhn_valid
from lionrock.guardrails.inspection import Part, inspect
from lionrock.guardrails.policy import Direction, Policy, Source


def found(policy: Policy, text: str) -> list[tuple[str, str]]:
    verdict = inspect(policy, Direction.ANSWER, [Part(text, Source.MODEL)])
    return [(f.type, text[f.start : f.end]) for _, f in verdict.findings]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # HKID. Vectors of validator.js and of published calculators.
        ("A123456(3)", [("HKID", "A123456(3)")]),
        ("ab987654(3)", [("HKID", "ab987654(3)")]),
        ("G123456(A)", [("HKID", "G123456(A)")]),
        ("我嘅身份證號碼係Z437626A。", [("HKID", "Z437626A")]),
        ("Z437626A係我身份證", [("HKID", "Z437626A")]),
        ("HKID: A1234563", [("HKID", "A1234563")]),
        ("Ａ１２３４５６（３）", [("HKID", "Ａ１２３４５６（３）")]),
        ("A12\u200b3456\u2060(3)", [("HKID", "A12\u200b3456\u2060(3)")]),
        ("A 123456 [3]", [("HKID", "A 123456 [3]")]),
        ("HKID_A123456(3).pdf", [("HKID", "A123456(3)")]),
        ("A123456(4)", []),
        ("A1234563", []),
        ("A1234567890", []),
        ("XA123456(3)", [("HKID", "XA123456(3)")] if hkid_check_character("XA", "123456") == "3" else []),
        ("BXA123456(3)", []),
        # Mainland.
        ("身份证11010519491231002X", [("RESIDENT_ID", "11010519491231002X")]),
        ("110105 19491231 002x", [("RESIDENT_ID", "110105 19491231 002x")]),
        ("810000199001010019", [("RESIDENT_ID", "810000199001010019")]),
        ("110105194912310021", []),
        ("身份证 110105491231002", [("RESIDENT_ID", "110105491231002")]),
        ("110105491231002", []),
        # Cards: the schemes' published test numbers.
        ("4111111111111111", [("CARD", "4111111111111111")]),
        ("4111 1111 1111 1111 12/27", [("CARD", "4111 1111 1111 1111")]),
        ("5555-5555-5555-4444", [("CARD", "5555-5555-5555-4444")]),
        ("378282246310005", [("CARD", "378282246310005")]),
        ("3530111333300000", [("CARD", "3530111333300000")]),
        ("6200000000000005", [("CARD", "6200000000000005")]),
        ("4111111111111112", []),
        ("9111111111111116", []),
        ("41111111111111110000000", []),
        # Phones.
        ("tel 91234567", [("PHONE", "91234567")]),
        ("電話：2123 4567", [("PHONE", "2123 4567")]),
        ("打畀我 51234567", [("PHONE", "51234567")]),
        ("9123 4567", [("PHONE", "9123 4567")]),
        ("+852 6123 4567", [("PHONE", "+852 6123 4567")]),
        ("(852) 3123-4567", [("PHONE", "852) 3123-4567")]),
        ("+86 138 0013 8000", [("PHONE", "+86 138 0013 8000")]),
        ("13800138000", [("PHONE", "13800138000")]),
        ("+44 20 7946 0958", [("PHONE", "+44 20 7946 0958")]),
        ("tel 71234567", []),
        ("tel 99912345678", []),
        ("91234567", []),
        ("HK$91234567", []),
        ("tel 91234567.50", []),
        ("2023 2024", []),
        ("2019-2020", []),
        ("on 20261123", []),
        ("hotel 91234567", []),
        # E-mail.
        ("Mail john.smith+x@mail.example.com.", [("EMAIL", "john.smith+x@mail.example.com")]),
        ("電郵ａ＠ｂ．ｃｏｍ", [("EMAIL", "ａ＠ｂ．ｃｏｍ")]),
        ("a..b@c.com", [("EMAIL", "a..b@c.com")]),
        ("a@b", []),
        ("a@-b.com", []),
        ("x@y.c1", []),
    ],
)
def test_identifier_is_found_where_it_is_one(policy: Policy, text: str, expected: list[tuple[str, str]]) -> None:
    assert found(policy, text) == expected


def test_every_one_character_error_in_an_hkid_digit_is_noticed(policy: Policy) -> None:
    for position in range(1, 7):
        for digit in "0123456789":
            text = "A123456(3)"
            changed = text[:position] + digit + text[position + 1 :]
            assert bool(found(policy, changed)) == (changed == text)


def test_valid_numbers_of_every_prefix_are_found(policy: Policy) -> None:
    draw = random.Random(20261123)
    for first in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        for letters in (first, first + "X"):
            digits = f"{draw.randrange(10**6):06d}"
            text = f"{letters}{digits}({hkid_check_character(letters, digits)})"
            assert found(policy, f"ref {text}, ok") == [("HKID", text)]
    for province in (11, 44, 54, 65, 71):
        body = f"{province}0101{draw.randrange(1930, 2026)}0{draw.randrange(1, 10)}1{draw.randrange(10)}{draw.randrange(1000):03d}"
        assert found(policy, body + resident_check_character(body)) == [("RESIDENT_ID", body + resident_check_character(body))]


def test_luhn_agrees_with_its_definition() -> None:
    draw = random.Random(7)
    for _ in range(500):
        number = "".join(draw.choices("0123456789", k=draw.randrange(1, 20)))
        total = 0
        for place, character in enumerate(reversed(number)):
            value = int(character) * (1 + place % 2)
            total += value // 10 + value % 10
        assert luhn_valid(number) == (total % 10 == 0)


def test_prompts_keep_contact_details_and_lose_numbers_of_identity(policy: Policy) -> None:
    text = "A123456(3), a@b.com, 4111111111111111, tel 91234567"
    verdict = inspect(policy, Direction.PROMPT, [Part(text, Source.USER)])
    assert verdict.masked_texts == ("[HKID], a@b.com, [CARD], tel 91234567",)
    assert {f.type for _, f in verdict.findings} == {"HKID", "EMAIL", "CARD", "PHONE"}
