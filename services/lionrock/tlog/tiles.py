"""Tiles: a tree and its leaves cut into files that never change. Source: c2sp.org/tlog-tiles.

Knows: which tiles and entry bundles a tree of a given size has, their names, what is in them. Does not know: where they are kept
(audit/tile_sinks.py), who publishes (audit/publisher.py) or reads them (tile_client.py).

A tile of level L holds up to 256 hashes of perfect subtrees of 256**L leaves; an entry bundle holds the leaves under a tile of
level 0. The last one of each level may be partial: it has fewer, and another name.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lionrock.tlog.merkle import HASH_BYTES, Subtree

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
LEVEL_MAX = 63
ENTRY_MAX_BYTES = 2**16 - 1
"""What a length of two bytes can say."""
BUNDLE_MAX_BYTES = TILE_WIDTH * (2 + ENTRY_MAX_BYTES)
TILE_MAX_BYTES = TILE_WIDTH * HASH_BYTES
CHECKPOINT_NAME = "checkpoint"
CHECKPOINT_TYPE = "text/plain; charset=utf-8"
TILE_TYPE = "application/octet-stream"
CHECKPOINT_CACHING = "no-cache"
TILE_CACHING = "max-age=31536000, immutable"
"""Full and partial tiles alike: what a name stands for never changes."""
_PREFIX = "tile"
_ENTRIES = "entries"
_NAME = re.compile(r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII)


class MalformedTile(ValueError):
    """Bytes or a name are not those of a tile or of an entry bundle."""


class Tile(NamedTuple):
    """A tile of hashes. `width`: hashes in it, 1 to 256; 256 is a full tile. `level` None: the entry bundle beside level 0."""

    level: int | None
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nothing here calls
    width: int

    @property
    def full(self) -> bool:
        """Whether nothing will be added to it."""
        return self.width == TILE_WIDTH

    @property
    def name(self) -> str:
        """Path below the log's prefix."""
        return self.full_name if self.full else f"{self.partial_prefix}{self.width}"

    @property
    def full_name(self) -> str:
        """Path of the full tile at this place."""
        parts = [f"{self.index % 1000:03d}"]
        rest = self.index // 1000
        while rest:
            parts.append(f"x{rest % 1000:03d}")
            rest //= 1000
        return "/".join([_PREFIX, _ENTRIES if self.level is None else str(self.level), *reversed(parts)])

    @property
    def partial_prefix(self) -> str:
        """What the paths of all partial tiles at this place begin with."""
        return f"{self.full_name}.p/"

    @classmethod
    def parse(cls, name: str) -> "Tile":
        """Read a path. One tile has one spelling. Raises MalformedTile."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise MalformedTile("not the path of a tile")
        level = None if found[1] == _ENTRIES else int(found[1])
        index = int(found[2].replace("x", "").replace("/", ""))
        tile = cls(level, index, TILE_WIDTH if found[3] is None else int(found[3]))
        # The comparison refuses superfluous leading elements, x000/001, and 256.p, which would be a full tile.
        if (level is not None and level > LEVEL_MAX) or tile.width > TILE_WIDTH or tile.name != name:
            raise MalformedTile("not the path of a tile")
        return tile

    def subtrees(self) -> list[Subtree]:
        """Perfect subtrees whose hashes the tile holds, left to right. Not for an entry bundle."""
        assert self.level is not None
        first = self.index * TILE_WIDTH
        return [Subtree(TILE_HEIGHT * self.level, first + position) for position in range(self.width)]


def hashes_at(level: int, size: int) -> int:
    """How many hashes level `level` of tiles has in a tree of `size` leaves."""
    return size >> (TILE_HEIGHT * level)


def levels_of(size: int) -> int:
    """How many levels of tiles a tree of `size` leaves has; 0 for the empty one."""
    return (size.bit_length() + TILE_HEIGHT - 1) // TILE_HEIGHT


def tile_at(level: int | None, index: int, size: int) -> Tile:
    """Tile at a place as it is in a tree of `size` leaves. Raises ValueError when the tree has none there."""
    width = min(hashes_at(level or 0, size) - index * TILE_WIDTH, TILE_WIDTH)
    if index < 0 or width < 1:
        raise ValueError("the tree has no tile there")
    return Tile(level, index, width)


def tiles_of(size: int, since: int = 0) -> Iterator[Tile]:
    """Tiles and bundles of a tree of `size` leaves that its prefix of `since` leaves has not: what to write when a log grows."""
    for level in (None, *range(levels_of(size))):
        before, now = hashes_at(level or 0, since), hashes_at(level or 0, size)
        if now > before:
            for index in range(before // TILE_WIDTH, (now - 1) // TILE_WIDTH + 1):
                yield tile_at(level, index, size)


def split_tile(content: bytes, width: int) -> list[bytes]:
    """Hashes of a tile. Raises MalformedTile unless there are `width`."""
    if len(content) != width * HASH_BYTES:
        raise MalformedTile(f"a tile of {width} hashes has {width * HASH_BYTES} bytes, not {len(content)}")
    return [content[start : start + HASH_BYTES] for start in range(0, len(content), HASH_BYTES)]


def join_bundle(entries: Sequence[bytes]) -> bytes:
    """Entry bundle of up to 256 leaves. Raises MalformedTile for a leaf that its length prefix cannot describe."""
    assert len(entries) <= TILE_WIDTH
    if any(len(entry) > ENTRY_MAX_BYTES for entry in entries):
        raise MalformedTile(f"a leaf in an entry bundle has at most {ENTRY_MAX_BYTES} bytes")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def split_bundle(content: bytes, width: int) -> list[bytes]:
    """Leaves of an entry bundle. Raises MalformedTile unless there are exactly `width`."""
    entries = []
    position = 0
    for _ in range(width):
        start = position + 2
        position = start + int.from_bytes(content[position:start], "big")
        if start > len(content) or position > len(content):
            raise MalformedTile(f"the entry bundle ends before its {width} leaves do")
        entries.append(content[start:position])
    if position != len(content):
        raise MalformedTile(f"the entry bundle goes on after its {width} leaves")
    return entries
