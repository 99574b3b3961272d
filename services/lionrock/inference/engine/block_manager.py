"""Which KV blocks are free, and who refers to the others. Block ids only: no tensors, no sequences, no policy.

A block is free exactly while its reference count is 0. Blocks are handed out in the order in which they became free, so that a
sequence that is alone gets consecutive ones and attention can read them without a copy. Paged KV: Kwon et al. 2023.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class BlocksExhausted(Exception):
    """Fewer blocks are free than were asked for. Nothing was allocated."""


class BlockManager:
    """Free list and reference counts over `blocks` blocks of `block_size` tokens."""

    def __init__(self, blocks: int, block_size: int) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError("a KV cache has at least one block of at least one token")
        self.blocks = blocks
        self.block_size = block_size
        self._free: deque[int] = deque(range(blocks))
        self._references = [0] * blocks

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody refers to."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-tokens // self.block_size)

    def references(self, block: int) -> int:
        """How many block tables hold the block."""
        return self._references[block]

    def allocate(self, count: int) -> list[int]:
        """Take blocks with one reference each. Raises BlocksExhausted."""
        if count > len(self._free):
            raise BlocksExhausted(f"{count} blocks asked for, {len(self._free)} free")
        taken = [self._free.popleft() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block, all of which are in use."""
        for block in blocks:
            assert self._references[block] > 0, "a free block cannot be shared"
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each block; those with none left become free."""
        for block in blocks:
            assert self._references[block] > 0, "a block was released more often than it was taken"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)
