"""The gateway's metrics and the spans of its stages.

Metrics have the names of OpenTelemetry's GenAI semantic conventions, which still change: they are here and nowhere else.
Attributes are bounded: models that were really served, revisions of the routes, tenants of settings and Tenant
files, names of quotas, reasons of errors.py; never an id, never text.
Source: open-telemetry/semantic-conventions-genai (Development), 2026-11.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from opentelemetry.metrics import Meter
from opentelemetry.trace import Span

from lionrock.chassis.telemetry import tracer

_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


def stage(name: str) -> AbstractContextManager[Span]:
    """Open the span of one stage of a request. What goes wrong in it is told by its status alone, never by an exception's text."""
    return tracer().start_as_current_span(name, record_exception=False)


class GatewayMetrics:
    """One instance a process."""

    def __init__(self, meter: Meter) -> None:
        self._duration = meter.create_histogram(
            "gen_ai.server.request.duration",
            unit="s",
            description="From arrival to the last message.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._first_token = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            description="From arrival to the first released text.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._per_token = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            unit="s",
            description="Time per token after the first.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._open = meter.create_up_down_counter("lionrock.gateway.open_streams", description="Answers being written.")
        self._resumptions = meter.create_counter(
            "lionrock.gateway.resumptions", description="Answers continued on another shard group."
        )
        self._failed_answers = meter.create_counter(
            "lionrock.gateway.failed_answers", description="Answers that a revision's engines failed."
        )
        self._routes_refused = meter.create_counter(
            "lionrock.gateway.routes_refused", description="Changes of the routes file that were not followed."
        )
        self._policies_refused = meter.create_counter(
            "lionrock.gateway.policies_refused", description="Changes of the access policies that were not followed."
        )
        self._tenants_refused = meter.create_counter(
            "lionrock.gateway.tenants_refused", description="Tenant files that were not followed when they changed."
        )
        self._issuer_keys_unavailable = meter.create_counter(
            "lionrock.gateway.issuer_keys_unavailable", description="Fetches of the keys of tenants' token issuers that failed."
        )
        self._quota_refusals = meter.create_counter(
            "lionrock.gateway.quota_refusals", description="Requests that were refused with TENANT_QUOTA."
        )
        self._unnotified = meter.create_counter(
            "lionrock.gateway.reviews_unnotified", description="Notices of held answers that could not be delivered, tries counted."
        )
        self._emergencies = meter.create_counter(
            "lionrock.gateway.emergencies", description="Steps of emergency access: requested, approved, denied, ended, expired."
        )
        self._unrecorded = meter.create_counter("lionrock.gateway.outcomes_unrecorded", description="Outcome leaves that failed.")

    def opened(self, tenant: str) -> None:
        """Count an answer that was admitted."""
        self._open.add(1, {"lionrock.tenant": tenant})

    def closed(
        self,
        tenant: str,
        *,
        model: str,
        revision: str,
        lost_by: frozenset[str],
        outcome: str,
        reason: str,
        total_s: float,
        first_token_s: float | None,
        tokens: int,
        resumptions: int,
    ) -> None:
        """Count an answer that ended. `model` is empty when none took the request; `reason` is empty when it was answered.

        `revision`: what answered, empty where routes name none. `lost_by`: revisions whose engines failed it.
        """
        self._open.add(-1, {"lionrock.tenant": tenant})
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "lionrock", "lionrock.tenant": tenant}
        if model:
            attributes["gen_ai.request.model"] = model
        if revision:
            attributes["lionrock.revision"] = revision
        for lost in lost_by:
            self._failed_answers.add(1, {**attributes, "lionrock.revision": lost})
        if resumptions:
            self._resumptions.add(resumptions, attributes)
        if first_token_s is not None:
            self._first_token.record(first_token_s, attributes)
            if tokens > 1:
                self._per_token.record((total_s - first_token_s) / (tokens - 1), attributes)
        attributes["lionrock.outcome"] = outcome
        if reason:
            attributes["error.type"] = reason
        self._duration.record(total_s, attributes)

    def routes_refused(self) -> None:
        """Count a change of the routes file that was not followed."""
        self._routes_refused.add(1)

    def policies_refused(self) -> None:
        """Count a change of the access policies that was not followed."""
        self._policies_refused.add(1)

    def tenants_refused(self) -> None:
        """Count a Tenant file that was not followed."""
        self._tenants_refused.add(1)

    def issuer_keys_unavailable(self) -> None:
        """Count a fetch of an issuer's keys that failed."""
        self._issuer_keys_unavailable.add(1)

    def quota_refused(self, tenant: str, quota: str) -> None:
        """Count a request that a quota left no room for. `quota`: its name in the settings, of the tenant or of a grant in it."""
        self._quota_refusals.add(1, {"lionrock.tenant": tenant, "lionrock.quota": quota})

    def review_unnotified(self, tenant: str) -> None:
        """Count a try to tell of a held answer that failed."""
        self._unnotified.add(1, {"lionrock.tenant": tenant})

    def emergency_stepped(self, tenant: str, step: str) -> None:
        """Count a step of an emergency at the gateway that made it. `step`: one of five words."""
        self._emergencies.add(1, {"lionrock.tenant": tenant, "lionrock.emergency.step": step})

    def outcome_unrecorded(self, tenant: str) -> None:
        """Count an outcome leaf that could not be written."""
        self._unrecorded.add(1, {"lionrock.tenant": tenant})
