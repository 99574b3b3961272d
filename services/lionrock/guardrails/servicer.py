"""The gRPC surface: wire to domain and back, and counts.

Knows: messages, statuses, which inspections leave the event loop. Does not know: how anything is detected.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import grpc

from lionrock.chassis.errors import Overloaded
from lionrock.chassis.telemetry import meter
from lionrock.guardrails import errors, inspection
from lionrock.guardrails.inspection import Part, Verdict
from lionrock.guardrails.languages import main_language
from lionrock.guardrails.policy import DEFAULT_PROFILE, Direction, Policy, ProfileName, Source
from lionrock.guardrails.program import Action
from lionrock.guardrails.settings import WorkSettings
from lionrock.guardrails.stream import Finding, Inspector, Step
from lionrock.guardrails.v1 import guardrails_pb2 as pb
from lionrock.guardrails.v1 import guardrails_pb2_grpc
from lionrock.guardrails.workers import Workers, WorkersBusy

RETRY_AFTER_S: Final = 0.5

_Context = grpc.aio.ServicerContext[Any, Any]


class GuardrailsServicer(guardrails_pb2_grpc.GuardrailsServiceServicer):
    """Serves lionrock.guardrails.v1.GuardrailsService over loaded policies."""

    def __init__(self, policies: Mapping[ProfileName, Policy], work: WorkSettings) -> None:
        self._policies = policies
        self._inline = work.inline_code_points
        self._workers = Workers(work.threads, work.waiting)
        self._findings = meter().create_counter(
            "lionrock.guardrails.findings", unit="{finding}", description="findings by rule and action"
        )
        self._texts = meter().create_counter("lionrock.guardrails.texts", unit="{text}", description="inspections by verdict")
        self._seconds = meter().create_histogram(
            "lionrock.guardrails.inspection", unit="s", description="duration of unary inspections"
        )

    def close(self) -> None:
        """End the threads."""
        self._workers.close()

    async def Inspect(self, request: pb.InspectRequest, context: _Context) -> pb.InspectResponse:  # noqa: N802 - name of the RPC
        """Judge whole texts."""
        del context
        began = time.perf_counter()
        policy = self._policy(request.profile, request.context.profile)
        direction = _direction(request.direction)
        parts = [Part(part.text, _source(part.source)) for part in request.parts]
        try:
            if sum(len(part.text) for part in parts) <= self._inline:
                verdict = inspection.inspect(policy, direction, parts)
            else:
                verdict = await self._workers.run(lambda gone: inspection.inspect(policy, direction, parts, abandoned=gone))
        except inspection.TextTooLong:
            raise errors.TextTooLong(f"the texts have more than {inspection.MAX_TEXT} code points together") from None
        except WorkersBusy:
            raise _overloaded() from None
        self._count([finding for _, finding in verdict.findings], direction)
        self._texts.add(1, {"action": verdict.action.name.lower(), "direction": direction.value, "mode": "unary"})
        self._seconds.record(time.perf_counter() - began, {"direction": direction.value})
        return _response(verdict, policy)

    async def InspectStream(  # noqa: N802 - name of the RPC
        self, request_iterator: AsyncIterator[pb.InspectStreamRequest], context: _Context
    ) -> AsyncIterator[pb.InspectStreamResponse]:
        """Judge an answer while it is written: one response a message, none after a block or the end."""
        del context
        inspector: Inspector | None = None
        async for request in request_iterator:
            kind = request.WhichOneof("message")
            if inspector is None:
                if kind != "open":
                    raise errors.StreamNotOpened("the first message must open the stream")
                policy = self._policy(request.open.profile, request.open.context.profile)
                direction = _direction(request.open.direction)
                source = Source.MODEL if direction is Direction.ANSWER else Source.USER
                program = policy.program(direction, source)
                inspector = Inspector(program)
                may_need_review = any(rule.action is Action.REVIEW for rule in program.rules)
                yield pb.InspectStreamResponse(policy=_identity(policy), may_need_review=may_need_review)
                continue
            if kind == "open":
                raise errors.StreamNotOpened("the stream is open already")
            step = inspector.finish() if kind == "end" else await self._push(inspector, request.chunk.text)
            self._count(step.findings, direction)
            yield _stream_response(step, policy)
            if kind == "end" or step.blocked is not None:
                action = "block" if step.blocked is not None else "end"
                self._texts.add(1, {"action": action, "direction": direction.value, "mode": "stream"})
                return

    async def ListProfiles(self, request: pb.ListProfilesRequest, context: _Context) -> pb.ListProfilesResponse:  # noqa: N802 - name of the RPC
        """Say which profiles exist."""
        del request, context
        return pb.ListProfilesResponse(profiles=[_identity(self._policies[name]) for name in sorted(self._policies)])

    def _policy(self, asked: str, given: str) -> Policy:
        policy = self._policies.get(ProfileName(asked or given or DEFAULT_PROFILE))
        if policy is None:
            raise errors.ProfileNotFound("no policy has this profile's name")
        return policy

    async def _push(self, inspector: Inspector, text: str) -> Step:
        if len(text) <= self._inline:
            return inspector.push(text)
        try:
            return await self._workers.run(lambda _gone: inspector.push(text))
        except WorkersBusy:
            raise _overloaded() from None

    def _count(self, findings: Sequence[Finding], direction: Direction) -> None:
        for (rule, action), count in Counter((f.rule, f.action) for f in findings).items():
            self._findings.add(count, {"rule": rule, "action": action.name.lower(), "direction": direction.value})


def _overloaded() -> Overloaded:
    return Overloaded("as many large texts wait as may wait", retry_after_s=RETRY_AFTER_S)


def _direction(value: pb.Direction.ValueType) -> Direction:
    return Direction[pb.Direction.Name(value).removeprefix("DIRECTION_")]


def _source(value: pb.TextSource.ValueType) -> Source:
    return Source[pb.TextSource.Name(value).removeprefix("TEXT_SOURCE_")]


def _identity(policy: Policy) -> pb.PolicyIdentity:
    return pb.PolicyIdentity(profile=policy.profile, version=policy.version, digest=policy.digest)


def _finding(finding: Finding, part: int) -> pb.Finding:
    return pb.Finding(
        rule=finding.rule,
        type=finding.type,
        part=part,
        start=finding.start,
        end=finding.end,
        action=pb.Action.Value(f"ACTION_{finding.action.name}"),
        confidence=finding.confidence,
    )


def _response(verdict: Verdict, policy: Policy) -> pb.InspectResponse:
    return pb.InspectResponse(
        action=pb.Action.Value(f"ACTION_{verdict.action.name}"),
        findings=[_finding(finding, part) for part, finding in verdict.findings],
        masked_texts=verdict.masked_texts or (),
        policy=_identity(policy),
        safe_message=verdict.safe_message or "",
        injection_score=verdict.injection_score,
        languages=[language.value for language in verdict.languages],
        findings_truncated=verdict.truncated,
    )


def _stream_response(step: Step, policy: Policy) -> pb.InspectStreamResponse:
    response = pb.InspectStreamResponse(
        released=step.released,
        findings=[_finding(finding, 0) for finding in step.findings[: inspection.MAX_FINDINGS]],
        held_back=step.held_back,
        findings_truncated=len(step.findings) > inspection.MAX_FINDINGS,
    )
    if step.blocked is not None:
        message = policy.safe_messages[main_language(step.blocked.sample)]
        response.blocked.CopyFrom(pb.Blocked(rule=step.blocked.finding.rule, safe_message=message))
    return response
