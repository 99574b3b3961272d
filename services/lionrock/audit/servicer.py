"""The audit service on the wire: messages in, domain calls, messages out. The tenant comes from RequestContext alone."""

from collections.abc import AsyncIterator, Sequence

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from lionrock.audit.asking import mesh_errors, permitted, permitted_leaf, refuse_withheld
from lionrock.audit.log import AuditLogs
from lionrock.audit.platform_log import PlatformLog
from lionrock.audit.records.permissions import Action, is_withheld
from lionrock.audit.sequencer import Appended
from lionrock.audit.store import StoredLeaf
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceServicer
from lionrock.audit.wire import event_of
from lionrock.chassis.errors import InvalidField

_Context = grpc.aio.ServicerContext


class AuditServicer(AuditServiceServicer):
    """lionrock.audit.v1.AuditService over AuditLogs."""

    def __init__(self, logs: AuditLogs, platform_log: PlatformLog) -> None:
        self._logs = logs
        self._platform_log = platform_log

    async def Append(  # noqa: N802
        self, request: pb.AppendRequest, context: _Context[pb.AppendRequest, pb.AppendResponse]
    ) -> pb.AppendResponse:
        """Record one event; returns when its leaf is durable."""
        del context
        try:
            event = event_of(request)
        except ValueError as error:  # protovalidate has no rule for every enum and duration, nor for text in bytes
            why = "an enum or a duration is out of its range, or a statement is not UTF-8"
            raise InvalidField(why, field_violations=[("event", why)]) from error
        with mesh_errors():
            appended = await self._logs.append(event, want_receipt=request.want_receipt)
        kept = self._logs.keeps_payloads(request.context.tenant)
        response = pb.AppendResponse(position=position_message(appended), salt=appended.salt, payloads_kept=kept)
        if appended.proof is not None:
            response.receipt.CopyFrom(receipt_message(appended))
        return response

    async def GetReceipt(  # noqa: N802
        self, request: pb.GetReceiptRequest, context: _Context[pb.GetReceiptRequest, pb.GetReceiptResponse]
    ) -> pb.GetReceiptResponse:
        """Prove a leaf at the latest checkpoint."""
        del context
        by_index = request.WhichOneof("leaf") == "leaf_index"
        who = permitted_leaf(request.context, by_index=by_index)
        with mesh_errors():
            appended = await self._logs.receipt(who.tenant, request.leaf_index if by_index else request.event_id)
            refuse_withheld((await self._logs.leaf_at(who.tenant, appended.leaf_index)).data, who)
            return pb.GetReceiptResponse(receipt=receipt_message(appended))

    async def ProveLeaf(  # noqa: N802
        self, request: pb.ProveLeafRequest, context: _Context[pb.ProveLeafRequest, pb.ProveLeafResponse]
    ) -> pb.ProveLeafResponse:
        """Prove a leaf in its log, and its log's checkpoint in the platform's."""
        del context
        by_index = request.WhichOneof("leaf") == "leaf_index"
        who = permitted_leaf(request.context, by_index=by_index)
        with mesh_errors():
            proven = await self._platform_log.prove(who.tenant, request.leaf_index if by_index else request.event_id)
            refuse_withheld(proven.leaf.data, who)
            origin = self._logs.origin(who.tenant)
        appended = Appended(origin, proven.leaf.index, proven.leaf.completed[0], proven.leaf.recorded_at_us, b"", proven.receipt)
        return pb.ProveLeafResponse(receipt=receipt_message(appended), platform_proof=proven.platform_proof)

    async def GetCheckpoint(  # noqa: N802
        self, request: pb.GetCheckpointRequest, context: _Context[pb.GetCheckpointRequest, pb.GetCheckpointResponse]
    ) -> pb.GetCheckpointResponse:
        """Return the latest checkpoint."""
        del context
        who = permitted(request.context, Action.VERIFY_LOG)
        with mesh_errors():
            return pb.GetCheckpointResponse(checkpoint=self._logs.checkpoint(who.tenant))

    async def GetConsistencyProof(  # noqa: N802
        self,
        request: pb.GetConsistencyProofRequest,
        context: _Context[pb.GetConsistencyProofRequest, pb.GetConsistencyProofResponse],
    ) -> pb.GetConsistencyProofResponse:
        """Prove that one tree is a prefix of another."""
        del context
        who = permitted(request.context, Action.VERIFY_LOG)
        with mesh_errors():
            hashes, checkpoint = await self._logs.consistency_proof(who.tenant, request.first_size, request.second_size)
        return pb.GetConsistencyProofResponse(hashes=hashes, checkpoint=checkpoint)

    async def ListLeaves(  # noqa: N802
        self, request: pb.ListLeavesRequest, context: _Context[pb.ListLeavesRequest, pb.ListLeavesResponse]
    ) -> AsyncIterator[pb.ListLeavesResponse]:
        """Stream leaves, a bounded page a message."""
        del context
        who = permitted(request.context, Action.READ_LEAVES)
        with mesh_errors():
            async for page in self._logs.leaves(who.tenant, request.start, request.limit):
                yield pb.ListLeavesResponse(leaves=[_leaf_message(leaf, who.roles) for leaf in page])

    async def ListKeys(  # noqa: N802
        self, request: pb.ListKeysRequest, context: _Context[pb.ListKeysRequest, pb.ListKeysResponse]
    ) -> pb.ListKeysResponse:
        """List verifier keys."""
        del context
        who = permitted(request.context, Action.VERIFY_LOG)
        with mesh_errors():
            verifier_keys = self._logs.verifier_keys(who.tenant)
            links = await self._logs.key_links(self._logs.opened(who.tenant))
            platform_links = await self._logs.key_links(self._platform_log.opened)
        return pb.ListKeysResponse(
            verifier_keys=verifier_keys,
            platform_verifier_keys=self._platform_log.verifier_keys,
            links=[pb.KeyLink(verifier_key=link.verifier_key, tlog_proof=link.tlog_proof) for link in links],
            platform_links=[pb.KeyLink(verifier_key=link.verifier_key, tlog_proof=link.tlog_proof) for link in platform_links],
        )


def _leaf_message(leaf: StoredLeaf, roles: Sequence[str]) -> pb.Leaf:
    if is_withheld(leaf.data, roles):
        return pb.Leaf(leaf_index=leaf.index, withheld_leaf_hash=leaf.completed[0])
    return pb.Leaf(leaf_index=leaf.index, data=leaf.data)


def position_message(appended: Appended) -> pb.LeafPosition:
    """Say where a leaf is."""
    recorded_at = Timestamp()
    recorded_at.FromMicroseconds(appended.recorded_at_us)
    return pb.LeafPosition(
        origin=appended.origin, leaf_index=appended.leaf_index, leaf_hash=appended.leaf_hash, recorded_at=recorded_at
    )


def receipt_message(appended: Appended) -> pb.Receipt:
    """Give the proof of a leaf."""
    return pb.Receipt(tlog_proof=appended.proof or "", position=position_message(appended))
