"""The way of one question through the mesh. Read `_answer_from` from top to bottom.

    admission → authorization → consent of data subjects → choice of an engine → guardrails Inspect ∥ tokenization Encode
    → audit INTENT ∥ engine prefill → (ids → text → guardrails → client)* → audit OUTCOME → `finished` with its receipt

Knows the order and what may overlap. Does not know wires (servicer.py), retries of the engine (generation.py), how text is released
(answer_text.py), or what a leaf looks like (record.py).

Duties kept here: nothing reaches the client before the INTENT leaf is durable; `finished` is sent only after the OUTCOME leaf is;
every admitted request gets an OUTCOME, however it ends; when anything fails or the client goes away, the engine is cancelled at
once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.chassis.calls import current_call, enter_call
from lionrock.chassis.errors import DeadlineExceeded, DeadlineTooShort, MeshError, Overloaded
from lionrock.chassis.ids import uuid7
from lionrock.chassis.telemetry import current_trace_id, set_request_id
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway import errors
from lionrock.gateway.access_policies import AccessPolicies
from lionrock.gateway.admission import MAX_STREAMS, Admission, GatewayFullError, TenantFullError, Ticket
from lionrock.gateway.answer_logprobs import AnswerLogprobs
from lionrock.gateway.answer_text import AnswerText
from lionrock.gateway.authorization import AccessRequest, Action, Authorizer
from lionrock.gateway.consents.gate import ConsentGate
from lionrock.gateway.consents.purposes import Notice
from lionrock.gateway.consents.refusing import consent_refusals
from lionrock.gateway.context import (
    CacheSalts,
    committed_prompt,
    data_class_name,
    effective_sampling,
    engine_sampling,
    request_context,
)
from lionrock.gateway.engines import Chosen, EngineChoice, Engines
from lionrock.gateway.generation import Generation, ResumePolicy
from lionrock.gateway.model_stats import AnswerStats, ModelStats
from lionrock.gateway.peers import Deadline, Peers
from lionrock.gateway.quota_refusals import quota_refusals
from lionrock.gateway.quotas.admission import QuotaAdmission, Reservation
from lionrock.gateway.record import RequestRecord, intent_leaf
from lionrock.gateway.refusals import (
    engine_reason,
    masked,
    permit,
    refuse_what_is_not_offered,
    refuse_what_the_policy_refuses,
    with_tokenizer,
)
from lionrock.gateway.responses import delta, finished, held, started
from lionrock.gateway.reviews.holding import HeldAnswers, refuse_what_nobody_keeps
from lionrock.gateway.reviews.rows import Review
from lionrock.gateway.reviews.rules import Cause
from lionrock.gateway.served_models import ServedModels
from lionrock.gateway.settings import LimitSettings
from lionrock.gateway.telemetry import GatewayMetrics, stage
from lionrock.gateway.tenants import Principal
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.verdict import Verdict, prompt_verdict
from lionrock.guardrails.v1 import guardrails_pb2 as guard
from lionrock.inference.v1 import inference_pb2 as inf

log = logging.getLogger("lionrock.gateway")

# gRPC ends a call at the deadline that the client's header rounds, a little before or after ours.
_DEADLINE_SLACK_S = 0.05

# GenerateRequest.priority
_INTERACTIVE, _BATCH = 0, -10

_ENDED_WELL = frozenset({audit.OUTCOME_STATUS_ANSWERED, audit.OUTCOME_STATUS_BLOCKED, audit.OUTCOME_STATUS_HELD})

Send = Callable[[gw.ChatResponse], Awaitable[None]]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that may go to the model: as judged, as masked, as encoded."""

    messages: Sequence[chat.ChatMessage]
    verdict: Verdict
    token_ids: Sequence[int]
    tokenizer_digest: str


@dataclass(slots=True)
class Turn:
    """One admitted request."""

    principal: Principal
    policies: AccessPolicies
    request: gw.ChatRequest
    params: sampling.SamplingParams
    deadline: Deadline
    send: Send
    record: RequestRecord
    ticket: Ticket
    reservation: Reservation
    engine_stats: AnswerStats | None = None
    engine_failed: bool = False
    notice: Notice | None = None
    hold: Cause | None = None
    """Why the answer waits for a reviewer, as far as is known yet."""
    withholds: bool = False
    """Whether text is kept back until the whole answer is judged."""
    logprobs: AnswerLogprobs | None = None
    """Where they were asked for."""
    closing: asyncio.Task[audit.AppendResponse] | None = None


class ChatPipeline:
    """Answers questions. One instance a gateway; safe for any number of concurrent `answer` calls of one event loop."""

    def __init__(
        self,
        authorizer: Authorizer,
        peers: Peers,
        engines: Engines,
        models: ServedModels,
        admission: Admission,
        quotas: QuotaAdmission,
        consents: ConsentGate,
        held: HeldAnswers,
        salts: CacheSalts,
        limits: LimitSettings,
        metrics: GatewayMetrics,
        stats: ModelStats,
    ) -> None:
        self._authorizer = authorizer
        self._peers = peers
        self._engines = engines
        self._stats = stats
        self._models = models
        self._admission = admission
        self._quotas = quotas
        self._consents = consents
        self._held = held
        self._salts = salts
        self._limits = limits
        self._metrics = metrics
        self._idle = asyncio.Event()
        self._idle.set()

    async def answer(self, principal: Principal, request: gw.ChatRequest, deadline: Deadline, send: Send) -> None:
        """Answer one question through `send`. Raises the errors of gateway.proto; cancel the task when the client goes away."""
        turn = await self._admit(principal, request, deadline, send)
        try:
            await self._answer(turn)
        except asyncio.CancelledError:
            turn.record.aborted(deadline_passed=deadline.left_s() < _DEADLINE_SLACK_S)
            raise
        except MeshError as error:
            late = isinstance(error, errors.PeerUnavailable) and deadline.passed
            told = DeadlineExceeded("the deadline passed before the answer was complete") if late else error
            told.metadata["request_id"] = turn.record.context.request_id
            turn.record.refused(told)
            if not isinstance(error, errors.AuditUnavailable):
                await asyncio.wait({self._close(turn)}, timeout=self._limits.outcome_timeout_s)
            raise told from error
        except Exception:
            turn.record.failed("INTERNAL_ERROR")
            raise
        finally:
            self._close(turn)

    async def settle(self) -> None:
        """Wait until every request has ended and its outcome is written, or has failed to be."""
        await self._idle.wait()

    async def _answer(self, turn: Turn) -> None:
        model = await self._authorize(turn)
        with self._engines.choose(model, turn.principal.tenant.share) as chosen:
            await self._answer_from(chosen, turn)

    async def _answer_from(self, chosen: Chosen, turn: Turn) -> None:
        record, model = turn.record, chosen.model
        prompt = await self._prepare(turn, chosen)
        await self._reserve_tokens(turn, prompt)
        record.answer_verdict = Verdict()
        stops = bool(turn.params.stop) and await self._models.offers(model, "stop", turn.deadline)
        stats = turn.engine_stats = self._stats.answer(model)
        choice = EngineChoice(self._engines, chosen, turn.deadline, stats)
        generation = self._generation(turn, choice, model, prompt, stops=stops)
        turn.logprobs = self._logprobs(turn, chosen, prompt)
        async with generation, self._text(turn, chosen, prompt) as text:
            try:
                # The engine prefills already. Nothing it says goes further before the intent is durable.
                record.intent = asyncio.create_task(self._append_intent(turn, model, prompt))
                intent = await asyncio.shield(record.intent)
                if turn.hold is not None:
                    refuse_what_nobody_keeps(intent)
                with stage("gateway.await_engine"):
                    record.engine = with_tokenizer(await generation.started(), prompt.tokenizer_digest)
                    await choice.check_tokenizer(prompt.tokenizer_digest)
                    await text.opened()
                turn.withholds = turn.hold is not None or (text.may_need_review and self._held.has_queue(turn.principal))
                await turn.send(started(record, record.engine, turn.params.seed, prompt.verdict, turn.principal.tenant.disclosure))
                with stage("gateway.stream"):
                    reason = await self._stream(turn, generation, text)
            finally:
                record.usage, record.resumptions = generation.usage, generation.resumptions
                turn.engine_failed = generation.failed
        review = await self._show_or_hold(turn, text, intent) if turn.withholds else None
        if review is not None:
            record.held(reason)
        else:
            record.answered(reason)
        outcome = await asyncio.shield(self._close(turn))
        if review is not None:
            await turn.send(held(record, intent, outcome, review.expires_at_us))
        else:
            await turn.send(finished(record, intent, outcome, text.blocked, turn.logprobs))

    async def _show_or_hold(self, turn: Turn, text: AnswerText, intent: audit.AppendResponse) -> Review | None:
        """Put an answer that was withheld into the queue, or send it after all; nothing of a held one that a guardrail ended."""
        record = turn.record
        if text.needs_review and turn.hold is None:
            turn.hold = Cause.ANSWER
        if turn.hold is not None and text.blocked is None and record.withholds:
            refuse_what_nobody_keeps(intent)
            return await self._held.hold(turn.principal, record.context, turn.hold)
        shown = record.take_withheld()
        if turn.hold is None and shown:
            assert record.usage is not None
            record.released(shown)
            await turn.send(delta(shown, record.usage.completion_tokens))
        return None

    async def _admit(self, principal: Principal, request: gw.ChatRequest, deadline: Deadline, send: Send) -> Turn:
        arrived_at = asyncio.get_running_loop().time()
        refuse_what_is_not_offered(request, self._limits.max_prompt_code_points)
        if deadline.left_s() < self._limits.min_deadline_s:
            raise DeadlineTooShort("the deadline leaves no time for an answer")
        policies = self._authorizer.policies
        context = request_context(
            principal,
            uuid7(),
            purpose=request.purpose,
            case_id=request.case_id,
            conversation_id=request.conversation_id,
            data_class=request.data_class,
            access_policy_digest=policies.digest,
        )
        record = RequestRecord(context, current_trace_id(), arrived_at)
        params = effective_sampling(request.sampling)
        try:
            ticket = self._admission.admit(principal)
        except TenantFullError as full:
            self._metrics.quota_refused(principal.tenant.name, MAX_STREAMS)
            violation = [(full.subject, f"{full.limit} open answers at most")]
            raise errors.TenantQuota(
                "too many open answers", retry_after_s=full.retry_after_s, quota_violations=violation
            ) from full
        except GatewayFullError as full:
            raise Overloaded("the gateway has no room", retry_after_s=full.retry_after_s) from full
        try:
            with self._quota_refusals(principal):
                reservation = await self._quotas.admit(principal)
        except BaseException:
            ticket.release()
            raise
        set_request_id(context.request_id)
        self._idle.clear()
        self._metrics.opened(principal.tenant.name)
        return Turn(principal, policies, request, params, deadline, send, record, ticket, reservation)

    async def _authorize(self, turn: Turn) -> str:
        """Return the model that the caller means and may use, if the data subjects let it be used for this."""
        asked = AccessRequest(
            Action.CHAT, turn.record.context.purpose, data_class_name(turn.record.context.data_class), turn.request.model or None
        )
        permit(turn.policies, turn.principal, asked)
        model = await self._models.resolve(turn.policies, turn.principal, asked, turn.deadline)
        with consent_refusals():
            rule = await self._consents.check(turn.principal.tenant, turn.record.context.purpose, turn.request.subject_ids)
        turn.notice = rule.notice
        turn.hold = self._held.cause(turn.principal, turn.record.context.purpose)
        return model

    async def _prepare(self, turn: Turn, chosen: Chosen) -> Prompt:
        """Judge and encode side by side. The encoding of a text that gets masked is thrown away: most texts are not."""
        context, deadline, model, tokenization = turn.record.context, turn.deadline, chosen.model, chosen.tokenization
        messages: Sequence[chat.ChatMessage] = turn.request.messages
        with stage("gateway.prepare"):
            async with _beside(tokenization.encode(context, model, messages, deadline)) as encoding:
                judged = await self._peers.guardrails.inspect_prompt(context, messages, deadline)
                verdict = turn.record.prompt_verdict = prompt_verdict(judged)
                refuse_what_the_policy_refuses(judged, reviewable=self._held.has_queue(turn.principal))
                if judged.action == guard.ACTION_REVIEW and turn.hold is None:
                    turn.hold = Cause.PROMPT
                if judged.action != guard.ACTION_MASK and not judged.masked_texts:
                    encoded = await encoding
                else:
                    messages = masked(messages, judged)
                    encoding.cancel()
                    encoded = await tokenization.encode(context, model, messages, deadline)
        return Prompt(messages, verdict, encoded.token_ids, encoded.tokenizer_digest)

    async def _reserve_tokens(self, turn: Turn, prompt: Prompt) -> None:
        """Reserve the most that the answer may have. A quota of tokens needs a bound, also where the caller states none."""
        if not turn.principal.counts_tokens:
            return
        if not turn.params.HasField("max_tokens"):
            turn.params.max_tokens = self._limits.assumed_max_tokens
        with self._quota_refusals(turn.principal):
            await self._quotas.reserve_tokens(turn.reservation, len(prompt.token_ids) + turn.params.max_tokens)

    def _quota_refusals(self, principal: Principal) -> AbstractContextManager[None]:
        return quota_refusals(lambda quota: self._metrics.quota_refused(principal.tenant.name, quota.value))

    def _generation(self, turn: Turn, choice: EngineChoice, model: str, prompt: Prompt, *, stops: bool) -> Generation:
        request = inf.GenerateRequest(
            context=turn.record.context,
            model=model,
            token_ids=prompt.token_ids,
            sampling=engine_sampling(turn.params, stops=stops),
            cache_salt=self._salts.of(turn.principal.tenant.name),
            weight=turn.principal.tenant.weight,
            priority=_BATCH if turn.principal.grant.batch else _INTERACTIVE,
        )
        if turn.request.HasField("constraint"):
            request.constraint.CopyFrom(turn.request.constraint)
        policy = ResumePolicy(self._limits.max_resumptions, self._limits.resume_window_s)
        return Generation(
            choice.start,
            request,
            policy,
            self._limits.max_pending_tokens,
            elsewhere=choice.elsewhere,
            reject=choice.reject,
        )

    def _text(self, turn: Turn, chosen: Chosen, prompt: Prompt) -> AnswerText:
        """Open the streams of the answer's text. It is decoded where the prompt was encoded, whichever engine goes on with it."""
        context, deadline = turn.record.context, turn.deadline
        decoder = chosen.tokenization.decoder(context, chosen.model, prompt.tokenizer_digest, deadline)
        guarding = self._peers.guardrails.guard_answer(context, deadline)
        assert turn.record.answer_verdict is not None
        reviewable = self._held.has_queue(turn.principal)
        return AnswerText(decoder, guarding, turn.params.stop, turn.record.answer_verdict, reviewable=reviewable)

    def _logprobs(self, turn: Turn, chosen: Chosen, prompt: Prompt) -> AnswerLogprobs | None:
        if not turn.params.HasField("logprobs"):
            return None
        context, deadline = turn.record.context, turn.deadline
        decoder = chosen.tokenization.decoder(context, chosen.model, prompt.tokenizer_digest, deadline)
        return AnswerLogprobs(decoder.spell, lambda texts: self._peers.guardrails.inspect_answers(context, texts, deadline))

    async def _append_intent(self, turn: Turn, model: str, prompt: Prompt) -> audit.AppendResponse:
        constraint = turn.request.constraint if turn.request.HasField("constraint") else None
        leaf = intent_leaf(
            turn.record,
            model=model,
            tokenizer_digest=prompt.tokenizer_digest,
            params=turn.params,
            verdict=prompt.verdict,
            prompt_tokens=len(prompt.token_ids),
            prompt=committed_prompt(prompt.messages, constraint),
            subject_ids=turn.request.subject_ids,
            notice=turn.notice,
        )
        with stage("gateway.intent"):
            return await self._peers.audit.append(leaf, turn.deadline)

    async def _stream(self, turn: Turn, generation: Generation, text: AnswerText) -> sampling.FinishReason.ValueType:
        """Send deltas until the answer ends; return why it did. The first token goes at once, later ones gather under load."""
        not_before, tokens = 0.0, 0
        while True:
            ids = await generation.take(self._limits.max_delta_tokens, not_before)
            if turn.engine_stats is not None:
                turn.engine_stats.progressed()
            released = await text.push(ids) if ids else await text.end()
            if ids and text.stopped and text.blocked is None:
                released += await text.end()
            tokens += len(ids)
            told = await self._told(turn, generation, text, ids)
            if released and turn.withholds:
                turn.record.withheld(released)
            elif released or told:
                if released:
                    turn.record.released(released)
                await turn.send(delta(released, tokens, told))
                tokens = 0
            if text.blocked is not None:
                return sampling.FINISH_REASON_BLOCKED
            if text.stopped:
                return sampling.FINISH_REASON_STOP
            if not ids:
                return engine_reason(generation)
            if turn.record.answer_bytes >= self._limits.max_answer_bytes:
                return sampling.FINISH_REASON_LENGTH
            not_before = asyncio.get_running_loop().time() + self._gathering_s()

    async def _told(self, turn: Turn, generation: Generation, text: AnswerText, ids: Sequence[int]) -> Sequence[gw.TokenLogprob]:
        """Return the log-probabilities that can be told by now."""
        if turn.logprobs is None:
            return ()
        entries = generation.take_logprobs(len(ids))
        if turn.withholds:
            turn.logprobs.withhold(len(ids))
            return ()
        if ids:
            await turn.logprobs.push(ids, entries)
        else:
            turn.logprobs.end()
        return await turn.logprobs.told(text.decided)

    def _gathering_s(self) -> float:
        """How long tokens gather before the next delta: nothing for a lone stream, longer with each stream beside it."""
        return min(self._limits.max_gathering_s, (self._admission.open_streams - 1) * self._limits.gathering_s_per_stream)

    def _close(self, turn: Turn) -> asyncio.Task[audit.AppendResponse]:
        """Start writing the outcome, once. It outlives its request's task, and holds the request's place until it is done."""
        if turn.closing is None:
            turn.closing = asyncio.create_task(self._append_outcome(turn.record))
            turn.closing.add_done_callback(lambda closing: self._closed(turn, closing))
        return turn.closing

    async def _append_outcome(self, record: RequestRecord) -> audit.AppendResponse:
        deadline = Deadline.after(self._limits.outcome_timeout_s)
        call = current_call()
        if call is not None:
            enter_call(replace(call, deadline=deadline.at))  # of this task alone: the caller's time may be up
        if record.intent is not None:
            # The leaf names its intent, and an intent under way may still become durable.
            await asyncio.wait({record.intent}, timeout=deadline.left_s())
        with stage("gateway.outcome"):
            return await self._peers.audit.append(record.outcome(), deadline)

    def _closed(self, turn: Turn, closing: asyncio.Task[audit.AppendResponse]) -> None:
        record = turn.record
        turn.ticket.release()
        self._quotas.settle(turn.reservation, record.used_tokens)
        if not self._admission.open_streams:
            self._idle.set()
        tenant = turn.principal.tenant.name
        error = asyncio.CancelledError() if closing.cancelled() else closing.exception()
        if error is not None:
            self._metrics.outcome_unrecorded(tenant)
            how = error.reason if isinstance(error, MeshError) else type(error).__name__
            log.error("outcome not recorded", extra={"tenant": tenant, "reason": how, "request_id": record.context.request_id})
        stats = turn.engine_stats
        if stats is not None:
            # A guardrail, the audit log or the caller may have ended it: that says nothing of engines.
            ended = record.status in _ENDED_WELL
            stats.ended(failed=True if turn.engine_failed else False if ended else None, ttft_s=record.first_text_s)
        self._metrics.closed(
            tenant,
            revision=(stats.revision if stats is not None else None) or "",
            lost_by=stats.lost_by if stats is not None else frozenset(),
            model=record.model,
            outcome=audit.OutcomeStatus.Name(record.status).removeprefix("OUTCOME_STATUS_").lower(),
            reason=record.reason,
            total_s=record.total_s,
            first_token_s=record.first_text_s,
            tokens=record.usage.completion_tokens if record.usage is not None else 0,
            resumptions=record.resumptions,
        )


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, Result]) -> AsyncIterator[asyncio.Task[Result]]:
    """Run a coroutine beside the block; it does not outlive it."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: an error of work that nobody waits for any more is not news
