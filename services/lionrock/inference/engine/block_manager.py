"""Which KV blocks are free, who refers to the others, and under which hash a computed one is found again.

A block is in one of three states. In use: block tables refer to it. Cached: nobody refers to it, but it is published under a hash,
so that it can be taken into use again as it is. Free: nobody refers to it, and what it holds is forgotten. Free blocks are handed
out first, in the order in which they became free. Then cached ones are evicted, least recently used first; of those that one
sequence gave up together the last before the first, because a block is of use only with all that come before it.

Block ids and opaque hashes only: no tensors, no sequences, no policy. Paged KV: Kwon et al. 2023.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import NewType

BlockHash = NewType("BlockHash", bytes)
"""Stands for a block's tokens, all tokens before them, and who may share them. See `prefix_cache`."""


class BlocksExhausted(Exception):
    """Fewer blocks are free or cached than were asked for. Nothing was allocated."""


class BlockManager:
    """Reference counts, free list and published hashes of `blocks` blocks of `block_size` tokens."""

    def __init__(self, blocks: int, block_size: int) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError("a KV cache has at least one block of at least one token")
        self.blocks = blocks
        self.block_size = block_size
        self._free: deque[int] = deque(range(blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # next to be evicted first
        self._references = [0] * blocks
        self._by_hash: dict[BlockHash, int] = {}
        self._hashes: dict[int, BlockHash] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody refers to, the cached ones among them."""
        return len(self._free) + len(self._cached)

    @property
    def published_blocks(self) -> int:
        """Blocks that `find` finds, in use or cached."""
        return len(self._by_hash)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-tokens // self.block_size)

    def references(self, block: int) -> int:
        """How many references the block has."""
        return self._references[block]

    def is_published(self, block: int) -> bool:
        """Whether others may find the block; then nobody may write it."""
        return block in self._hashes

    def find(self, block_hash: BlockHash) -> int | None:
        """Return the block published under the hash. It stays that until the next `allocate`; `share` it to keep it longer."""
        return self._by_hash.get(block_hash)

    def allocate(self, count: int) -> list[int]:
        """Take blocks with one reference each, unpublished, in ascending order. Raises BlocksExhausted."""
        if count > self.free_blocks:
            raise BlocksExhausted(f"{count} blocks asked for, {self.free_blocks} free")
        taken = [self._free.popleft() if self._free else self._evict() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        taken.sort()  # attention reads consecutive blocks without a copy
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block, all of which are in use or cached."""
        for block in blocks:
            if self._references[block] == 0:
                assert block in self._cached, "a free block cannot be shared"
                del self._cached[block]
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each block of a block table; those with none left become cached if published, otherwise free."""
        unused: list[int] = []
        for block in blocks:
            assert self._references[block] > 0, "a block was released more often than it was taken"
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._hashes:
                    unused.append(block)
                else:
                    self._free.append(block)
        for block in reversed(unused):
            self._cached[block] = None

    def publish(self, block: int, block_hash: BlockHash) -> None:
        """Let a block in use be found under a hash. Where another block is already found under it, that one remains."""
        assert self._references[block] > 0, "a free block holds nothing to publish"
        assert block not in self._hashes, "a block is published once"
        if block_hash not in self._by_hash:
            self._by_hash[block_hash] = block
            self._hashes[block] = block_hash

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._by_hash[self._hashes.pop(block)]
        return block
