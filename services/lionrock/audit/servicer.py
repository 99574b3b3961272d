"""The audit service on the wire: messages in, domain calls, messages out. The tenant comes from RequestContext alone."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from lionrock.audit.errors import mesh_error
from lionrock.audit.failures import AuditError
from lionrock.audit.log import AuditLogs
from lionrock.audit.platform_log import PlatformLog
from lionrock.audit.sequencer import Appended
from lionrock.audit.v1 import audit_pb2 as pb
from lionrock.audit.v1.audit_pb2_grpc import AuditServiceServicer
from lionrock.audit.wire import event_of
from lionrock.chassis.errors import InvalidField
from lionrock.common.v1 import context_pb2

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
        except ValueError as error:  # protovalidate has no rule for every enum and duration
            why = "an enum or a duration is out of its range"
            raise InvalidField(why, field_violations=[("event", why)]) from error
        with _mesh_errors():
            appended = await self._logs.append(event, want_receipt=request.want_receipt)
        response = pb.AppendResponse(position=_position(appended), salt=appended.salt)
        if appended.proof is not None:
            response.receipt.CopyFrom(_receipt(appended))
        return response

    async def GetReceipt(  # noqa: N802
        self, request: pb.GetReceiptRequest, context: _Context[pb.GetReceiptRequest, pb.GetReceiptResponse]
    ) -> pb.GetReceiptResponse:
        """Prove a leaf at the latest checkpoint."""
        del context
        wanted = request.leaf_index if request.WhichOneof("leaf") == "leaf_index" else request.event_id
        with _mesh_errors():
            return pb.GetReceiptResponse(receipt=_receipt(await self._logs.receipt(tenant_of(request.context), wanted)))

    async def ProveLeaf(  # noqa: N802
        self, request: pb.ProveLeafRequest, context: _Context[pb.ProveLeafRequest, pb.ProveLeafResponse]
    ) -> pb.ProveLeafResponse:
        """Prove a leaf in its log, and its log's checkpoint in the platform's."""
        del context
        tenant = tenant_of(request.context)
        wanted = request.leaf_index if request.WhichOneof("leaf") == "leaf_index" else request.event_id
        with _mesh_errors():
            proven = await self._platform_log.prove(tenant, wanted)
            origin = self._logs.origin(tenant)
        appended = Appended(origin, proven.leaf.index, proven.leaf.completed[0], proven.leaf.recorded_at_us, b"", proven.receipt)
        return pb.ProveLeafResponse(receipt=_receipt(appended), platform_proof=proven.platform_proof)

    async def GetCheckpoint(  # noqa: N802
        self, request: pb.GetCheckpointRequest, context: _Context[pb.GetCheckpointRequest, pb.GetCheckpointResponse]
    ) -> pb.GetCheckpointResponse:
        """Return the latest checkpoint."""
        del context
        with _mesh_errors():
            return pb.GetCheckpointResponse(checkpoint=self._logs.checkpoint(tenant_of(request.context)))

    async def GetConsistencyProof(  # noqa: N802
        self,
        request: pb.GetConsistencyProofRequest,
        context: _Context[pb.GetConsistencyProofRequest, pb.GetConsistencyProofResponse],
    ) -> pb.GetConsistencyProofResponse:
        """Prove that one tree is a prefix of another."""
        del context
        with _mesh_errors():
            hashes, checkpoint = await self._logs.consistency_proof(
                tenant_of(request.context), request.first_size, request.second_size
            )
        return pb.GetConsistencyProofResponse(hashes=hashes, checkpoint=checkpoint)

    async def ListLeaves(  # noqa: N802
        self, request: pb.ListLeavesRequest, context: _Context[pb.ListLeavesRequest, pb.ListLeavesResponse]
    ) -> AsyncIterator[pb.ListLeavesResponse]:
        """Stream leaves, a bounded page a message."""
        del context
        with _mesh_errors():
            async for page in self._logs.leaves(tenant_of(request.context), request.start, request.limit):
                yield pb.ListLeavesResponse(leaves=[pb.Leaf(leaf_index=leaf.index, data=leaf.data) for leaf in page])

    async def ListKeys(  # noqa: N802
        self, request: pb.ListKeysRequest, context: _Context[pb.ListKeysRequest, pb.ListKeysResponse]
    ) -> pb.ListKeysResponse:
        """List verifier keys."""
        del context
        with _mesh_errors():
            verifier_keys = self._logs.verifier_keys(tenant_of(request.context))
        return pb.ListKeysResponse(verifier_keys=verifier_keys, platform_verifier_keys=[self._platform_log.verifier_key])


def tenant_of(asked_by: context_pb2.RequestContext) -> str:
    """Return the tenant of a call that reads. Raises InvalidField without a context: only callers of the gateway leave it unset."""
    if not asked_by.tenant:
        raise InvalidField("who asks must be said", field_violations=[("context", "the gateway writes it from the credential")])
    return asked_by.tenant


@contextmanager
def _mesh_errors() -> Iterator[None]:
    try:
        yield
    except AuditError as failure:
        raise mesh_error(failure) from failure


def _position(appended: Appended) -> pb.LeafPosition:
    recorded_at = Timestamp()
    recorded_at.FromMicroseconds(appended.recorded_at_us)
    return pb.LeafPosition(
        origin=appended.origin, leaf_index=appended.leaf_index, leaf_hash=appended.leaf_hash, recorded_at=recorded_at
    )


def _receipt(appended: Appended) -> pb.Receipt:
    return pb.Receipt(tlog_proof=appended.proof or "", position=_position(appended))
