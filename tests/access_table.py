"""Who may do what, as people read it: what the packaged policies are held against, in full."""

from __future__ import annotations

ROLES = (
    "user",
    "reviewer",
    "mlro",
    "model_risk",
    "tenant_admin",
    "security",
    "privacy_officer",
    "auditor",
    "regulator",
    "platform_operator",
)

# One column a role, in the order above: x permits.
ACTIONS = """
                     use  rev  mlr  mod  adm  sec  pri  aud  reg  ops
chat                  x    x    x    x    .    .    .    .    .    .
count_tokens          x    x    x    x    .    .    .    .    .    .
get_held_answer       x    x    x    x    .    .    .    .    .    .
list_models           x    x    x    x    x    x    .    .    .    x
get_quota             x    x    x    x    x    x    x    x    x    .
get_receipt           x    x    x    x    x    x    x    x    x    .
list_audit_keys       x    x    x    x    x    x    x    x    x    .
verify_log            x    x    x    x    x    x    x    x    x    .
read_log_stats        .    .    .    x    x    x    x    x    x    .
read_leaves           .    .    .    x    x    x    x    x    x    .
read_record           .    x    x    .    .    .    x    x    x    .
search_records        .    .    x    .    .    .    x    x    x    .
hold_records          .    .    x    .    .    .    x    .    x    .
read_log_book         .    .    .    .    .    .    x    x    x    .
export_records        .    .    .    .    .    .    x    x    x    .
erase_records         .    .    .    .    .    .    x    .    .    .
correct_record        .    .    .    .    .    .    x    .    .    .
begin_offboarding     .    .    .    .    x    .    .    .    .    .
erase_tenant          .    .    .    .    .    .    x    .    .    .
log_refusal           .    .    .    .    .    .    x    .    .    .
issue_api_keys        .    .    .    .    x    .    .    .    .    .
list_api_keys         .    .    .    .    x    x    .    .    .    .
revoke_api_keys       .    .    .    .    x    x    .    .    .    .
read_reviews          .    x    x    .    .    .    .    .    .    .
decide_review         .    x    x    .    .    .    .    .    .    .
read_notices          x    x    x    x    x    x    x    x    x    .
list_consents         .    .    .    .    x    .    x    x    x    .
withdraw_consent      x    .    .    .    x    .    x    .    .    .
record_consent        .    .    .    .    x    .    x    .    .    .
request_emergency     .    .    .    x    x    x    .    .    .    .
decide_emergency      .    .    x    .    .    .    x    .    .    .
end_emergency         .    .    x    x    x    x    x    .    .    .
read_emergencies      .    .    x    x    x    x    x    x    x    .
"""

# Which classes of data a role meets that was granted all of them: the tipping-off wall.
DATA_CLASSES = """
                     use  rev  mlr  mod  adm  sec  pri  aud  reg  ops
public                x    x    x    x    x    x    x    x    x    x
internal              x    x    x    x    x    x    x    x    x    x
personal              x    x    x    x    x    x    x    x    x    x
identity              x    x    x    x    x    x    x    x    x    x
suspicion             .    .    x    .    .    .    .    .    x    .
"""


def permitted(table: str) -> dict[str, frozenset[str]]:
    """By line of a table: the roles that have an x."""
    lines = [line.split() for line in table.strip().splitlines()[1:]]
    return {name: frozenset(role for role, mark in zip(ROLES, marks, strict=True) if mark == "x") for name, *marks in lines}
