"""Watches every batch of an engine: nobody writes a block that others may read, and nobody reads a block of another salt."""

from __future__ import annotations

from collections import Counter

from lionrock.inference.engine.batch import BatchRow, StepBatch
from lionrock.inference.engine.engine import Engine

Domain = tuple[bytes, int | None]
"""Salt; for an empty one, the sequence."""


class BlockAudit:
    """Call it with each batch before it runs, as `on_execute` of a PagedHistory. `engine` is set once there is one."""

    engine: Engine

    def __init__(self) -> None:
        self.copies = 0
        self._written_by: dict[int, Domain] = {}

    def forget(self) -> None:
        """The runner is another one, with an empty cache."""
        self._written_by.clear()

    def __call__(self, batch: StepBatch) -> None:
        blocks = self.engine._blocks
        running = {sequence.sequence_id: sequence for sequence in self.engine._scheduler.running}
        holders = Counter(block for sequence in running.values() for block in sequence.block_table)
        self.copies += len(batch.copies)
        copies = {copy: source for source, copy in batch.copies}
        assert len(copies) == len(batch.copies), "two blocks are copied into one"
        for source in copies.values():
            assert blocks.references(source) > holders[source], "a block is copied and nobody keeps it until then"
            assert source not in copies, "a block is both copied and a copy"
        by_domain = {row.sequence_id: self._domain(row) for row in batch.rows if row.sequence_id in running}
        written: Counter[int] = Counter()
        size = blocks.block_size
        for row in batch.rows:
            if row.sequence_id not in running:  # aborted between schedule and execute
                continue
            assert len(row.block_table) == blocks.blocks_for(row.end)
            for index, block in enumerate(row.block_table):
                if (index + 1) * size > row.start:
                    written[block] += 1
                    assert not blocks.is_published(block), "a block is written that others may find"
                    assert blocks.references(block) == holders[block] == 1, "a block is written that others hold"
                if index * size < row.start:
                    origin = self._written_by[copies.get(block, block)]
                    assert origin == by_domain[row.sequence_id], "a block is read that another salt has written"
        assert all(count == 1 for count in written.values()), "two rows write one block"
        assert not written.keys() & set(copies.values()), "a block is written in the step that copies it"
        for row in batch.rows:
            for block in row.block_table[row.start // size :]:
                if row.sequence_id in running:
                    self._written_by[block] = by_domain[row.sequence_id]

    def _domain(self, row: BatchRow) -> Domain:
        (sequence,) = (s for s in self.engine._scheduler.running if s.sequence_id == row.sequence_id)
        salt = sequence.request.cache_salt
        return (salt, None) if salt else (b"", sequence.sequence_id)


def audited(engine_of, **runner_options) -> tuple[Engine, BlockAudit]:
    """An engine, made by `engine_of(runner)`, whose every batch is watched."""
    from paged_history import PagedHistory

    audit = BlockAudit()
    audit.engine = engine_of(PagedHistory(on_execute=audit, **runner_options))
    return audit.engine, audit
