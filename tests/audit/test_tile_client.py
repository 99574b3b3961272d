"""The tile client takes what a signed checkpoint commits to, and finds every other byte."""

from __future__ import annotations

import gzip
import http.server
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import rfc6962_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_harness import ORIGIN, GrowingLog, files_of, signer

from lionrock.audit.publisher import LogPublisher
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tile_sinks import DirectorySink
from lionrock.audit.tile_sources import DirectorySource, HttpSource
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.merkle import Subtree, consistency_proof, inclusion_proof, leaf_hash, verify_consistency, verify_inclusion
from lionrock.tlog.note import UntrustedNote, sign_note
from lionrock.tlog.tile_client import CorruptLog, SourceFailed, TileMissing, TreeReader, open_checkpoint, read_checkpoint
from lionrock.tlog.tiles import ENTRY_MAX_BYTES, Tile, join_bundle

LEAVES = [f"leaf {index}".encode() for index in range(1200)]


class Files:
    """A log in memory; `read` also notes what was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []

    def read(self, name: str, max_bytes: int) -> bytes | None:
        self.asked.append(name)
        content = self.files.get(name)
        if content is not None and len(content) > max_bytes:
            raise CorruptLog(f"{name} is too long")
        return content


def reader(size: int, files: dict[str, bytes] | None = None) -> tuple[TreeReader, Files]:
    source = Files(files_of(size, LEAVES) if files is None else files)
    return TreeReader(source, Checkpoint(ORIGIN, size, reference.tree_hash(LEAVES[:size]))), source


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1200), st.data())
def test_proofs_made_from_tiles_verify(size: int, data: st.DataObject) -> None:
    tree, _ = reader(size)
    index = data.draw(st.integers(0, size - 1))
    root = reference.tree_hash(LEAVES[:size])
    verify_inclusion(index, size, leaf_hash(LEAVES[index]), inclusion_proof(index, size, tree.subtree_hashes), root)
    first = data.draw(st.integers(1, size))
    proof = consistency_proof(first, size, tree.subtree_hashes)
    earlier = tree.root_at(first)
    assert earlier == reference.tree_hash(LEAVES[:first])
    verify_consistency(first, size, earlier, root, proof)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 700, 1200])
def test_every_leaf_is_read_in_order(size: int) -> None:
    tree, _ = reader(size)
    read = [leaf for _, leaves in tree.entries(0, size) for leaf in leaves]
    assert read == LEAVES[:size]
    if size > 300:
        pages = list(tree.entries(200, 300))
        assert [first for first, _ in pages] == [200, 256]
        assert [leaf for _, leaves in pages for leaf in leaves] == LEAVES[200:300]


def test_the_full_tile_is_taken_where_the_partial_one_was_removed() -> None:
    later = files_of(300, LEAVES) | files_of(1200, LEAVES)
    for name in ("tile/0/001.p/44", "tile/entries/001.p/44"):
        del later[name]
    tree, _ = reader(300, later)
    assert [leaf for _, leaves in tree.entries(0, 300) for leaf in leaves] == LEAVES[:300]
    assert tree.root_at(299) == reference.tree_hash(LEAVES[:299])


def test_partial_tiles_that_the_checkpoint_does_not_require_are_not_asked_for() -> None:
    tree, source = reader(1200)
    list(tree.entries(0, 1200))
    tree.verify_tiles()
    assert set(source.asked) <= set(files_of(1200, LEAVES))


def use_all(tree: TreeReader, size: int) -> None:
    tree.verify_tiles()
    for _ in tree.entries(0, size):
        pass


@pytest.mark.parametrize("name", sorted(files_of(1200, LEAVES)))
def test_a_change_of_any_file_is_found(name: str) -> None:
    chance = random.Random(name)
    for _ in range(12):
        files = files_of(1200, LEAVES)
        content = bytearray(files[name])
        match chance.randrange(5):
            case 0:
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            case 1:
                del content[-chance.randrange(1, len(content) + 1) :]
            case 2:
                content += bytes([chance.randrange(256)])
            case 3:
                content.clear()
            case 4:
                other = chance.choice([each for each in sorted(files) if each != name])
                content[:] = files[other]
        files[name] = bytes(content)
        tree, _ = reader(1200, files)
        with pytest.raises(CorruptLog):
            use_all(tree, 1200)


@pytest.mark.parametrize("name", sorted(files_of(1200, LEAVES)))
def test_a_missing_file_is_named(name: str) -> None:
    files = files_of(1200, LEAVES)
    del files[name]
    tree, _ = reader(1200, files)
    with pytest.raises(TileMissing, match=name):
        use_all(tree, 1200)


def test_a_corrupt_neighbour_of_the_hash_that_is_asked_for_is_found() -> None:
    """The check that golang.org/x/mod/sumdb/tlog.TileHashReader leaves out."""
    files = files_of(1200, LEAVES)
    tile = bytearray(files["tile/0/001"])
    tile[200 * 32] ^= 1
    files["tile/0/001"] = bytes(tile)
    tree, _ = reader(1200, files)
    with pytest.raises(CorruptLog, match="tile/0/001"):
        tree.subtree_hashes([Subtree(0, 256)])


def test_two_corrupt_tiles_do_not_cover_for_each_other() -> None:
    """A leaf and every tile above it changed consistently: only the signed root tells."""
    other = [*LEAVES[:600], b"forged", *LEAVES[601:]]
    tree, _ = reader(1200, files_of(1200, other))
    with pytest.raises(CorruptLog):
        use_all(tree, 1200)


def test_what_lies_beyond_the_tree_is_refused() -> None:
    tree, _ = reader(300)
    for wrong in (Subtree(0, 300), Subtree(8, 1), Subtree(9, 0), Subtree(0, -1), Subtree(-1, 0)):
        with pytest.raises(ValueError, match="no such subtree"):
            tree.subtree_hashes([wrong])
    with pytest.raises(ValueError, match="that many"):
        tree.root_at(301)


def test_a_checkpoint_needs_a_signature_of_the_log_itself() -> None:
    text = Checkpoint(ORIGIN, 3, b"\x01" * 32).text()
    log, witness, other = signer(), signer("witness.example/w1", 2), signer("audit.example.hk/audit/broker", 3)
    opened = open_checkpoint(sign_note(text, log, witness), ORIGIN, [log.verifier_key], [witness.verifier_key])
    assert opened.checkpoint == Checkpoint(ORIGIN, 3, b"\x01" * 32)
    with pytest.raises(UntrustedNote):
        open_checkpoint(sign_note(text, witness), ORIGIN, [log.verifier_key], [witness.verifier_key])
    with pytest.raises(UntrustedNote):
        open_checkpoint(sign_note(text, log), ORIGIN, [other.verifier_key])
    with pytest.raises(UntrustedNote, match="another log"):
        open_checkpoint(sign_note(text, log), "audit.example.hk/audit/broker", [log.verifier_key])


@contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/logs/bank"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def respond(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def test_a_log_is_read_over_http_compressed_or_not() -> None:
    files = files_of(1200, LEAVES)

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        content = files.get(handler.path.removeprefix("/logs/bank/"))
        if content is None:
            respond(handler, 404, b"no")
        elif "entries" in handler.path:
            respond(handler, 200, gzip.compress(content), Content_Encoding="gzip")
        else:
            respond(handler, 200, content)

    with serving(answer) as prefix:
        source = HttpSource(prefix)
        tree = TreeReader(source, Checkpoint(ORIGIN, 1200, reference.tree_hash(LEAVES)))
        use_all(tree, 1200)
        assert source.read("tile/5/000", 100) is None


def test_a_file_that_is_too_long_is_refused_also_compressed_and_a_redirect_is_not_followed() -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("bomb"):
            respond(handler, 200, gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")
        elif handler.path.endswith("long"):
            respond(handler, 200, bytes(101))
        elif handler.path.endswith("moved"):
            respond(handler, 302, b"", Location="/logs/bank/long")
        else:
            respond(handler, 500, b"broken")

    with serving(answer) as prefix:
        source = HttpSource(prefix)
        for name in ("bomb", "long"):
            with pytest.raises(CorruptLog, match="more than 100 bytes"):
                source.read(name, 100)
        for name in ("moved", "broken"):
            with pytest.raises(SourceFailed, match="status"):
                source.read(name, 100)
    with pytest.raises(SourceFailed):
        source.read("checkpoint", 100)


def test_a_published_directory_is_read_back(tmp_path: Path) -> None:
    with closing(SqliteLogStore(tmp_path / "audit.db")) as store, closing(DirectorySink(tmp_path / "tiles")) as sink:
        log = GrowingLog(store)
        log.grow(600)
        publisher = LogPublisher(log.published(), store, sink)
        while publisher.step():
            pass
        source = DirectorySource(tmp_path / "tiles" / ORIGIN)
        signed = open_checkpoint(read_checkpoint(source), ORIGIN, [log.key])
        assert signed.checkpoint.size == 600
        use_all(TreeReader(source, signed.checkpoint), 600)
        (tmp_path / "tiles" / ORIGIN / "checkpoint").unlink()
        with pytest.raises(TileMissing):
            read_checkpoint(source)
        (tmp_path / "tiles" / ORIGIN / "checkpoint").write_bytes(b"\xff")
        with pytest.raises(MalformedNote):
            read_checkpoint(source)
        (tmp_path / "tiles" / ORIGIN / "tile/0/000").chmod(0o600)
        (tmp_path / "tiles" / ORIGIN / "tile/0/000").write_bytes(bytes(9000))
        with pytest.raises(CorruptLog, match="more than"):
            use_all(TreeReader(source, signed.checkpoint), 600)


def test_leaves_of_the_greatest_length_are_read() -> None:
    leaves = [bytes([position]) * ENTRY_MAX_BYTES for position in range(3)]
    files = {Tile(None, 0, 3).name: join_bundle(leaves), Tile(0, 0, 3).name: b"".join(map(leaf_hash, leaves))}
    tree = TreeReader(Files(files), Checkpoint(ORIGIN, 3, reference.tree_hash(leaves)))
    assert list(tree.entries(0, 3)) == [(0, leaves)]
