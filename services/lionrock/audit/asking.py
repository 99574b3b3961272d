"""Who asks, and whether they may: what every call that the gateway forwards begins with.

Knows: RequestContext, the table of permissions, how a failure of the domain is put on the wire. Does not know: what is asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from lionrock.audit.errors import mesh_error
from lionrock.audit.failures import AuditError, LeafNotFound
from lionrock.audit.leaf import Context
from lionrock.audit.records.permissions import EMERGENCY_ROLES, Action, is_withheld, permit
from lionrock.audit.wire import asker_of
from lionrock.chassis.errors import InvalidField
from lionrock.common.v1 import context_pb2


def asker(asked_by: context_pb2.RequestContext) -> Context:
    """Return who asks. Raises InvalidField without a context: only callers of the gateway leave it unset.

    The roles of an emergency come with its id, so that no leaf says that somebody read under one and not under which.
    """
    if not asked_by.tenant:
        raise InvalidField("who asks must be said", field_violations=[("context", "the gateway writes it from the credential")])
    if not asked_by.break_glass_id and not EMERGENCY_ROLES.isdisjoint(asked_by.roles):
        raise InvalidField("an emergency has an id", field_violations=[("context.break_glass_id", "the emergency's")])
    return asker_of(asked_by)


def permitted(asked_by: context_pb2.RequestContext, action: Action) -> Context:
    """Return who asks, if one of their roles permits it. Raises InvalidField, RoleNotPermitted as callers see them."""
    who = asker(asked_by)
    with mesh_errors():
        permit(who.roles, action)
    return who


def permitted_leaf(asked_by: context_pb2.RequestContext, *, by_index: bool) -> Context:
    """Return who asks for a leaf. By an event id one proves what one knows of; by index one reads the log."""
    return permitted(asked_by, Action.READ_LEAVES if by_index else Action.VERIFY_LOG)


def refuse_withheld(leaf: bytes, who: Context) -> None:
    """Raise LeafNotFound for a leaf that does not exist for the caller."""
    if is_withheld(leaf, who.roles):
        raise LeafNotFound("no such leaf under the latest checkpoint")


@contextmanager
def mesh_errors() -> Iterator[None]:
    """Translate failures of the domain."""
    try:
        yield
    except AuditError as failure:
        raise mesh_error(failure) from failure
