"""Publishes one log as tiles (c2sp.org/tlog-tiles): follows the heads that may be shown, never runs ahead of them.

Rule
1. What was published is what the sink says: its checkpoint. The stored tree must contain it, else publishing stops.
2. Full tiles and bundles first, each proven to be in the tree of the head that is to be published before it is written.
3. Then the partial tiles and the partial bundle at the edge. Partial ones of places that have become full are removed now, which
   the specification allows once the full tile is there; who holds the older checkpoint takes the full tile instead.
4. The checkpoint last, when everything under it is durable, and only over the one that this publisher has seen.

A crash anywhere leaves the older checkpoint with its tiles, and files that the next run writes again with the same bytes.
Whatever fails, the state in memory is dropped and the next try starts at 1. A TileConflict (a published file differs, or the
store no longer contains what is published) is for people to look at: publishing.py stops there.

Knows: the order of writes. Does not know: how leaves came, what they say, how a sink keeps files. Tiles are never the source of
truth: an empty sink is filled again from the store. Memory: one step's files (4 MiB, or one bundle), and 256 hashes a level.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from lionrock.audit.failures import StoreFailed, TileConflict
from lionrock.audit.store import LogId, LogStore, StoredLeaf
from lionrock.audit.tenant_log import Head
from lionrock.audit.tile_sinks import TileSink, check_name
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.merkle import Frontier, InvalidProof, inclusion_proof, leaf_hash, root_at, subtrees_of, verify_inclusion
from lionrock.tlog.note import MalformedNote
from lionrock.tlog.tiles import (
    CHECKPOINT_NAME,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    hashes_at,
    join_bundle,
    levels_of,
    tiles_of,
)

_PAGE_BYTES = 1024 * 1024
_AT_ONCE = 16
"""Bundles in a step, unless _HELD_BYTES are reached before: they share the fsyncs of their directories."""
_HELD_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PublishedLog:
    """A log to publish. `head` returns the newest head whose checkpoint the world may have."""

    origin: str
    log_id: LogId
    head: Callable[[], Head]


@dataclass(slots=True)
class _Progress:
    """Where publishing stands. Files below `size` are written, those below `published` have their checkpoint."""

    published: int
    checkpoint: bytes | None
    size: int
    frontier: Frontier
    tails: list[list[bytes]]
    """Hashes of the partial tile of each level."""
    entries: list[bytes]
    """Leaves of the partial bundle."""
    target: Head | None = None
    resumed: bool = True
    """Whether an earlier run may have left partial tiles that nobody remembers."""


class LogPublisher:
    """Publishes one log in small steps. Belongs to one thread at a time."""

    def __init__(self, log: PublishedLog, store: LogStore, sink: TileSink) -> None:
        """Publish `log` below its origin. Raises ValueError for an origin that is no path."""
        check_name(log.origin)
        self._log = log
        self._store = store
        self._sink = sink
        self._progress: _Progress | None = None

    @property
    def origin(self) -> str:
        """Which log."""
        return self._log.origin

    @property
    def behind(self) -> int | None:
        """Leaves that are under the head and not under the published checkpoint; None before the sink was read."""
        return None if self._progress is None else max(0, self._log.head().size - self._progress.published)

    def step(self) -> bool:
        """Publish the next full bundles or, when all are, the edge and the checkpoint.

        Returns whether the head that it has set out for is still to be reached. Raises TileConflict, SinkFailed, StoreFailed; the
        next step begins anew from what the sink holds.
        """
        progress, self._progress = self._progress, None
        if progress is None:
            progress = self._open()
        if progress.target is None:
            progress.target = self._log.head()
        target = progress.target
        if target.size < progress.published:
            # The log is not shorter (_open has looked), but what the world may have of it is, for now: witnesses have changed, say.
            progress.target = None
            self._progress = progress
            return False
        if progress.size // TILE_WIDTH < target.size // TILE_WIDTH:
            self._publish_full(progress, target)
        else:
            self._publish_edge(progress, target)
        self._progress = progress
        return progress.target is not None

    def _open(self) -> _Progress:
        """Read where publishing stands. Raises TileConflict, SinkFailed, StoreFailed."""
        checkpoint = self._sink.read(self._path(CHECKPOINT_NAME))
        size = 0
        read = partial(self._store.subtree_hashes, self._log.log_id)
        if checkpoint is not None:
            published = _parse(checkpoint, self.origin)
            size = published.size
            stored = self._store.find_log(self.origin)
            now = 0 if stored is None else stored.size
            if size > now:
                raise TileConflict(
                    f"{self.origin} is published with {size} leaves, and the log has {now}: the store was rolled back, or these "
                    "are the tiles of another log"
                )
            if root_at(size, read) != published.root:
                raise TileConflict(f"the published checkpoint of {self.origin} is of another history than the store's")
        tails = [
            list(read(Tile(level, hashes_at(level, size) // TILE_WIDTH, hashes_at(level, size) % TILE_WIDTH).subtrees()))
            for level in range(levels_of(size))
        ]
        entries = [leaf.data for leaf in self._leaves(size - size % TILE_WIDTH, size)]
        return _Progress(size, checkpoint, size, Frontier(size, read(subtrees_of(0, size))), tails, entries)

    def _publish_full(self, progress: _Progress, target: Head) -> None:
        """Write the next full bundles and the tiles that they fill."""
        files: dict[Tile, bytes] = {}
        held = 0
        for index in range(progress.size // TILE_WIDTH, min(target.size // TILE_WIDTH, progress.size // TILE_WIDTH + _AT_ONCE)):
            filled, completed = self._extend(progress, (index + 1) * TILE_WIDTH)
            # The path from the bundle's last leaf, without its first eight steps, is the path from the bundle's own subtree.
            path = inclusion_proof(progress.size - 1, target.size, partial(self._store.subtree_hashes, self._log.log_id))
            bundles = ((target.size - 1) >> TILE_HEIGHT) + 1
            try:
                verify_inclusion(index, bundles, completed[TILE_HEIGHT], path[TILE_HEIGHT:], target.root)
            except InvalidProof as error:
                raise StoreFailed(f"256 leaves of {self.origin} as stored are not in the tree that was signed: {error}") from error
            files |= filled
            held += sum(map(len, filled.values()))
            if held > _HELD_BYTES:
                break
        self._sink.add({self._path(tile.name): content for tile, content in files.items()})
        for tile in files:
            if progress.resumed or tile.index == hashes_at(tile.level or 0, progress.published) // TILE_WIDTH:
                self._sink.remove_below(self._path(tile.partial_prefix))

    def _publish_edge(self, progress: _Progress, target: Head) -> None:
        """Write the partial tiles, then move the checkpoint."""
        checkpoint = target.checkpoint.encode()
        if checkpoint == progress.checkpoint:
            progress.target = None
            return
        filled, _ = self._extend(progress, target.size)
        assert not filled
        if progress.frontier.root() != target.root:
            raise StoreFailed(f"the leaves of {self.origin} as stored lead to another root than was signed: restore the store")
        partials = {
            self._path(tile.name): join_bundle(progress.entries) if tile.level is None else b"".join(progress.tails[tile.level])
            for tile in tiles_of(target.size, progress.published)
            if not tile.full
        }
        self._sink.add(partials)
        self._sink.replace(self._path(CHECKPOINT_NAME), checkpoint, progress.checkpoint)
        progress.published, progress.checkpoint, progress.target = target.size, checkpoint, None
        progress.resumed = False

    def _extend(self, progress: _Progress, stop: int) -> tuple[dict[Tile, bytes], list[bytes]]:
        """Go on to `stop` leaves. Returns the full tiles and bundles on the way, and what the last leaf completed."""
        filled: dict[Tile, bytes] = {}
        completed: list[bytes] = []
        for leaf in self._leaves(progress.size, stop):
            completed = progress.frontier.append(leaf_hash(leaf.data))
            if completed != list(leaf.completed):
                raise StoreFailed(f"leaf {leaf.index} of {self.origin} as stored is not what was hashed: restore the store")
            progress.entries.append(leaf.data)
            if len(progress.entries) == TILE_WIDTH:
                filled[Tile(None, leaf.index // TILE_WIDTH, TILE_WIDTH)] = join_bundle(progress.entries)
                progress.entries.clear()
            for level, hash_ in enumerate(completed[::TILE_HEIGHT]):
                if level == len(progress.tails):
                    progress.tails.append([])
                tail = progress.tails[level]
                tail.append(hash_)
                if len(tail) == TILE_WIDTH:
                    filled[Tile(level, leaf.index >> (TILE_HEIGHT * (level + 1)), TILE_WIDTH)] = b"".join(tail)
                    tail.clear()
        progress.size = stop
        return filled, completed

    def _leaves(self, start: int, stop: int) -> Iterator[StoredLeaf]:
        while start < stop:
            page = self._store.leaves(self._log.log_id, start, stop, _PAGE_BYTES)
            if not page or page[0].index != start:
                raise StoreFailed(f"leaf {start} of {self.origin} is not in the store: restore the store")
            for leaf in page:
                yield leaf
                start += 1

    def _path(self, name: str) -> str:
        return f"{self.origin}/{name}"


def _parse(note: bytes, origin: str) -> Checkpoint:
    """Read the published checkpoint; whether it is right the stored tree says. Raises TileConflict."""
    try:
        checkpoint = Checkpoint.parse(note.decode().rpartition("\n\n")[0] + "\n")
    except (MalformedNote, UnicodeDecodeError):
        raise TileConflict(f"the published checkpoint of {origin} is not one") from None
    if checkpoint.origin != origin:
        raise TileConflict(f"the published checkpoint of {origin} is of another log")
    return checkpoint
