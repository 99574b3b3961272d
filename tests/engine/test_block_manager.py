from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from lionrock.inference.engine.block_manager import BlockManager, BlocksExhausted

BLOCKS = 12


class BlockTables(RuleBasedStateMachine):
    """Any order of allocate, share and release against a count of who holds what."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(BLOCKS, 4)
        self.held: Counter[int] = Counter()

    @rule(target=tables, count=st.integers(0, BLOCKS + 2))
    def allocate(self, count: int):
        free = BLOCKS - len(self.held)
        if count > free:
            with pytest.raises(BlocksExhausted):
                self.manager.allocate(count)
            return multiple()
        table = self.manager.allocate(count)
        assert len(set(table)) == count
        assert not self.held.keys() & set(table), "a block in use was handed out again"
        self.held.update(table)
        return table

    @rule(target=tables, table=tables, keep=st.integers(0, BLOCKS))
    def share(self, table: list[int], keep: int):
        prefix = [block for block in table[:keep] if self.held[block]]
        self.manager.share(prefix)
        self.held.update(prefix)
        return prefix

    @rule(table=consumes(tables))
    def release(self, table: list[int]) -> None:
        self.manager.release(table)
        self.held.subtract(table)
        self.held += Counter()

    @invariant()
    def nothing_leaks_and_nothing_is_free_twice(self) -> None:
        assert self.manager.free_blocks == BLOCKS - len(self.held)
        assert all(self.manager.references(block) == self.held[block] for block in range(BLOCKS))


BlockTables.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_no_order_of_calls_leaks_or_double_frees = BlockTables.TestCase


def test_releasing_a_free_block_is_our_mistake() -> None:
    manager = BlockManager(2, 4)
    (block,) = manager.allocate(1)
    manager.release([block])
    with pytest.raises(AssertionError):
        manager.release([block])


def test_a_sequence_that_is_alone_gets_consecutive_blocks() -> None:
    manager = BlockManager(8, 4)
    table = manager.allocate(3) + manager.allocate(1) + manager.allocate(1)
    assert table == [0, 1, 2, 3, 4]
