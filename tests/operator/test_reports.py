"""Reports of fronts and of gateways become one, and stay the same object while neither changes."""

from __future__ import annotations

from lionrock.operator.reports import NO_REPORTS, JoinedReports, Reports, RevisionReport
from lionrock.operator.resources import ObjectKey, Revision

MODEL = ObjectKey("models", "llama")
OLD, NEW = (MODEL, Revision("0ld00000")), (MODEL, Revision("new00000"))


def test_a_revision_has_what_its_front_says_and_what_gateways_tell() -> None:
    fronts: Reports = {NEW: RevisionReport(answers=True)}
    gateways: Reports = {NEW: RevisionReport(waiting=3, partial=True), OLD: RevisionReport(waiting=1)}
    joined = JoinedReports(lambda: fronts, lambda: gateways)()
    assert joined == {NEW: RevisionReport(answers=True, waiting=3, partial=True), OLD: RevisionReport(waiting=1)}


def test_reports_are_joined_anew_where_either_has_changed() -> None:
    fronts, gateways = NO_REPORTS, NO_REPORTS
    reports = JoinedReports(lambda: fronts, lambda: gateways)
    fronts = {NEW: RevisionReport(answers=False)}
    first = reports()
    assert first == fronts
    assert reports() is first
    gateways = {OLD: RevisionReport(waiting=2)}
    assert reports() == {**fronts, **gateways}
    gateways = NO_REPORTS
    assert reports() == fronts
