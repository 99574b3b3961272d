"""A real gateway before inner services that fail on command.

The inner services here are real gRPC servers with certificates of the test CA, written to the contracts in protos/, with the
least behaviour that these allow: a token is a code point, the guardrails know three words, the log is a list. They exist for the
faults that the real services do not have on demand: dying in mid-stream, hanging, answering nonsense. Nothing here stands in for
a service in that service's own tests.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import grpc

from lionrock.audit.v1 import audit_pb2 as audit
from lionrock.audit.v1 import audit_pb2_grpc as audit_rpc
from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import MeshError
from lionrock.chassis.server import Registration, RunningServer, start_server
from lionrock.chassis.settings import PeerSettings, ServerSettings, ServiceSettings, TlsSettings
from lionrock.common.v1 import model_pb2 as model
from lionrock.common.v1 import sampling_pb2 as sampling
from lionrock.gateway.__main__ import gateway
from lionrock.gateway.settings import GatewaySettings, LimitSettings
from lionrock.gateway.v1 import gateway_pb2_grpc as gateway_rpc
from lionrock.guardrails.v1 import guardrails_pb2 as guard
from lionrock.guardrails.v1 import guardrails_pb2_grpc as guard_rpc
from lionrock.inference.v1 import inference_pb2 as inf
from lionrock.inference.v1 import inference_pb2_grpc as inf_rpc
from lionrock.tokenization.v1 import tokenization_pb2 as tok
from lionrock.tokenization.v1 import tokenization_pb2_grpc as tok_rpc
from mesh_ca import TRUST_DOMAIN, DevCa

MODEL = "parrot"
BLOCKED_WORD, MASKED_WORD, REVIEWED_WORD, MASK = "forbidden", "secret", "doubtful", "[masked]"
SAFE_MESSAGE = "Let us talk about something else."


class Trouble(MeshError):
    """An error of an inner service."""

    status, reason = grpc.StatusCode.UNAVAILABLE, "TROUBLE"


class ShardGroupLost(MeshError):
    """What the engine says when a shard died."""

    status, reason = grpc.StatusCode.UNAVAILABLE, "SHARD_GROUP_LOST"


class EngineFull(MeshError):
    """What the engine says when it has no room."""

    status, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "ENGINE_FULL"


Fault = Callable[[], Awaitable[None]]


def raising(error: Exception) -> Fault:
    """A fault that ends the call with an error."""

    async def fault() -> None:
        raise error

    return fault


async def hang() -> None:
    """A fault that never answers."""
    await asyncio.Event().wait()


class Faulty:
    """Calls the fault set for a method, or for a message of a stream, before it is answered."""

    def __init__(self) -> None:
        self.faults: dict[str, Fault] = {}
        self.requests: list[Any] = []

    async def at(self, point: str) -> None:
        if point in self.faults:
            await self.faults[point]()


class CodePointTokenizer(Faulty, tok_rpc.TokenizationServiceServicer):
    """A token is a code point."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = "sha256:" + "1" * 64

    @property
    def encoded(self) -> list[tok.EncodeRequest]:
        """Every request for ids, in order."""
        return [request for request in self.requests if isinstance(request, tok.EncodeRequest)]

    async def Encode(self, request: tok.EncodeRequest, context: Any) -> tok.EncodeResponse:
        self.requests.append(request)
        await self.at("Encode")
        text = "".join(message.content for message in request.conversation.messages)
        return tok.EncodeResponse(token_ids=[0, *map(ord, text)], tokenizer_digest=self.digest, content_tokens=len(text))

    async def CountTokens(self, request: tok.CountTokensRequest, context: Any) -> tok.CountTokensResponse:
        self.requests.append(request)
        await self.at("CountTokens")
        return tok.CountTokensResponse(tokens=1 + sum(len(message.content) for message in request.request.conversation.messages))

    async def GetTokenizer(self, request: tok.GetTokenizerRequest, context: Any) -> tok.GetTokenizerResponse:
        self.requests.append(request)
        return tok.GetTokenizerResponse(tokenizer_digest=self.digest)

    async def SpellTokens(self, request: tok.SpellTokensRequest, context: Any) -> tok.SpellTokensResponse:
        self.requests.append(request)
        await self.at("SpellTokens")
        unknown = [token_id for token_id in request.token_ids if not _is_text(token_id)]
        spelled = [chr(token_id).encode() if _is_text(token_id) else b"" for token_id in request.token_ids]
        return tok.SpellTokensResponse(token_bytes=spelled, unknown_ids=unknown)


def _is_text(token_id: int) -> bool:
    return token_id < 0x110000 and not 0xD800 <= token_id < 0xE000


class ThreeWordGuardrails(Faulty, guard_rpc.GuardrailsServiceServicer):
    """Blocks one word, masks another, wants a third reviewed. In a stream a word is seen only within one chunk."""

    policy = guard.PolicyIdentity(profile="default", version="1", digest="sha256:" + "2" * 64)
    actions: ClassVar = {BLOCKED_WORD: guard.ACTION_BLOCK, MASKED_WORD: guard.ACTION_MASK, REVIEWED_WORD: guard.ACTION_REVIEW}

    def _findings(self, text: str, part: int = 0) -> list[guard.Finding]:
        found = [(text.find(word), word, action) for word, action in self.actions.items() if word in text]
        return [
            guard.Finding(rule=f"word.{word}", type="WORD", part=part, start=at, end=at + len(word), action=action, confidence=1)
            for at, word, action in sorted(found)
        ]

    async def Inspect(self, request: guard.InspectRequest, context: Any) -> guard.InspectResponse:
        self.requests.append(request)
        await self.at("Inspect")
        findings = [finding for number, part in enumerate(request.parts) for finding in self._findings(part.text, number)]
        action = max([guard.ACTION_ALLOW, *(finding.action for finding in findings)])
        response = guard.InspectResponse(action=action, findings=findings, policy=self.policy)
        if action != guard.ACTION_BLOCK and any(finding.action == guard.ACTION_MASK for finding in findings):
            response.masked_texts.extend(part.text.replace(MASKED_WORD, MASK) for part in request.parts)
        if action == guard.ACTION_BLOCK:
            response.safe_message = SAFE_MESSAGE
        return response

    async def InspectStream(self, request_iterator: Any, context: Any) -> AsyncIterator[guard.InspectStreamResponse]:
        given = 0
        async for request in request_iterator:
            await self.at(f"InspectStream.{request.WhichOneof('message')}")
            text = request.chunk.text
            findings = self._findings(text)
            for finding in findings:
                finding.start, finding.end = finding.start + given, finding.end + given
            given += len(text)
            if request.HasField("open"):
                yield guard.InspectStreamResponse(policy=self.policy, may_need_review=True)
            elif BLOCKED_WORD in text:
                blocked = guard.Blocked(rule=f"word.{BLOCKED_WORD}", safe_message=SAFE_MESSAGE)
                yield guard.InspectStreamResponse(released=text[: text.index(BLOCKED_WORD)], findings=findings, blocked=blocked)
                return
            else:
                yield guard.InspectStreamResponse(released=text.replace(MASKED_WORD, MASK), findings=findings)

    async def ListProfiles(self, request: Any, context: Any) -> guard.ListProfilesResponse:
        return guard.ListProfilesResponse(profiles=[self.policy])


class NotFoundInLog(MeshError):
    """No such leaf."""

    status, reason = grpc.StatusCode.NOT_FOUND, "LEAF_NOT_FOUND"


class ListLog(Faulty, audit_rpc.AuditServiceServicer):
    """A list of appended events."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: list[audit.AppendRequest] = []
        self.salts: list[bytes] = []
        self.changed = asyncio.Condition()

    @property
    def intents(self) -> list[audit.AppendRequest]:
        return [leaf for leaf in self.leaves if leaf.HasField("intent")]

    @property
    def outcomes(self) -> list[audit.AppendRequest]:
        return [leaf for leaf in self.leaves if leaf.HasField("outcome")]

    @property
    def decisions(self) -> list[audit.AppendRequest]:
        """GOVERNANCE leaves."""
        return [leaf for leaf in self.leaves if leaf.HasField("governance")]

    async def outcome(self, number: int = 0) -> audit.AppendRequest:
        """Wait for an outcome."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.outcomes) > number)
        return self.outcomes[number]

    def opens(self, salt: bytes, payload: bytes) -> bool:
        """Whether a salt that was handed out belongs to this payload."""
        payloads = [leaf.intent.prompt if leaf.HasField("intent") else leaf.outcome.answer for leaf in self.leaves]
        digests = [hmac.digest(own, text, hashlib.sha256) for own, text in zip(self.salts, payloads, strict=True)]
        return hmac.digest(salt, payload, hashlib.sha256) in digests

    async def Append(self, request: audit.AppendRequest, context: Any) -> audit.AppendResponse:
        await self.at("Append." + str(request.WhichOneof("event")))
        self.leaves.append(request)
        self.salts.append(secrets.token_bytes(32))
        async with self.changed:
            self.changed.notify_all()
        return audit.AppendResponse(
            payloads_kept=True,
            position=self._position(len(self.leaves) - 1),
            salt=self.salts[-1],
            receipt=self._receipt(len(self.leaves) - 1),
        )

    async def GetReceipt(self, request: audit.GetReceiptRequest, context: Any) -> audit.GetReceiptResponse:
        await self.at("GetReceipt")
        for index, leaf in enumerate(self.leaves):
            if (leaf.event_id, leaf.context.tenant) == (request.event_id, request.context.tenant):
                return audit.GetReceiptResponse(receipt=self._receipt(index))
        raise NotFoundInLog("no such leaf")

    async def ListKeys(self, request: audit.ListKeysRequest, context: Any) -> audit.ListKeysResponse:
        await self.at("ListKeys")
        return audit.ListKeysResponse(verifier_keys=[f"test/audit/{request.context.tenant}+00000000+AAAA"])

    def _position(self, index: int) -> audit.LeafPosition:
        return audit.LeafPosition(origin=f"test/audit/{self.leaves[index].context.tenant}", leaf_index=index)

    def _receipt(self, index: int) -> audit.Receipt:
        return audit.Receipt(tlog_proof=f"proof of {self.leaves[index].event_id}", position=self._position(index))


class Parrot(Faulty, inf_rpc.InferenceServiceServicer):
    """Says `text`, a code point a token, or `ids` as they are, `chunk` tokens a message, as fast as `pace` lets it; breaks as told.

    `losses`: after so many tokens of each call the call ends with that error; one entry is used up a call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text = "Hello, world."
        self.ids: list[int] | None = None
        self.others = ""
        self.chunk = 1
        self.pace: asyncio.Semaphore | None = None
        self.losses: list[tuple[int, Exception]] = []
        self.weights = ["sha256:" + "3" * 64]
        self.tokenizer_digest = ""
        self.finish = sampling.FINISH_REASON_STOP
        self.models = [MODEL]
        self.sampling_options: list[str] = []
        self.running = 0
        self.cancelled_at: list[float] = []
        self.cancelled = asyncio.Event()
        self.spoken = asyncio.Event()
        self.responses: list[inf.GenerateResponse] | None = None

    def identity(self, call: int) -> model.ModelIdentity:
        weights = self.weights[min(call, len(self.weights) - 1)]
        return model.ModelIdentity(model=MODEL, weights_digest=weights, tokenizer_digest=self.tokenizer_digest, engine="parrot/1")

    async def Generate(self, request: inf.GenerateRequest, context: Any) -> AsyncIterator[inf.GenerateResponse]:
        self.requests.append(request)
        loss = self.losses.pop(0) if self.losses else None
        self.running += 1
        try:
            await self.at("Generate")
            for response in self.responses or ():
                yield response
            if self.responses is not None:
                return
            yield inf.GenerateResponse(started=inf.GenerateResponse.Started(model=self.identity(len(self.requests) - 1)))
            said = request.resumed_tokens
            whole = self.ids if self.ids is not None else [ord(character) for character in self.text]
            most = request.sampling.max_tokens or len(whole)
            ids = whole[said:most]
            for start in range(0, len(ids), self.chunk):
                if loss is not None and start >= loss[0]:
                    raise loss[1]
                if self.pace is not None:
                    await self.pace.acquire()
                some = ids[start : start + self.chunk]
                logprobs = self._logprobs(some, request.sampling)
                yield inf.GenerateResponse(tokens=inf.GenerateResponse.Tokens(token_ids=some, logprobs=logprobs))
            if loss is not None:
                raise loss[1]
            self.spoken.set()
            await self.at("Generate.finish")
            usage = sampling.TokenUsage(prompt_tokens=len(request.token_ids) - said, completion_tokens=said + len(ids))
            reason = self.finish if most >= len(whole) else sampling.FINISH_REASON_LENGTH
            yield inf.GenerateResponse(finished=inf.GenerateResponse.Finished(reason=reason, usage=usage))
        except asyncio.CancelledError:
            self.cancelled_at.append(asyncio.get_running_loop().time())
            self.cancelled.set()
            raise
        finally:
            self.running -= 1

    def _logprobs(self, ids: list[int], params: sampling.SamplingParams) -> list[inf.TokenLogprobs]:
        """The likelier the lower the id: -id/1000. Alternatives are those of `others`, as often as was asked for."""
        if not params.HasField("logprobs"):
            return []
        top = [inf.TokenLogprobs.Alternative(token_id=ord(other), logprob=-1.5) for other in self.others[: params.logprobs]]
        return [inf.TokenLogprobs(logprob=-token_id / 1000, top=top) for token_id in ids]

    async def ListModels(self, request: Any, context: Any) -> inf.ListModelsResponse:
        self.requests.append(request)
        await self.at("ListModels")
        served = [
            inf.ServedModel(
                identity=model.ModelIdentity(model=name, weights_digest=self.weights[0]),
                context_window=4096,
                ready=True,
                sampling_options=self.sampling_options,
            )
            for name in self.models
        ]
        return inf.ListModelsResponse(models=served)


class PeerServiceSettings(ServiceSettings):
    """Settings of a scripted service."""


def tenant(name: str, **principal: Any) -> dict[str, Any]:
    """Settings of a tenant whose users may do what `principal` says."""
    grant = {"spiffe_id": f"spiffe://{TRUST_DOMAIN}/tenant/{name}/user/*", "purposes": ["testing", "drafting"], **principal}
    return {"name": name, "principals": [grant]}


class ScriptedMesh:
    """All five services in one event loop. `start` them, then `calling` gives stubs of the gateway."""

    def __init__(self, directory: Path) -> None:
        self.ca = DevCa(directory)
        self.tokenizer, self.guardrails, self.log, self.engine = CodePointTokenizer(), ThreeWordGuardrails(), ListLog(), Parrot()
        self.servers: dict[str, RunningServer] = {}
        self.tenants: list[dict[str, Any]] = [tenant("bank"), tenant("broker")]
        self.limits: dict[str, Any] = {}
        self.tenants_directory: Path | None = None
        self.targets: dict[str, str] = {}
        self.registrations: tuple[Registration, ...] = ()
        """What the running gateway serves over gRPC."""
        self.gateway_changes: dict[str, Any] = {}
        """Settings of the gateway beyond those that have an attribute here."""
        self.peer_timeout_s = 5.0
        self.http: dict[str, Any] | None = None
        """Settings of the HTTP port; None: none."""
        self.max_concurrent_rpcs_per_caller: int | None = None
        self.routes_directory = directory / "routes"
        self.routed = False
        self.engines: dict[str, Parrot] = {}
        self.tokenizers: dict[str, CodePointTokenizer] = {}
        self.own_tokenization = True
        """Whether the gateway's settings name one."""
        self._services: dict[str, tuple[Any, Any, str]] = {
            "tokenization": (
                tok_rpc.add_TokenizationServiceServicer_to_server,
                self.tokenizer,
                "lionrock.tokenization.v1.TokenizationService",
            ),
            "guardrails": (
                guard_rpc.add_GuardrailsServiceServicer_to_server,
                self.guardrails,
                "lionrock.guardrails.v1.GuardrailsService",
            ),
            "audit": (audit_rpc.add_AuditServiceServicer_to_server, self.log, "lionrock.audit.v1.AuditService"),
            "inference": (inf_rpc.add_InferenceServiceServicer_to_server, self.engine, "lionrock.inference.v1.InferenceService"),
        }

    def server_settings(self, service: str, **server: Any) -> dict[str, Any]:
        return {"server": ServerSettings(tls=self.ca.issue(service), trust_domain=TRUST_DOMAIN, **server)}

    async def start_peer(self, service: str, port: int = 0) -> None:
        """Start one inner service, on the port where it was if one is given."""
        add, servicer, name = self._services[service]
        settings = PeerServiceSettings(**self.server_settings(service, listen=f"127.0.0.1:{port}"))
        self.servers[service] = await start_server(settings, service, [Registration(add, servicer, name, frozenset({"gateway"}))])
        self.targets[service] = f"127.0.0.1:{self.servers[service].port}"

    async def kill_peer(self, service: str) -> None:
        """End one inner service with all its calls."""
        await self.servers.pop(service).stop()

    async def start_engine(self, name: str, port: int = 0) -> Parrot:
        """Start one of several engines, or again on a port; its target is known by its name."""
        engine = self.engines.setdefault(name, Parrot())
        add, _, service = self._services["inference"]
        settings = PeerServiceSettings(**self.server_settings("inference", listen=f"127.0.0.1:{port}"))
        registration = Registration(add, engine, service, frozenset({"gateway"}))
        self.servers[name] = await start_server(settings, "inference", [registration])
        self.targets[name] = f"127.0.0.1:{self.servers[name].port}"
        return engine

    async def start_tokenization(self, name: str) -> CodePointTokenizer:
        """Start the tokenization of one of several engines; its target is known by its name."""
        tokenizer = self.tokenizers.setdefault(name, CodePointTokenizer())
        add, _, service = self._services["tokenization"]
        settings = PeerServiceSettings(**self.server_settings("tokenization"))
        registration = Registration(add, tokenizer, service, frozenset({"gateway"}))
        self.servers[name] = await start_server(settings, "tokenization", [registration])
        self.targets[name] = f"127.0.0.1:{self.servers[name].port}"
        return tokenizer

    def write_routes(self, text: str) -> None:
        """Change the routes file as a mounted ConfigMap changes: a new directory, and a link that is swapped."""
        generation = self.routes_directory / f"..{secrets.token_hex(8)}"
        generation.mkdir(parents=True)
        (generation / "routes.json").write_text(text)
        for link, target in (("..data", generation.name), ("routes.json", "..data/routes.json")):
            if link == "..data" or not (self.routes_directory / link).is_symlink():
                fresh = self.routes_directory / f"{link}_tmp"
                fresh.symlink_to(target)
                fresh.replace(self.routes_directory / link)

    def gateway_settings(self) -> GatewaySettings:
        peers: dict[str, Any] = {
            name: PeerSettings(target=self.targets[name], service=name, timeout_s=self.peer_timeout_s)
            for name in self._services
            if not (self.routed and name == "inference") and (self.own_tokenization or name != "tokenization")
        }
        if self.http is not None:
            peers["http"] = self.http
        if self.routed:
            peers["routes_file"] = self.routes_directory / "routes.json"
        return GatewaySettings(
            **self.server_settings("gateway", max_concurrent_rpcs_per_caller=self.max_concurrent_rpcs_per_caller),
            **peers,
            tenants=self.tenants,
            tenants_dir=self.tenants_directory,
            **self.gateway_changes,
            limits=LimitSettings(**self.limits),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedMesh]:
        """The mesh, from start to stop."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._stop_all)
            for service in self._services:
                if service not in self.targets:
                    await self.start_peer(service)
            settings = self.gateway_settings()
            served = await stack.enter_async_context(gateway(settings))
            self.registrations = tuple(served.registrations)
            front = await start_server(settings, "gateway", self.registrations, http=served.http)
            stack.push_async_callback(front.stop)
            self.servers["gateway"], self.targets["gateway"] = front, f"127.0.0.1:{front.port}"
            if front.http_port is not None:
                self.targets["http"] = f"127.0.0.1:{front.http_port}"
            yield self

    async def _stop_all(self) -> None:
        for server in self.servers.values():
            await server.stop()

    def identity(self, name: str = "bank", who: str = "ada", kind: str = "user") -> TlsSettings:
        """Certificate of a caller of a tenant."""
        return self.ca.issue_tenant(name, who, kind)

    @asynccontextmanager
    async def calling(self, identity: TlsSettings | None = None) -> AsyncIterator[gateway_rpc.GatewayServiceAsyncStub]:
        """A stub of the gateway for a caller; by default a user of the bank."""
        peer = PeerSettings(target=self.targets["gateway"], service="gateway", timeout_s=20)
        async with AsyncExitStack() as stack:
            channel = await stack.enter_async_context(open_channel(peer, identity or self.identity(), name="test"))
            yield gateway_rpc.GatewayServiceStub(channel)
