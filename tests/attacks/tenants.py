"""A gateway with two tenants that have callers of every role, and what the one has that the other is after."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import duration_pb2

from attacks.rpcs import Kind
from lionrock.audit.v1 import records_pb2 as rec
from lionrock.audit.v1.records_pb2_grpc import RecordsServiceStub
from lionrock.chassis.channel import open_channel
from lionrock.chassis.ids import uuid7
from lionrock.chassis.settings import PeerSettings, TlsSettings
from lionrock.common.v1 import chat_pb2 as chat
from lionrock.gateway.consents.settings import ConsentSettings
from lionrock.gateway.identity.settings import ApiKeySettings
from lionrock.gateway.state.opening import StateSettings
from lionrock.gateway.v1 import api_key_pb2 as keys
from lionrock.gateway.v1 import break_glass_pb2 as emergencies
from lionrock.gateway.v1 import consent_pb2 as consent
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1.api_key_pb2_grpc import ApiKeyServiceStub
from lionrock.gateway.v1.break_glass_pb2_grpc import BreakGlassServiceStub
from lionrock.gateway.v1.consent_pb2_grpc import ConsentServiceStub
from lionrock.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from lionrock.tenancy.vocabulary import ROLES
from mesh_ca import TRUST_DOMAIN
from scripted_mesh import MODEL, ScriptedMesh, tenant

BANK: Final = "bank"
BROKER: Final = "broker"
MARGIN: Final = 20
STRANGER: Final = "stranger"
"""A role that nobody has: its certificate is good, and no tenant lists it."""


def with_every_role(name: str) -> dict[str, Any]:
    """A tenant whose roles are a workload each."""
    settings = {**tenant(name), "review": {"purposes": ["drafting"]}}
    notice = {"version": 1, "texts": [{"language": "en", "text": f"What {name} does with data."}]}
    settings |= {"purposes": ["testing", "drafting"], "purpose_rules": [{"purpose": "testing", "notice": notice}]}
    for role in ROLES:
        principal = {
            "spiffe_id": spiffe_id(name, role),
            "roles": [role],
            "purposes": ["testing", "drafting"],
            "not_after": "2100-01-01T00:00:00Z",
        }
        settings["principals"].append({**principal, "data_classes": ["personal", "suspicion"]})
    return settings


def spiffe_id(name: str, role: str) -> str:
    """Who acts in a role of a tenant: a person, since emergencies are for people."""
    kind = "workload" if role == STRANGER else "user"
    return f"spiffe://{TRUST_DOMAIN}/tenant/{name}/{kind}/{role.replace('_', '-')}"


class AttackedMesh(ScriptedMesh):
    """Serves every service, for callers with a certificate and without."""

    def __init__(self, directory: Path, state: Path, audit_target: str) -> None:
        super().__init__(directory)
        self.targets = {"audit": audit_target}
        self.engine.chunk = 1000  # one delta an answer: how many there are is a matter of time
        self.tenants = [with_every_role(BANK), with_every_role(BROKER)]
        secret_file = state / "api-keys"
        secret_file.write_text("s" * 40)
        secret_file.chmod(0o600)
        consent_secret = state / "consents"
        consent_secret.write_text("c" * 40)
        consent_secret.chmod(0o600)
        self.gateway_changes = {
            "state": StateSettings(sqlite_file=state / "gateway.db"),
            "api_keys": ApiKeySettings(secret_file=secret_file, max_lifetime_days=30),
            "consents": ConsentSettings(secret_file=consent_secret),
        }

    def server_settings(self, service: str, **server: Any) -> dict[str, Any]:
        return super().server_settings(service, **(server | ({"token_listen": "127.0.0.1:0"} if service == "gateway" else {})))

    @asynccontextmanager
    async def by(self, identity: TlsSettings, service: str = "gateway") -> AsyncIterator[grpc.aio.Channel]:
        """A channel to a service with a certificate."""
        peer = PeerSettings(target=self.targets[service], service=service, timeout_s=20)
        async with open_channel(peer, identity, name="test") as channel:
            yield channel

    @asynccontextmanager
    async def as_(self, role: str, name: str = BROKER) -> AsyncIterator[grpc.aio.Channel]:
        """A channel to the gateway in a role of a tenant."""
        async with self.by(self.ca.issue(spiffe_id=spiffe_id(name, role))) as channel:
            yield channel

    @asynccontextmanager
    async def in_every_role(self, roles: Sequence[str] = (*ROLES, STRANGER)) -> AsyncIterator[Mapping[str, grpc.aio.Channel]]:
        """Channels of the broker's callers, by role."""
        async with AsyncExitStack() as stack:
            yield {role: await stack.enter_async_context(self.as_(role)) for role in roles}

    @asynccontextmanager
    async def without_certificate(self) -> AsyncIterator[grpc.aio.Channel]:
        """A channel to the port for tokens."""
        credentials = grpc.ssl_channel_credentials(self.ca.authority.certificate_pem)
        options = [("grpc.ssl_target_name_override", "gateway.lionrock.internal")]
        target = f"127.0.0.1:{self.servers['gateway'].token_port}"
        async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
            yield channel


@dataclass(frozen=True, slots=True)
class Belongings:
    """Ids of a tenant's objects, and words that are only in them."""

    ids: Mapping[Kind, str | int]
    words: tuple[str, ...]

    def missing(self, kind: Kind) -> str | int:
        """What nobody has, as near to the real one as it can be."""
        real = self.ids[kind]
        if isinstance(real, int):
            return real + 1_000_000
        return real[:-1] + ("1" if real[-1] != "1" else "2")

    @property
    def traces(self) -> tuple[bytes, ...]:
        """What no answer to another tenant may contain unless it asked for it."""
        return tuple(str(value).encode() for kind, value in self.ids.items() if kind is not Kind.LEAF) + tuple(
            word.encode() for word in self.words
        )


async def belongings_of(mesh: AttackedMesh, name: str = BANK, attacker: str = BROKER) -> Belongings:
    """Give a tenant one of everything, and a log that is longer than the attacker's, so that the index of its end is its own."""
    async with mesh.as_("auditor", attacker) as auditor:
        longest = (await RecordsServiceStub(auditor).GetLogStats(rec.GetLogStatsRequest())).leaves
    canary = uuid7()
    case, conversation, subject = (f"{kind}-{canary}" for kind in ("case", "conversation", "subject"))
    asked = gw.ChatRequest(  # and held, so that the request's id is that of an answer that waits
        purpose="drafting",
        messages=[chat.ChatMessage(role=chat.CHAT_ROLE_USER, content=f"prompt-{canary}")],
        case_id=case,
        conversation_id=conversation,
        subject_ids=[subject],
    )
    async with mesh.as_("user", name) as user:
        said = [response async for response in GatewayServiceStub(user).Chat(asked)]
    wanted_access = emergencies.RequestEmergencyRequest(reason=f"because-{canary}", duration=duration_pb2.Duration(seconds=3600))
    async with mesh.as_("security", name) as guard:
        emergency = await BreakGlassServiceStub(guard).RequestEmergency(wanted_access)
    wanted = keys.CreateApiKeyRequest(
        description=f"key-{canary}",
        roles=["tenant_admin"],
        purposes=["testing"],
        models=[MODEL],
        lifetime=duration_pb2.Duration(seconds=3600),
    )
    async with mesh.as_("tenant_admin", name) as admin:
        key = await ApiKeyServiceStub(admin).CreateApiKey(wanted)
        consents = ConsentServiceStub(admin)
        agreed = consent.RecordConsentRequest(subject_id=subject, purpose="testing", notice_version=1, statement=canary)
        await consents.RecordConsent(agreed)
        await consents.SetOptOut(consent.SetOptOutRequest(subject_id=subject, statement=canary))
    scope = rec.RecordScope(subject_id=subject)
    async with mesh.as_("privacy_officer", name) as officer:
        records = RecordsServiceStub(officer)
        hold = await records.PlaceHold(rec.PlaceHoldRequest(scope=scope, reason=f"hold-{canary}"))
        refusal = rec.LogRefusalRequest(request=rec.REFUSED_REQUEST_ACCESS, subject_id=subject, ground="s.20", particulars=canary)
        last = await records.LogRefusal(refusal)
        while last.position.leaf_index < longest + MARGIN:
            last = await records.LogRefusal(refusal)
    ids: dict[Kind, str | int] = {
        Kind.REQUEST: said[0].started.request_id,
        Kind.HOLD: hold.hold_id,
        Kind.API_KEY: key.key.key_id,
        Kind.EMERGENCY: emergency.emergency.emergency_id,
        Kind.LEAF: last.position.leaf_index,
        Kind.CASE: case,
        Kind.CONVERSATION: conversation,
        Kind.SUBJECT: subject,
    }
    return Belongings(ids, (canary, key.secret))
