"""How far the departure of a tenant is, stage by stage; one SQL for every store.

Knows: the table, and in which order stages come. Does not know: what happens in a stage (records/offboarding.py). A stage that was
reached has a row, which stays, and whose plan is JSON without any secret; only the first one can be taken back.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from lionrock.audit.failures import StoreFailed
from lionrock.audit.store.records import Ask, Write

LEAVING: Final = "leaving"
"""No request begins any more."""
ERASING: Final = "erasing"
"""It is decided that everything goes."""
SEALING: Final = "sealing"
"""Nothing is kept: the last leaf is about to be written, and no other one is."""
SEALED: Final = "sealed"
"""The last leaf is written: nothing is signed any more, and keys are being destroyed."""
ENDED: Final = "ended"
"""The keys are gone."""
STAGES: Final[Sequence[str]] = (LEAVING, ERASING, SEALING, SEALED, ENDED)

Stages = Mapping[str, bytes]
"""Plans of the stages that were reached, by stage."""


def departure_tables(*, text: str, integer: str, blob: str, options: str) -> tuple[str, ...]:
    """Statements that make the table, in a database's own types."""
    return (
        f"""CREATE TABLE departures (
            log_id {integer} NOT NULL, stage {text} NOT NULL, plan {blob} NOT NULL, PRIMARY KEY (log_id, stage)){options}""",
    )


def furthest(stages: Stages) -> str | None:
    """Return the stage that was reached last, None without any."""
    return next((stage for stage in reversed(STAGES) if stage in stages), None)


class DepartureReader:
    """Questions."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def stages(self, log_id: int) -> Stages:
        """Return the stages that a log's tenant has reached. Raises StoreFailed."""
        rows = self._ask("SELECT stage, plan FROM departures WHERE log_id = ?", (log_id,))
        if any(stage not in STAGES or not isinstance(plan, bytes) for stage, plan in rows):
            raise StoreFailed("the store names a stage of a departure that there is not: restore the store from its backup")
        return dict(rows)  # type: ignore[arg-type]


class DepartureWriter(DepartureReader):
    """Steps of a transaction, beside its questions."""

    def __init__(self, ask: Ask, write: Write) -> None:
        super().__init__(ask)
        self._write = write

    def reach(self, log_id: int, stage: str, plan: bytes) -> None:
        """Note that a stage is reached, which it was not before."""
        self._write("INSERT INTO departures VALUES (?, ?, ?)", [(log_id, stage, plan)])

    def stay(self, log_id: int) -> None:
        """Forget that a tenant was about to leave."""
        self._write("DELETE FROM departures WHERE log_id = ? AND stage = ?", [(log_id, LEAVING)])

    def forget_retry_salts_of(self, log_id: int) -> None:
        """Destroy every salt that is kept for repeated calls."""
        self._write("DELETE FROM retry_salts WHERE log_id = ?", [(log_id,)])
