"""Conditions change their time with their status alone, and every reason has a meaning."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from lionrock.operator.conditions import MAX_MESSAGE_CHARACTERS, ConditionType, Finding, Reason, Status, carried_on

NOW = datetime(2026, 1, 1, 12, 0, 0, 999_999, tzinfo=UTC)


def ready(status: Status, reason: Reason, message: str = "m") -> Finding:
    return Finding(ConditionType.READY, status, reason, message)


def test_the_time_of_transition_changes_with_the_status_alone() -> None:
    (first,) = carried_on([], [ready(Status.FALSE, Reason.STARTING)], generation=1, now=NOW)
    assert first["lastTransitionTime"] == "2026-01-01T12:00:00Z"
    later = NOW + timedelta(hours=1)
    (second,) = carried_on([first], [ready(Status.FALSE, Reason.NOTHING_SERVES, "other")], generation=2, now=later)
    assert second == first | {"reason": "NothingServes", "message": "other", "observedGeneration": 2}
    (third,) = carried_on([second], [ready(Status.TRUE, Reason.SERVING)], generation=2, now=later)
    assert third["lastTransitionTime"] == "2026-01-01T13:00:00Z"


def test_conditions_stand_in_one_order_and_are_bounded() -> None:
    found = [ready(Status.TRUE, Reason.SERVING, "x" * 9999), Finding(ConditionType.PLANNED, Status.TRUE, Reason.FITS, "")]
    carried = carried_on([{"type": "Forgotten", "status": "True"}], found, generation=1, now=NOW)
    assert [each["type"] for each in carried] == ["Planned", "Ready"]
    assert len(carried[1]["message"]) == MAX_MESSAGE_CHARACTERS


def test_every_reason_is_one_word_with_a_meaning() -> None:
    words = [reason.word for reason in Reason]
    assert len(set(words)) == len(words)
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", word) for word in words)
    assert all(reason.meaning.endswith(".") for reason in Reason)
