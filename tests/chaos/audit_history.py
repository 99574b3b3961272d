"""What clients of an audit service were told, and the check of a log against it.

The client's side of a fault campaign: writers append intents and outcomes, send what was not answered again under the same event
id, and remember every answer. `Ledger.compare` reads what is new in the log, computes its roots with a Merkle tree of its own
(written from RFC 6962, section 2.1, sharing nothing with the product), and holds both against the answers.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import grpc

from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.verify import verify_receipt
from lionrock.chassis.errors import RemoteError, remote_error
from lionrock.chassis.ids import uuid7
from lionrock.common.v1 import context_pb2
from lionrock.tlog.merkle import InvalidProof, verify_consistency
from mesh_ca import TRUST_DOMAIN

PAGE_LEAVES = 1000
_SERVICE_IS_GONE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def context(request_id: str | None = None) -> context_pb2.RequestContext:
    """Context of a new request, as a gateway writes it."""
    return context_pb2.RequestContext(
        request_id=request_id or uuid7(),
        tenant="bank",
        actor=f"spiffe://{TRUST_DOMAIN}/tenant/bank/user/ada",
        auth_method=context_pb2.AUTH_METHOD_MTLS,
        roles=["auditor"],
        purpose="customer_support",
        territory="HK",
        profile="default",
    )


class GrowingTree:
    """RFC 6962, 2.1, one leaf after the other: (height, hash) of the perfect subtrees on the right edge."""

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[tuple[int, bytes]] = []

    def append(self, leaf: bytes) -> bytes:
        height, hash_ = 0, sha256(b"\x00" + leaf).digest()
        leaf_hash = hash_
        while self._edge and self._edge[-1][0] == height:
            hash_ = sha256(b"\x01" + self._edge.pop()[1] + hash_).digest()
            height += 1
        self._edge.append((height, hash_))
        self.size += 1
        return leaf_hash

    def root(self) -> bytes:
        if not self._edge:
            return sha256(b"").digest()
        hash_ = self._edge[-1][1]
        for _, left in reversed(self._edge[:-1]):
            hash_ = sha256(b"\x01" + left + hash_).digest()
        return hash_


@dataclass(slots=True)
class Verdicts:
    """What a campaign must not see, counted; `said` has one line for each."""

    lost: int = 0
    duplicated: int = 0
    forked: int = 0
    open_streams: int = 0
    other: int = 0
    said: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        self.said.append(f"{kind}: {what}")

    @property
    def total(self) -> int:
        return self.lost + self.duplicated + self.forked + self.open_streams + self.other


@dataclass(slots=True)
class Ledger:
    """Everything that the clients of one log know. Lives as long as the log does, over all restarts."""

    verdicts: Verdicts
    acknowledged: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    checkpoints: dict[int, bytes] = field(default_factory=dict)
    """Root by size, from every receipt that was ever shown."""
    unanswered: list[pb.AppendRequest] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    window_passed: bool = False
    """Whether the clock ever jumped, so that calls with payloads may not be repeatable any more."""
    repeated: int = 0
    tree: GrowingTree = field(default_factory=GrowingTree)
    index_of: dict[str, int] = field(default_factory=dict)
    hashes: list[bytes] = field(default_factory=list)
    roots: dict[int, bytes] = field(default_factory=dict)
    """Root by size, computed from the leaves."""
    intents: dict[int, str] = field(default_factory=dict)
    """Request by index, for intents without an outcome so far."""
    outcomes: dict[int, int] = field(default_factory=dict)
    """How many outcomes name an intent."""

    def acknowledge(self, request: pb.AppendRequest, response: pb.AppendResponse) -> None:
        """Remember an answer; it must be the same as every earlier one for this event."""
        told = (response.position.leaf_index, response.position.leaf_hash)
        if self.acknowledged.setdefault(request.event_id, told) != told:
            self.verdicts.add(
                "duplicated", f"one event was given the leaves {self.acknowledged[request.event_id][0]} and {told[0]}"
            )
        if response.HasField("receipt"):
            self.checkpoint(response.receipt.tlog_proof, request.event_id, told)

    def checkpoint(self, receipt: str, event_id: str, told: tuple[int, bytes]) -> tuple[int, bytes]:
        """Verify a receipt with the independent verifier. Returns size and root of its checkpoint."""
        leaf = verify_receipt(receipt, self.keys)
        if (leaf.fields["event_id"], leaf.leaf_index, leaf.leaf_hash) != (event_id, *told):
            self.verdicts.add("other", "a receipt proves another leaf than was told")
        if self.checkpoints.setdefault(leaf.tree_size, leaf.root) != leaf.root:
            self.verdicts.add("forked", f"two roots were signed for {leaf.tree_size} leaves")
        return leaf.tree_size, leaf.root

    async def compare(self, stub: Any, chance: random.Random, *, proofs: int) -> None:
        """Read what is new and hold it against what was told. `proofs`: how many consistency proofs to ask for."""
        size, root = _head((await stub.GetCheckpoint(pb.GetCheckpointRequest(context=context()))).checkpoint)
        if size < self.tree.size:
            self.verdicts.add("lost", f"the log went back from {self.tree.size} leaves to {size}")
            return
        while self.tree.size < size:
            request = pb.ListLeavesRequest(context=context(), start=self.tree.size, limit=min(PAGE_LEAVES, size - self.tree.size))
            before = self.tree.size
            async for page in stub.ListLeaves(request):
                for leaf in page.leaves:
                    self._take(leaf.data)
            if self.tree.size == before:
                self.verdicts.add("lost", f"leaf {before} of {size} is not served")
                return
        if self.tree.root() != root:
            self.verdicts.add("forked", f"the leaves do not give the root that was signed for {size} leaves")
        for event_id, (index, hash_) in self.acknowledged.items():
            self._hold(event_id, index, hash_)
        for told, told_root in self.checkpoints.items():
            if told > size:
                self.verdicts.add("lost", f"a checkpoint of {told} leaves was shown, and the log has {size}")
            elif told and self.roots[told] != told_root:
                self.verdicts.add("forked", f"the root of {told} leaves is another than was shown")
        shown = [(told, told_root) for told, told_root in self.checkpoints.items() if 1 <= told <= size]
        for told, told_root in chance.sample(shown, min(proofs, len(shown))):
            asked = pb.GetConsistencyProofRequest(context=context(), first_size=told, second_size=size)
            proof = await stub.GetConsistencyProof(asked)
            try:
                verify_consistency(told, size, told_root, root, list(proof.hashes))
            except InvalidProof as error:
                self.verdicts.add("forked", f"{told} leaves are not a prefix of {size}: {error}")

    def _take(self, data: bytes) -> None:
        index = self.tree.size
        self.hashes.append(self.tree.append(data))
        self.roots[self.tree.size] = self.tree.root()
        fields = json.loads(data)
        if fields["event_id"] in self.index_of:
            self.verdicts.add("duplicated", f"leaves {self.index_of[fields['event_id']]} and {index} have one event id")
        self.index_of[fields["event_id"]] = index
        if fields["type"] == "intent":
            self.intents[index] = fields["request_id"]
        elif "intent_index" in fields:
            self.intents.pop(fields["intent_index"], None)
            self.outcomes[fields["intent_index"]] = self.outcomes.get(fields["intent_index"], 0) + 1
            if self.outcomes[fields["intent_index"]] > 1:
                self.verdicts.add("duplicated", f"intent {fields['intent_index']} has two outcomes")
        else:
            for closed in [at for at, request_id in self.intents.items() if request_id == fields["request_id"]]:
                del self.intents[closed]

    def _hold(self, event_id: str, index: int, hash_: bytes) -> None:
        if event_id not in self.index_of:
            self.verdicts.add("lost", f"leaf {index} was acknowledged and is not in the log")
        elif (self.index_of[event_id], self.hashes[self.index_of[event_id]]) != (index, hash_):
            self.verdicts.add("forked", f"leaf {index} was acknowledged and is now at {self.index_of[event_id]} or another")


def _head(checkpoint: str) -> tuple[int, bytes]:
    lines = checkpoint.split("\n")
    return int(lines[1]), base64.b64decode(lines[2])


class _Gone(Exception):
    """The service does not answer any more."""


class Writers:
    """Gateways at work: each answers requests one after the other, intent first, outcome last."""

    def __init__(self, ledger: Ledger, stub: Any, chance: random.Random, *, on_first: Callable[[], None]) -> None:
        self._ledger = ledger
        self._stub = stub
        self._chance = chance
        self._on_first = on_first
        self.acknowledged = 0
        self.failures: list[RemoteError] = []

    async def run(self, count: int) -> None:
        """Write until every writer has met a failure that ends it."""
        await asyncio.gather(*(self._write() for _ in range(count)))

    async def repeat(self, request: pb.AppendRequest) -> None:
        """Send one call again, unless the service is gone."""
        self._ledger.repeated += 1
        with suppress(_Gone):
            await self._append(request)

    async def _write(self) -> None:
        with suppress(_Gone):
            while True:
                await self._serve_one()

    async def _serve_one(self) -> None:
        if self._ledger.unanswered:
            request = self._ledger.unanswered.pop()
            self._ledger.repeated += 1
        else:
            intent = pb.Intent(action="chat", model="smollm2", prompt=b"prompt" if self._chance.random() < 0.8 else b"")
            request = pb.AppendRequest(context=context(), event_id=uuid7(), intent=intent, want_receipt=self._chance.random() < 0.7)
        index = await self._append(request)
        if request.WhichOneof("event") != "intent" or index is None:
            return
        if self._chance.random() < 0.03:
            return  # this gateway died in the middle of its answer: recovery has to end the stream
        outcome = pb.Outcome(status=pb.OUTCOME_STATUS_ANSWERED, answer=b"answer")
        if self._chance.random() < 0.9:
            outcome.intent_index = index
        await self._append(pb.AppendRequest(context=request.context, event_id=uuid7(), outcome=outcome, want_receipt=True))

    async def _append(self, request: pb.AppendRequest) -> int | None:
        """Index of the leaf; None where the call is settled without one. Raises _Gone."""
        try:
            response = await self._stub.Append(request)
        except grpc.aio.AioRpcError as error:
            self._settle(request, remote_error(error))
            return None
        self._ledger.acknowledge(request, response)
        self.acknowledged += 1
        if self.acknowledged == 1:
            self._on_first()
        return int(response.position.leaf_index)

    def _settle(self, request: pb.AppendRequest, failure: RemoteError) -> None:
        if failure.reason == "INTENT_CLOSED" and request.WhichOneof("event") == "outcome":
            return  # recovery was faster
        if failure.reason == "EVENT_ALREADY_RECORDED" and self._ledger.window_passed:
            return
        if failure.status not in _SERVICE_IS_GONE:
            self._ledger.verdicts.add("other", f"an append was refused with {failure.reason or failure.status}: {failure.message}")
        self.failures.append(failure)
        self._ledger.unanswered.append(request)
        raise _Gone
