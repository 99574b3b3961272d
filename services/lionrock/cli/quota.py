"""`lionrock quota`: how much of the quotas that bound the caller is used, by all gateways together.

Knows how a use is shown. Does not know how it is counted: the gateway answers.
"""

from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lionrock.cli.call_errors import command_error
from lionrock.cli.chat import Door, connect
from lionrock.cli.state import StateDir
from lionrock.client import CallError
from lionrock.gateway.v1 import gateway_pb2 as gw


def run(state_dir: Path | None, door: Door, *, timeout_s: float, as_json: bool) -> int:
    """Print the quotas, one a line. Returns the exit status. Raises CommandError."""
    with connect(StateDir.at(state_dir), door) as client:
        try:
            quotas = client.get_quota(deadline_s=timeout_s)
        except CallError as error:
            raise command_error(error) from error
    if as_json:
        for quota in quotas:
            print(json.dumps(_as_json(quota)))
        return 0
    if not quotas:
        print("no quota bounds you")
        return 0
    table = Table(box=None, pad_edge=False)
    for column in ("QUOTA", "OF", "TAKEN", "LIMIT", "FREE AGAIN"):
        table.add_column(column, justify="right" if column in ("TAKEN", "LIMIT") else "left", overflow="fold")
    for quota in quotas:
        free_again = _resets_at(quota) or "as answers end"
        table.add_row(quota.name, quota.principal or "the tenant", f"{quota.taken:,}", f"{quota.limit:,}", free_again)
    Console(highlight=False).print(table)
    return 0


def _as_json(quota: gw.QuotaUse) -> dict[str, str | int | None]:
    return {
        "quota": quota.name,
        "principal": quota.principal or None,
        "taken": quota.taken,
        "limit": quota.limit,
        "resets_at": _resets_at(quota),
    }


def _resets_at(quota: gw.QuotaUse) -> str | None:
    if not quota.HasField("resets_at"):
        return None
    return quota.resets_at.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
