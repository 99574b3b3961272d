"""What the audit service lets somebody do under an emergency, and that it has an id."""

from __future__ import annotations

import pytest

from lionrock.audit.asking import asker
from lionrock.audit.failures import RoleNotPermitted
from lionrock.audit.records.permissions import (
    EMERGENCY_CLEARED,
    EMERGENCY_READER,
    EMERGENCY_ROLES,
    ROLE_ACTIONS,
    Action,
    is_cleared,
    is_withheld,
    permit,
)
from lionrock.chassis.errors import InvalidField
from lionrock.common.v1 import context_pb2 as ctx
from lionrock.gateway.authorization import EMERGENCY_ACTIONS
from lionrock.gateway.emergencies.leaves import CLEARED_ROLE, READER_ROLE

OPENED = {Action.READ_RECORD, Action.SEARCH_RECORDS, Action.EXPORT_RECORDS}


def test_an_emergency_opens_reading_and_nothing_else() -> None:
    assert {action.value for action in OPENED} == {action.value for action in EMERGENCY_ACTIONS}
    for action in OPENED:
        permit(("emergency_reader", "security"), action)
    for action in set(Action) - OPENED:
        with pytest.raises(RoleNotPermitted):
            permit((EMERGENCY_READER, EMERGENCY_CLEARED), action)
    with pytest.raises(RoleNotPermitted):
        permit((EMERGENCY_CLEARED,), Action.READ_RECORD)


def test_suspicion_is_for_an_emergency_that_an_mlro_approved_for_it() -> None:
    leaf = b'{"data_class":"suspicion"}'
    assert not is_cleared((EMERGENCY_READER, "security"))
    assert is_withheld(leaf, (EMERGENCY_READER, "auditor"))
    assert is_cleared((EMERGENCY_CLEARED, EMERGENCY_READER, "security"))
    assert not is_withheld(leaf, (EMERGENCY_CLEARED, EMERGENCY_READER))


def test_no_grant_has_the_roles_of_an_emergency_and_both_services_call_them_alike() -> None:
    assert EMERGENCY_ROLES.isdisjoint(ROLE_ACTIONS)
    assert {READER_ROLE, CLEARED_ROLE} == EMERGENCY_ROLES


def test_nobody_reads_under_an_emergency_without_saying_under_which() -> None:
    for role in EMERGENCY_ROLES:
        asked = ctx.RequestContext(tenant="bank", roles=[role, "security"], auth_method=ctx.AUTH_METHOD_MTLS)
        with pytest.raises(InvalidField):
            asker(asked)
        asked.break_glass_id = "01930000-0000-7000-8000-000000000000"
        assert asker(asked).break_glass_id == asked.break_glass_id
