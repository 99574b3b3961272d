"""Names and contents of tiles against c2sp.org/tlog-tiles and against a reference that cuts the whole tree."""

from __future__ import annotations

import contextlib

import pytest
import rfc6962_reference as reference
from hypothesis import given
from hypothesis import strategies as st

from lionrock.tlog.merkle import Frontier, Subtree, leaf_hash
from lionrock.tlog.tiles import (
    BUNDLE_MAX_BYTES,
    ENTRY_MAX_BYTES,
    TILE_WIDTH,
    MalformedTile,
    Tile,
    join_bundle,
    levels_of,
    split_bundle,
    split_tile,
    tile_at,
    tiles_of,
)


def test_the_examples_of_the_specification() -> None:
    assert Tile(0, 1234067, 256).name == "tile/0/x001/x234/067"
    assert Tile(None, 1234067, 256).name == "tile/entries/x001/x234/067"
    assert Tile(0, 273, 112).name == "tile/0/273.p/112"
    at_70000 = list(tiles_of(70_000))
    for level in (None, 0):
        assert [tile.width for tile in at_70000 if tile.level == level] == [256] * 273 + [112]
    assert [tile.width for tile in at_70000 if tile.level == 1] == [256, 17]
    assert [tile.width for tile in at_70000 if tile.level == 2] == [1]
    assert {tile.level for tile in at_70000} == {None, 0, 1, 2}
    assert [tile.name for tile in tiles_of(256)] == ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]
    assert list(tiles_of(0)) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "checkpoint",
        "tile/0",
        "tile/0/0",
        "tile/0/0000",
        "tile/00/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/0/x000/001",
        "tile/0/001/002",
        "tile/0/x001/x02/003",
        "tile/0/000.p/0",
        "tile/0/000.p/00",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/999",
        "tile/0/000.p/",
        "tile/entries/000.p/1/",
        "/tile/0/000",
        "tile/0/../0/000",
        "tile/0/000\n",
        "tile/0/٠٠٠",
        "tile/data/000",
        "tile/0/" + "x999/" * 7 + "999",
    ],
)
def test_a_path_that_the_specification_does_not_spell_so_is_no_tile(name: str) -> None:
    with pytest.raises(MalformedTile):
        Tile.parse(name)


@given(st.none() | st.integers(0, 63), st.integers(0, 10**12), st.integers(1, 256))
def test_a_path_reads_back_as_its_tile(level: int | None, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert Tile.parse(tile.name) == tile


@given(st.text(max_size=40) | st.from_regex(r"tile/[0-9a-z]{1,3}/(x[0-9]{3}/)*[0-9]{3}(\.p/[0-9]{1,3})?", fullmatch=True))
def test_a_path_has_one_spelling(name: str) -> None:
    try:
        tile = Tile.parse(name)
    except MalformedTile:
        return
    assert tile.name == name


LEAVES = [f"leaf {index}".encode() for index in range(1500)]


def naive_tiles(size: int) -> dict[str, bytes]:
    """Every file of a tree, cut from all leaves by the words of the specification."""
    files = {}
    level, hashes = 0, [reference.tree_hash([leaf]) for leaf in LEAVES[:size]]
    while hashes:
        for first in range(0, len(hashes), 256):
            part = hashes[first : first + 256]
            suffix = "" if len(part) == 256 else f".p/{len(part)}"
            files[f"tile/{level}/{first // 256:03d}{suffix}"] = b"".join(part)
            if level == 0:
                entries = LEAVES[first : min(first + 256, size)]
                files[f"tile/entries/{first // 256:03d}{suffix}"] = b"".join(bytes([0, len(e)]) + e for e in entries)
        level += 1
        span = 256**level
        hashes = [reference.tree_hash(LEAVES[start : start + span]) for start in range(0, size - span + 1, span)]
    return files


def stored_hashes(size: int) -> dict[Subtree, bytes]:
    frontier = Frontier(0, [])
    hashes = {}
    for index in range(size):
        for level, completed in enumerate(frontier.append(leaf_hash(LEAVES[index]))):
            hashes[Subtree(level, index >> level)] = completed
    return hashes


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 513, 1024, 1500])
def test_tiles_of_a_tree_are_those_that_the_naive_reference_cuts(size: int) -> None:
    hashes = stored_hashes(size)
    files = {}
    for tile in tiles_of(size):
        if tile.level is None:
            content = join_bundle(LEAVES[tile.index * 256 :][: tile.width])
        else:
            content = b"".join(hashes[subtree] for subtree in tile.subtrees())
            assert split_tile(content, tile.width) == [hashes[subtree] for subtree in tile.subtrees()]
        files[tile.name] = content
    assert files == naive_tiles(size)


@given(st.integers(0, 2**40), st.integers(0, 600))
def test_growth_is_what_the_later_tree_has_and_the_earlier_has_not(since: int, growth: int) -> None:
    grown = list(tiles_of(since + growth, since))
    assert len(set(grown)) == len(grown)
    for level in (None, *range(levels_of(since + growth))):
        span = 1 if level is None else 256**level
        new = range(since // span, (since + growth) // span)
        covered = {
            position for tile in grown if tile.level == level for position in range(tile.index * 256, tile.index * 256 + tile.width)
        }
        assert covered >= set(new)
        places = [tile.index for tile in grown if tile.level == level]
        assert places == sorted({position // 256 for position in new})
        assert all(tile == tile_at(level, tile.index, since + growth) for tile in grown if tile.level == level)


@given(st.integers(0, 1500), st.integers(0, 1500))
def test_steps_of_growth_leave_every_tile_of_the_last_tree(first: int, second: int) -> None:
    first, second = min(first, second), max(first, second)
    assert set(tiles_of(second)) <= {*tiles_of(first), *tiles_of(second, first)}


def test_a_tree_has_no_tile_beyond_its_edge() -> None:
    for level, index, size in ((0, 0, 0), (0, 1, 256), (1, 0, 255), (None, 2, 512), (0, -1, 9)):
        with pytest.raises(ValueError, match="no tile"):
            tile_at(level, index, size)


@given(st.lists(st.binary(max_size=70), max_size=TILE_WIDTH))
def test_a_bundle_reads_back_as_its_leaves(entries: list[bytes]) -> None:
    assert split_bundle(join_bundle(entries), len(entries)) == entries


@given(st.binary(max_size=2000), st.integers(0, 256))
def test_hostile_bundles_and_tiles_are_refused_or_read_whole(content: bytes, width: int) -> None:
    with contextlib.suppress(MalformedTile):
        assert join_bundle(split_bundle(content, width)) == content
    with contextlib.suppress(MalformedTile):
        assert b"".join(split_tile(content, width)) == content


def test_the_longest_leaf_fits_and_one_byte_more_is_refused() -> None:
    longest = b"\x00" * ENTRY_MAX_BYTES
    assert split_bundle(join_bundle([longest]), 1) == [longest]
    assert len(join_bundle([longest] * TILE_WIDTH)) == BUNDLE_MAX_BYTES
    with pytest.raises(MalformedTile):
        join_bundle([longest + b"\x00"])
