import itertools
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from lionrock.inference.engine.block_manager import BlockHash, BlockManager, BlocksExhausted

BLOCKS = 12
HASHES = [BlockHash(bytes([n])) for n in range(8)]


class BlockTables(RuleBasedStateMachine):
    """Any order of calls against a naive account: who holds what, what is found, and when each block was last given up."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(BLOCKS, 4)
        self.held: Counter[int] = Counter()
        self.found: dict[BlockHash, int] = {}
        self.time = itertools.count()
        self.given_up = {block: (0, block) for block in range(BLOCKS)}

    def turn(self, block: int) -> tuple[bool, tuple[int, int]]:
        """The smallest is handed out next."""
        return block in self.found.values(), self.given_up[block]

    @rule(target=tables, count=st.integers(0, BLOCKS + 2))
    def allocate(self, count: int):
        free = sorted((block for block in range(BLOCKS) if not self.held[block]), key=self.turn)
        if count > len(free):
            with pytest.raises(BlocksExhausted):
                self.manager.allocate(count)
            return multiple()
        table = self.manager.allocate(count)
        assert table == sorted(free[:count]), "not those whose turn it was"
        self.held.update(table)
        self.found = {name: block for name, block in self.found.items() if block not in table}
        return table

    @rule(target=tables, table=tables, keep=st.integers(0, BLOCKS))
    def share_a_prefix(self, table: list[int], keep: int):
        prefix = [block for block in table[:keep] if self.held[block]]
        self.manager.share(prefix)
        self.held.update(prefix)
        return prefix

    @rule(target=tables, names=st.lists(st.sampled_from(HASHES), unique=True))
    def share_what_is_found(self, names: list[BlockHash]):
        table = [block for name in names if (block := self.manager.find(name)) is not None]
        self.manager.share(table)
        self.held.update(table)
        return table

    @rule(table=tables, name=st.sampled_from(HASHES))
    def publish(self, table: list[int], name: BlockHash) -> None:
        for block in table:
            if self.held[block] and block not in self.found.values():
                self.manager.publish(block, name)
                self.found.setdefault(name, block)
                return

    @rule(table=consumes(tables))
    def release(self, table: list[int]) -> None:
        self.manager.release(table)
        self.held.subtract(table)
        now = next(self.time)
        for index, block in enumerate(table):
            if not self.held[block]:
                published = block in self.found.values()
                self.given_up[block] = (1 + now, -index if published else index)  # of published ones, the last goes first

    @invariant()
    def nothing_leaks_and_nothing_is_free_twice(self) -> None:
        assert self.manager.free_blocks == BLOCKS - len(+self.held)
        assert all(self.manager.references(block) == self.held[block] for block in range(BLOCKS))

    @invariant()
    def what_was_published_is_found_until_it_is_evicted(self) -> None:
        assert {name: self.manager.find(name) for name in HASHES} == {name: self.found.get(name) for name in HASHES}
        assert self.manager.published_blocks == len(self.found)
        assert all(self.manager.is_published(block) == (block in self.found.values()) for block in range(BLOCKS))


BlockTables.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_no_order_of_calls_leaks_double_frees_or_finds_what_is_gone = BlockTables.TestCase


def test_releasing_a_free_block_is_our_mistake() -> None:
    manager = BlockManager(2, 4)
    (block,) = manager.allocate(1)
    manager.release([block])
    with pytest.raises(AssertionError):
        manager.release([block])


def test_sharing_a_block_that_was_forgotten_is_our_mistake() -> None:
    manager = BlockManager(2, 4)
    (block,) = manager.allocate(1)
    manager.release([block])
    with pytest.raises(AssertionError):
        manager.share([block])


def test_a_sequence_that_is_alone_gets_consecutive_blocks() -> None:
    manager = BlockManager(8, 4)
    table = manager.allocate(3) + manager.allocate(1) + manager.allocate(1)
    assert table == [0, 1, 2, 3, 4]


def test_the_tail_of_a_given_up_sequence_is_evicted_before_its_head_and_what_is_forgotten_before_both() -> None:
    manager = BlockManager(5, 4)
    table = manager.allocate(4)
    for block, name in zip(table[:3], HASHES, strict=False):
        manager.publish(block, name)
    manager.release(table)
    assert sorted(manager.allocate(2)) == [3, 4]
    for gone in (2, 1, 0):
        assert manager.find(HASHES[gone]) == gone
        assert manager.allocate(1) == [gone]
        assert manager.find(HASHES[gone]) is None
