"""What the guardrails said of one text, kept without any of the text: for the client's answer and for the audit leaf.

Knows findings and policies; does not know where the text is. Bounded: so many findings are kept, and so many rules are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.guardrails.v1 import guardrails_pb2 as guard

MAX_FINDINGS = 1000
MAX_RULES = 12  # named in a leaf, whose size is limited; GuardrailSummary.findings would take 64
_OTHER_RULES = "other"


class Verdict:
    """Findings so far, the most severe action among them, and the policy that judged."""

    def __init__(self, policy: guard.PolicyIdentity | None = None) -> None:
        self.policy = policy if policy is not None else guard.PolicyIdentity()
        self.action: guard.Action.ValueType = guard.ACTION_ALLOW
        self.masked: list[guard.Finding] = []
        self._counts: Counter[str] = Counter()

    def add(self, findings: Iterable[guard.Finding]) -> None:
        """Take more findings."""
        for finding in findings:
            self.action = max(self.action, finding.action)
            self._count(finding.rule)
            if finding.action == guard.ACTION_MASK and len(self.masked) < MAX_FINDINGS:
                self.masked.append(finding)

    def block(self, rule: str) -> None:
        """Take note that a rule ended the text, whether or not a finding said so."""
        self.action = guard.ACTION_BLOCK
        self._counts[rule] = max(1, self._counts[rule])  # named even when the list is full

    def summary(self) -> audit.GuardrailSummary:
        """Return the verdict as a leaf records it."""
        return audit.GuardrailSummary(
            action=guard.Action.Name(self.action).removeprefix("ACTION_").lower(),
            findings=dict(self._counts),
            profile=self.policy.profile,
            policy_version=self.policy.version,
            policy_digest=self.policy.digest,
        )

    def _count(self, rule: str) -> None:
        self._counts[rule if rule in self._counts or len(self._counts) < MAX_RULES - 1 else _OTHER_RULES] += 1


def prompt_verdict(response: guard.InspectResponse) -> Verdict:
    """Return the verdict on a whole prompt."""
    verdict = Verdict(response.policy)
    verdict.add(response.findings)
    verdict.action = max(verdict.action, response.action)
    return verdict
