"""Reads a published log (tiles.py) and believes nothing that its signed checkpoint does not commit to.

Rule: every tile is checked before any of it is used. The partial tiles at the right edge together are the root, literally: they
hold the perfect subtrees that the tree consists of. A full tile is the hash that its parent tile has for it, so every one
hangs on the edge. The leaves of a bundle are those that the tile of level 0 has the hashes of. To check only what is on the path of
a proof is not enough: a corrupt neighbour in the same tile would pass unseen.

Knows: what to read for which hash. Does not know: where files come from (`TileSource`), who signs a checkpoint for what.
Bounded: every read has a limit, verified tiles are kept in a cache of CACHE_TILES of at most 8 KiB.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.merkle import EMPTY_ROOT, Subtree, leaf_hash, node_hash, root_at
from lionrock.tlog.note import OpenedNote, UntrustedNote, VerifierKey, open_note
from lionrock.tlog.tiles import (
    BUNDLE_MAX_BYTES,
    CHECKPOINT_NAME,
    TILE_HEIGHT,
    TILE_MAX_BYTES,
    TILE_WIDTH,
    MalformedTile,
    Tile,
    hashes_at,
    levels_of,
    split_bundle,
    split_tile,
    tile_at,
)

CACHE_TILES = 1024
CHECKPOINT_MAX_BYTES = 1_000_000


class SourceFailed(Exception):
    """A file could not be read, for a reason that says nothing about the log: no network, no right, no time."""


class CorruptLog(Exception):
    """What the log publishes does not fit its signed checkpoint. The message names the file."""


class TileMissing(CorruptLog):
    """A file that the signed checkpoint requires is not there."""


class TileSource(Protocol):
    """Files of one log, by their paths below its prefix."""

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Content of a file, None when there is none. Raises SourceFailed, CorruptLog for more than `max_bytes`."""


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint that a key of its log signed. Only `open_checkpoint` makes one."""

    checkpoint: Checkpoint
    note: str
    opened: OpenedNote


def open_checkpoint(
    note: str, origin: str, log_keys: Sequence[VerifierKey], cosigners: Sequence[VerifierKey] = ()
) -> SignedCheckpoint:
    """Open a log's checkpoint; a cosigner's signature does not stand for the log's own. Raises MalformedNote, UntrustedNote."""
    opened = open_note(note, [*log_keys, *cosigners])
    if not any(opened.signed_by(key) for key in log_keys):
        raise UntrustedNote("no known key of the log signed the checkpoint")
    checkpoint = Checkpoint.parse(opened.text)
    if checkpoint.origin != origin:
        raise UntrustedNote("the checkpoint is that of another log")
    return SignedCheckpoint(checkpoint, note, opened)


def read_checkpoint(source: TileSource) -> str:
    """Return the log's checkpoint as published, unjudged. Raises SourceFailed, TileMissing, MalformedNote."""
    content = source.read(CHECKPOINT_NAME, CHECKPOINT_MAX_BYTES)
    if content is None:
        raise TileMissing("there is no checkpoint")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedNote("a checkpoint is valid UTF-8") from error


class TreeReader:
    """Hashes and leaves of the tree under one checkpoint."""

    def __init__(self, source: TileSource, checkpoint: Checkpoint) -> None:
        """Read from `source` what belongs to `checkpoint`, whose signature the caller has checked."""
        self._source = source
        self._size = checkpoint.size
        self._root = checkpoint.root
        self._edge: dict[int, list[bytes]] | None = None
        self._cache: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()

    def subtree_hashes(self, subtrees: Sequence[Subtree]) -> list[bytes]:
        """Hashes of complete subtrees, for merkle.py's proofs and roots. Raises SourceFailed, CorruptLog."""
        return [self._subtree(subtree) for subtree in subtrees]

    def root_at(self, size: int) -> bytes:
        """Root that this tree says it had at `size` leaves. Raises ValueError beyond the tree, SourceFailed, CorruptLog."""
        if size > self._size:
            raise ValueError("the tree has not that many leaves")
        self._verified_edge()
        return root_at(size, self.subtree_hashes)

    def entries(self, start: int, stop: int) -> Iterator[tuple[int, list[bytes]]]:
        """Read the leaves [start, stop), verified, a bundle at a time: index of the first, leaves.

        Raises ValueError beyond the tree, SourceFailed, CorruptLog.
        """
        while start < stop:
            index = start // TILE_WIDTH
            tile = tile_at(None, index, self._size)
            hashes = self._tile(0, index)
            leaves = self._read_bundle(tile)
            for position, (leaf, hash_) in enumerate(zip(leaves, hashes, strict=True)):
                if leaf_hash(leaf) != hash_:
                    raise CorruptLog(f"leaf {index * TILE_WIDTH + position} in {tile.name} is not the one that was hashed")
            end = min(stop - index * TILE_WIDTH, tile.width)
            yield start, leaves[start - index * TILE_WIDTH : end]
            start = index * TILE_WIDTH + end

    def verify_tiles(self) -> int:
        """Check every tile of the tree. Returns how many there are. Raises SourceFailed, CorruptLog."""
        self._verified_edge()
        checked = 0
        for level in reversed(range(levels_of(self._size))):
            for index in range((hashes_at(level, self._size) + TILE_WIDTH - 1) // TILE_WIDTH):
                self._tile(level, index)
                checked += 1
        return checked

    def _subtree(self, subtree: Subtree) -> bytes:
        if subtree.level < 0 or subtree.index < 0 or (subtree.index + 1) << subtree.level > self._size:
            raise ValueError("the tree has no such subtree")
        level, height = divmod(subtree.level, TILE_HEIGHT)
        first = subtree.index << height
        hashes = self._tile(level, first // TILE_WIDTH)
        position = first % TILE_WIDTH
        return _perfect(hashes[position : position + (1 << height)])

    def _tile(self, level: int, index: int) -> list[bytes]:
        """Hashes of a tile, verified."""
        edge = self._verified_edge()
        if index == hashes_at(level, self._size) // TILE_WIDTH:
            return edge[level]
        place = (level, index)
        if place in self._cache:
            self._cache.move_to_end(place)
            return self._cache[place]
        parent = self._tile(level + 1, index // TILE_WIDTH)
        tile = Tile(level, index, TILE_WIDTH)
        hashes = self._read_tile(tile)
        if _perfect(hashes) != parent[index % TILE_WIDTH]:
            raise CorruptLog(f"{tile.name} is not the tile that its parent has the hash of")
        self._cache[place] = hashes
        if len(self._cache) > CACHE_TILES:
            self._cache.popitem(last=False)
        return hashes

    def _verified_edge(self) -> dict[int, list[bytes]]:
        """Partial tiles at the right edge by level, all levels; an empty list where the level's last tile is full."""
        if self._edge is not None:
            return self._edge
        edge: dict[int, list[bytes]] = {}
        root: bytes | None = None
        for level in range(levels_of(self._size)):
            count = hashes_at(level, self._size)
            width = count % TILE_WIDTH
            edge[level] = self._read_tile(Tile(level, count // TILE_WIDTH, width)) if width else []
            # From the smallest perfect subtree to the largest, which is from right to left and from the lowest level up.
            end = width
            while end:
                part = end & -end
                hash_ = _perfect(edge[level][end - part : end])
                root = hash_ if root is None else node_hash(hash_, root)
                end -= part
        if (EMPTY_ROOT if root is None else root) != self._root:
            raise CorruptLog(f"the partial tiles of {self._size} leaves do not lead to the signed root")
        self._edge = edge
        return edge

    def _read_tile(self, tile: Tile) -> list[bytes]:
        content, width = self._read(tile, TILE_MAX_BYTES)
        try:
            return split_tile(content, width)[: tile.width]
        except MalformedTile as error:
            raise CorruptLog(f"{tile.name}: {error}") from error

    def _read_bundle(self, tile: Tile) -> list[bytes]:
        content, width = self._read(tile, BUNDLE_MAX_BYTES)
        try:
            return split_bundle(content, width)[: tile.width]
        except MalformedTile as error:
            raise CorruptLog(f"{tile.name}: {error}") from error

    def _read(self, tile: Tile, max_bytes: int) -> tuple[bytes, int]:
        """Read a tile, or the full one that has taken a partial one's place. Returns its width as well."""
        content = self._source.read(tile.name, max_bytes)
        if content is not None:
            return content, tile.width
        if not tile.full:
            content = self._source.read(tile.full_name, max_bytes)
            if content is not None:
                return content, TILE_WIDTH
        raise TileMissing(f"{tile.name} is not there")


def _perfect(hashes: Sequence[bytes]) -> bytes:
    """Root of a power of two of hashes."""
    while len(hashes) > 1:
        hashes = [node_hash(hashes[left], hashes[left + 1]) for left in range(0, len(hashes), 2)]
    return hashes[0]
