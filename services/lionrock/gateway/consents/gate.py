"""May data about these subjects be used for this purpose? Asked of the shared state before a request goes on.

One read a request that names subjects, and none for one that names nobody: what was withdrawn is withdrawn for the next request at
every gateway. Nobody is let through unread: a state that cannot be reached raises StateUnavailable.
Source: PDPO Data Protection Principle 3; HKMA, 19 August 2024 (opt-out).
"""

from __future__ import annotations

from collections.abc import Sequence

from lionrock.gateway.consents import rows
from lionrock.gateway.consents.purposes import NO_RULE, PurposeRule
from lionrock.gateway.consents.subjects import SubjectHashes
from lionrock.gateway.state.store import StateStore, StateUnavailable
from lionrock.gateway.tenants import Tenant


class SubjectsMissingError(Exception):
    """The purpose needs consent, and the request does not say whose."""


class OptedOutError(Exception):
    """Subjects of the request opted out. `places`: where they stand in it."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__("subjects opted out")
        self.places = tuple(places)


class ConsentMissingError(Exception):
    """Subjects of the request have no consent that holds. `places`: where they stand in it."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__("subjects have not consented")
        self.places = tuple(places)


class ConsentGate:
    """What every request passes. Safe for concurrent use."""

    def __init__(self, store: StateStore | None = None, hashes: SubjectHashes | None = None) -> None:
        """Without a store nobody could ever opt out, and no purpose that needs consent is let through."""
        self._store = store
        self._hashes = hashes

    async def check(self, tenant: Tenant, purpose: str, subject_ids: Sequence[str]) -> PurposeRule:
        """Return the purpose's rule. Raises SubjectsMissingError, OptedOutError, ConsentMissingError, StateUnavailable."""
        rule = tenant.purpose_rules.get(purpose, NO_RULE)
        if rule.requires_consent and not subject_ids:
            raise SubjectsMissingError
        if not subject_ids or (rule.exempt_from_opt_out and not rule.requires_consent):
            return rule
        if self._store is None or self._hashes is None:
            if rule.requires_consent:
                raise StateUnavailable("this gateway keeps no consents")
            return rule
        subjects = [self._hashes.of(tenant.name, subject_id) for subject_id in subject_ids]
        known = await rows.known(self._store, tenant.name, subjects, purpose)
        if not rule.exempt_from_opt_out:
            out = [place for place, subject in enumerate(subjects) if known.in_effect(subject, rows.OPT_OUT)]
            if out:
                raise OptedOutError(out)
        if rule.requires_consent:
            missing = [place for place, subject in enumerate(subjects) if not counts(rule, known.in_effect(subject, purpose))]
            if missing:
                raise ConsentMissingError(missing)
        return rule


def counts(rule: PurposeRule, consent: rows.Choice | None) -> bool:
    """Whether a consent that is in effect was given under a notice that still counts.

    One to the version in force is to its very text: who changes a text and not its version has nobody's consent.
    """
    if consent is None or rule.notice is None:
        return False
    if consent.notice_version == rule.notice.version and consent.notice_digest:
        return consent.notice_digest == rule.notice.digest
    return consent.notice_version >= rule.notice.consent_since
