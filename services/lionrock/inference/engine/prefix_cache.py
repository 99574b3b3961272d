"""Which full KV blocks of a sequence are there already: blocks are named by hashes that chain over everything they depend on.

The name of a block is SHA-256 over the name of the block before it and its own tokens; before the first block stands a hash of the
tenant's salt. So equal names mean equal salts and equal prefixes, as surely as nobody finds collisions of SHA-256, and no tenant
can tell from a fast answer what another one asked (CVE-2025-46570). A request with an empty salt belongs to nobody: it neither
finds blocks nor publishes any. Only full blocks have names, and only those are published whose keys and values a finished step
computed from tokens of the sequence. Published blocks are never written.

Knows sequences, their tokens and block tables; not when anything runs.
"""

from __future__ import annotations

import struct
from collections.abc import Container
from collections.abc import Sequence as Seq
from hashlib import sha256

from lionrock.inference.engine.block_manager import BlockHash, BlockManager
from lionrock.inference.engine.sequence import Sequence


def salt_hash(salt: bytes) -> BlockHash:
    """Stand for a salt before the first block of each of its sequences. The leading byte keeps it apart from blocks' names."""
    return BlockHash(sha256(b"\x00" + salt).digest())


def block_hash(parent: BlockHash, token_ids: Seq[int]) -> BlockHash:
    """Name the full block that has these tokens and comes after what `parent` stands for."""
    return BlockHash(sha256(struct.pack(f"<c32s{len(token_ids)}I", b"\x01", parent, *token_ids)).digest())


class PrefixCache:
    """Finds and publishes sequences' blocks in one block manager."""

    def __init__(self, blocks: BlockManager, *, enabled: bool = True) -> None:
        """Work on these blocks. enabled: where false, nothing is found and nothing published."""
        self._blocks = blocks
        self._size = blocks.block_size
        self._enabled = enabled

    def covers(self, sequence: Sequence) -> bool:
        """Whether the sequence may share blocks."""
        return self._enabled and bool(sequence.request.cache_salt)

    def hash_of(self, sequence: Sequence, index: int) -> BlockHash:
        """Name a sequence's block, which its known tokens fill. Each is hashed once."""
        hashes, size = sequence.block_hashes, self._size
        assert (index + 1) * size <= len(sequence.tokens), "the block is not full"
        while len(hashes) <= index:
            parent = hashes[-1] if hashes else salt_hash(sequence.request.cache_salt)
            begin = len(hashes) * size
            hashes.append(block_hash(parent, sequence.tokens[begin : begin + size]))
        return hashes[index]

    def hits(self, sequence: Sequence, first: int = 0) -> list[int]:
        """Return the published blocks that hold the sequence's tokens from its block `first` on, in order.

        Never all of its tokens: the last one must run for there to be something to sample from.
        """
        if not self.covers(sequence):
            return []
        found: list[int] = []
        for index in range(first, (len(sequence.tokens) - 1) // self._size):
            block = self._blocks.find(self.hash_of(sequence, index))
            if block is None:
                break
            found.append(block)
        return found

    def admit(self, sequence: Sequence, hits: list[int]) -> None:
        """Give a sequence its block table: the hits, just found, and new blocks for the rest of its known tokens.

        Raises BlocksExhausted.
        """
        self._blocks.share(hits)
        sequence.block_table = hits + self._blocks.allocate(self._blocks.blocks_for(len(sequence.tokens)) - len(hits))
        sequence.published_blocks = len(hits)
        _skip_to(sequence, len(hits) * self._size)

    def catch_up(self, sequence: Sequence) -> tuple[int, int] | None:
        """Skip what others have published since a prefilling sequence was admitted, and give its own blocks for that back.

        When all that is left is its last block and that is full and published too, returns (published block, own last block): a
        copy leaves one token to run, which must not be written into the shared block. The caller says `skip_by_copy` then.
        """
        if not self.covers(sequence):
            return None
        size, table = self._size, sequence.block_table
        first = sequence.computed_tokens // size
        if hits := self.hits(sequence, first):
            own = table[first : first + len(hits)]
            self._blocks.share(hits)
            table[first : first + len(hits)] = hits
            self._blocks.release(own)
            first += len(hits)
            sequence.published_blocks = first
            _skip_to(sequence, first * size)
        if (first + 1) * size != len(sequence.tokens):
            return None
        source = self._blocks.find(self.hash_of(sequence, first))
        return None if source is None else (source, table[first])

    def skip_by_copy(self, sequence: Sequence) -> None:
        """Count all but the last token as computed: a published block's copy in the last block holds them."""
        _skip_to(sequence, len(sequence.tokens) - 1)

    def blocks_completed(self, sequence: Sequence, tokens: int) -> list[BlockHash]:
        """Name the blocks that running so many more known tokens fills."""
        if not self.covers(sequence):
            return []
        computed = sequence.computed_tokens
        return [self.hash_of(sequence, index) for index in range(computed // self._size, (computed + tokens) // self._size)]

    def blocks_among(self, sequence: Sequence, names: Container[BlockHash]) -> int:
        """How many of the sequence's next full blocks, without a gap, have one of the names."""
        if not self.covers(sequence):
            return 0
        first, full = sequence.computed_tokens // self._size, len(sequence.tokens) // self._size
        index = first
        while index < full and self.hash_of(sequence, index) in names:
            index += 1
        return index - first

    def publish(self, sequence: Sequence) -> None:
        """Publish the full blocks that the sequence has computed since it last did."""
        full = sequence.computed_tokens // self._size
        if full > sequence.published_blocks and self.covers(sequence):
            for index in range(sequence.published_blocks, full):
                self._blocks.publish(sequence.block_table[index], self.hash_of(sequence, index))
            sequence.published_blocks = full


def _skip_to(sequence: Sequence, computed_tokens: int) -> None:
    """Count tokens as computed without having run them; of the prompt, the first time round, they are reported."""
    if sequence.preemptions == 0 and sequence.resumptions == 0:
        prompt = sequence.prompt_tokens
        sequence.cached_prompt_tokens += min(computed_tokens, prompt) - min(sequence.computed_tokens, prompt)
    sequence.computed_tokens = computed_tokens
