"""What tamper.py edits: a store (its bytes, its rows), the second place, keys, receipts, tiles; with an older version of each."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit_harness import PLATFORM, TENANTS, Place, copy_files, intent, outcome
from rfc6962_reference import tree_hash

from lionrock.audit.failures import AuditError, KeyUnusable, StoreFailed
from lionrock.audit.keys import KeyDirectory
from lionrock.audit.log import Limits, open_logs
from lionrock.audit.platform_log import KEY_NAME, open_platform_log
from lionrock.audit.publisher import LogPublisher, PublishedLog
from lionrock.audit.signed_checkpoints import SignedCheckpoints, read_batches
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.store.sqlite_reader import SqliteLogReader
from lionrock.audit.store_check import check_store
from lionrock.audit.tenant_log import Head
from lionrock.audit.tile_sinks import DirectorySink
from lionrock.audit.tile_sources import DirectorySource
from lionrock.audit.verify import VerificationFailed, verify_receipt
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.encoding import MalformedNote
from lionrock.tlog.keys import Ed25519Signer, SignatureType, UntrustedNote, VerifierKey, signer_from_seed
from lionrock.tlog.merkle import Frontier, leaf_hash
from lionrock.tlog.note import sign_note
from lionrock.tlog.tile_client import CorruptLog, SourceFailed, TreeReader, open_checkpoint, read_checkpoint
from lionrock.tlog.tiles import tiles_of

UNREADABLE = "unreadable"
_LEAF_COLUMNS = "leaf_index, event_id, recorded_at_us, subtree_hashes, data"


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt, and what its holder knows of his answer."""

    text: str
    tenant: str
    event_id: str
    leaf_index: int


@dataclass(slots=True)
class Pristine:
    """An audit service's state before anybody touched it, and as it was some time ago. Files by name."""

    store: dict[str, bytes] = field(default_factory=dict)
    store_with_log: dict[str, bytes] = field(default_factory=dict)
    """The same as a crash would leave it: with its write-ahead log."""
    older_store: dict[str, bytes] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    older_keys: dict[str, bytes] = field(default_factory=dict)
    tiles: dict[str, bytes] = field(default_factory=dict)
    older_tiles: dict[str, bytes] = field(default_factory=dict)
    receipts: list[Receipt] = field(default_factory=list)
    verifier_keys: dict[str, VerifierKey] = field(default_factory=dict)
    """By origin; what the auditor got from where he trusts."""
    trusted: list[str] = field(default_factory=list)
    """The last checkpoint of each log, as a witness or a holder of a receipt has it."""


async def make_pristine(directory: Path, *, leaves: int) -> Pristine:
    """Run real logs of two tenants and keep their files."""
    made = Pristine()
    place = Place(directory)
    chance = random.Random(1)
    async with place.open() as logs:
        for number in range(leaves // 2):
            tenant = TENANTS[number % 2]
            asked = intent(tenant, prompt=b"prompt" if number % 3 else b"")
            told = await logs.append(asked, want_receipt=number % 5 == 0)
            if number % 17 != 0:
                answered = outcome(asked, told.leaf_index if number % 4 else None, answer=b"answer")
                closing_told = await logs.append(answered, want_receipt=True)
                assert closing_told.proof is not None
                made.receipts.append(Receipt(closing_told.proof, tenant, answered.event_id, closing_told.leaf_index))
            if number == leaves // 4:
                copy_files(place.store_file.parent, directory / "older")
                made.older_store = _fold(directory / "older")
                made.older_keys = _files(place.key_dir)
                made.older_tiles = _publish(directory / "older" / "audit.db", directory / "older-tiles")
        copy_files(place.store_file.parent, directory / "live")
        made.store_with_log = _files(directory / "live")
        assert "audit.db-wal" in made.store_with_log
    made.store = _fold(place.store_file.parent)
    with closing(SqliteLogReader.open(place.store_file)) as reader:
        for log in reader.logs():
            made.verifier_keys[log.origin] = VerifierKey.parse(log.verifier_key)
            made.trusted.append(log.checkpoint)
    made.keys = _files(place.key_dir)
    made.tiles = _publish(place.store_file, directory / "tiles")
    made.receipts = chance.sample(made.receipts, min(20, len(made.receipts)))
    return made


def targets_of(pristine: Pristine, scratch: Path) -> list[tuple[Any, float]]:
    """Every target and its share of the edits."""
    return [
        (StoreBytes("store: bytes of the file", pristine, scratch / "store", pristine.store), 0.25),
        (StoreBytes("store: bytes of file and write-ahead log", pristine, scratch / "live", pristine.store_with_log), 0.15),
        (StoreRows(pristine, scratch / "rows"), 0.25),
        (SignedFile(pristine, scratch / "signed"), 0.1),
        (Keys(pristine, scratch / "keys"), 0.05),
        (Receipts(pristine), 0.1),
        (Tiles(pristine, scratch / "tiles"), 0.1),
    ]


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.endswith((".lock", "-shm"))
    }


def _fold(directory: Path) -> dict[str, bytes]:
    """Files of a store that was closed as it should be."""
    SqliteLogStore(directory / "audit.db").close()
    return {"audit.db": (directory / "audit.db").read_bytes()}


def _put(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)


def _publish(store_file: Path, sink_root: Path) -> dict[str, bytes]:
    with closing(SqliteLogStore(store_file)) as store, closing(DirectorySink(sink_root)) as sink:
        for log in store.logs():
            head = Head(log.size, log.root, log.checkpoint)
            publisher = LogPublisher(PublishedLog(log.origin, log.log_id, lambda head=head: head), store, sink)  # type: ignore[misc]
            while publisher.step():
                pass
    return _files(sink_root)


def edit_bytes(content: bytes, chance: random.Random, older: bytes) -> tuple[bytes, str]:
    """Edit bytes once, so that they differ. `older`: an earlier version of them."""
    for _ in range(100):
        edited, what = _edit_bytes(bytearray(content), chance, older)
        if edited != content:
            return edited, what
    return content + b"\x00", "a byte more at the end"


def _edit_bytes(content: bytearray, chance: random.Random, older: bytes) -> tuple[bytes, str]:
    size = len(content)
    at = chance.randrange(size) if size else 0
    length = min(chance.choice((1, 2, 8, 32, 100, 512, 4096)), max(1, size - at))
    other = chance.randrange(max(1, size - length))
    match chance.randrange(10):
        case 0 | 1 | 2 if size:
            content[at] ^= 1 << chance.randrange(8)
            return bytes(content), f"bit of byte {at}"
        case 3 if size:
            content[at] = chance.randrange(256)
            return bytes(content), f"byte {at}"
        case 4:
            del content[at : at + length]
            return bytes(content), f"{length} bytes from {at} deleted"
        case 5:
            content[at:at] = chance.randbytes(length)
            return bytes(content), f"{length} bytes put in at {at}"
        case 6:
            content[at : at + length], content[other : other + length] = (
                content[other : other + length],
                content[at : at + length],
            )
            return bytes(content), f"{length} bytes swapped between {at} and {other}"
        case 7:
            return bytes(content[:at]), f"cut off at {at}"
        case 8:
            if chance.random() < 0.2:
                return older, "an older version"
            content[at : at + length] = older[at : at + length]
            return bytes(content), f"{length} bytes from {at} as they were in an older version"
        case _:
            content[at : at + length] = bytes(length)
            return bytes(content), f"{length} zeros from {at}"


class _Files:
    """Files in a directory that an edit changes."""

    def __init__(self, directory: Path, files: dict[str, bytes]) -> None:
        self.directory = directory
        self._files = files

    def restore(self) -> None:
        if self.directory.exists():
            shutil.rmtree(self.directory)
        for name, content in self._files.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_bytes(content)
            path.chmod(0o600)

    def edit_file(self, name: str, chance: random.Random, older: bytes) -> str:
        path = self.directory / name
        if chance.random() < 0.01:
            path.unlink()
            return f"{name}: gone"
        edited, what = edit_bytes(path.read_bytes(), chance, older)
        path.write_bytes(edited)
        return f"{name}: {what}"


class _Store(_Files):
    """A store that can be read and checked."""

    def __init__(self, name: str, pristine: Pristine, directory: Path, files: dict[str, bytes]) -> None:
        super().__init__(directory, files)
        self.name = name
        self.pristine = pristine
        self._second = _pairs(pristine.keys["signed-checkpoints.jsonl"])

    def meaning(self) -> object:
        """Logs, leaves and open intents, read by table and by each index, without any code of the product."""
        of_log = "LEFT JOIN logs USING (log_id)"  # how a log is numbered means nothing
        questions = [
            "SELECT origin, verifier_key, size, root, checkpoint FROM logs NOT INDEXED ORDER BY origin",
            "SELECT origin, size FROM logs INDEXED BY sqlite_autoindex_logs_1 ORDER BY origin",
            f"SELECT origin, {_LEAF_COLUMNS} FROM leaves NOT INDEXED {of_log} ORDER BY origin, leaf_index",
            f"SELECT origin, {_LEAF_COLUMNS} FROM leaves INDEXED BY sqlite_autoindex_leaves_1 {of_log} ORDER BY origin, leaf_index",
            f"SELECT origin, {_LEAF_COLUMNS} FROM leaves INDEXED BY sqlite_autoindex_leaves_2 {of_log} ORDER BY origin, event_id",
            f"SELECT origin, request_id, leaf_index FROM open_intents {of_log} ORDER BY 1, 2, 3",
        ]
        copy = self.directory / "copy.db"
        try:
            for suffix in ("", "-wal"):
                if (self.directory / f"audit.db{suffix}").exists():
                    shutil.copyfile(self.directory / f"audit.db{suffix}", f"{copy}{suffix}")
            with closing(sqlite3.connect(f"file:{copy}?mode=rw", uri=True)) as connection:
                return [connection.execute(question).fetchall() for question in questions]
        except (sqlite3.Error, OverflowError, UnicodeDecodeError):
            return UNREADABLE
        finally:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{copy}{suffix}").unlink(missing_ok=True)

    def start(self) -> dict[str, str]:
        """Open the logs as the service does, and prove a leaf. Whatever it raises but refusals is a crash."""
        place = Place(self.directory / "started")
        try:
            _put(place.store_file.parent, _files(self.directory))
            _put(place.key_dir, self.pristine.keys)
            with closing(SqliteLogStore(place.store_file)) as store, closing(SignedCheckpoints(place.signed_file)) as signed:
                limits = Limits(64, 64, 3600)
                keys = KeyDirectory(place.key_dir)
                logs = open_logs(store, keys, signed, TENANTS, platform=PLATFORM, region="HK", limits=limits)
                open_platform_log(PLATFORM, store, keys, signed)
                return dict(logs.read_only_reasons())
        except AuditError as refusal:
            return {"": str(refusal)}
        finally:
            shutil.rmtree(place.root, ignore_errors=True)

    def check(self) -> Sequence[str]:
        """Check as an auditor does; and see that a start refuses or serves, and never crashes."""
        self.start()
        return self.find()

    def find(self) -> Sequence[str]:
        """What the auditor's check finds."""
        try:
            reader = SqliteLogReader.open(self.directory / "audit.db")
        except StoreFailed as failure:
            return [str(failure)]
        with closing(reader):
            keys = list(self.pristine.verifier_keys.values())
            check = check_store(reader, keys, lambda: self._second, trusted=self.pristine.trusted)
        return [str(finding) for finding in check.findings]


class StoreBytes(_Store):
    """Bytes of the files of a store."""

    def edit(self, chance: random.Random) -> str:
        name = chance.choice(sorted(self._files))
        return self.edit_file(name, chance, self.pristine.older_store.get(name, b""))


class StoreRows(_Store):
    """Rows of a store, by somebody who writes SQL and computes hashes, but has no key."""

    def __init__(self, pristine: Pristine, directory: Path) -> None:
        super().__init__("store: rows by SQL", pristine, directory, pristine.store)
        self._edits: list[Callable[[sqlite3.Connection, random.Random], str]] = [
            self._alter_leaf,
            self._alter_field,
            self._alter_column,
            self._delete_leaf,
            self._forget_leaf,
            self._swap_leaves,
            self._append_leaf,
            self._move_leaf,
            self._alter_head,
            self._roll_back,
            self._exchange_logs,
            self._new_key,
            self._alter_intents,
            self._delete_log,
        ]

    def edit(self, chance: random.Random) -> str:
        with closing(sqlite3.connect(self.directory / "audit.db", isolation_level=None)) as connection:
            edit = chance.choice(self._edits)
            connection.execute("PRAGMA foreign_keys=OFF")
            connection.execute("BEGIN")
            what = edit(connection, chance)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return what

    def _leaf(self, connection: sqlite3.Connection, chance: random.Random) -> tuple[int, int, bytes, bytes]:
        rows = connection.execute("SELECT log_id, leaf_index, data, subtree_hashes FROM leaves ORDER BY 1, 2").fetchall()
        log_id, index, data, hashes = chance.choice(rows)
        return int(log_id), int(index), bytes(data), bytes(hashes)

    def _alter_leaf(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id, index, data, hashes = self._leaf(connection, chance)
        edited, what = edit_bytes(data, chance, b"{}")
        if chance.random() < 0.5:
            hashes = leaf_hash(edited) + hashes[32:]
        connection.execute(
            "UPDATE leaves SET data = ?, subtree_hashes = ? WHERE log_id = ? AND leaf_index = ?", (edited, hashes, log_id, index)
        )
        return f"leaf {index} of log {log_id}: {what}"

    def _alter_field(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id, index, data, _ = self._leaf(connection, chance)
        fields = json.loads(data)
        name = chance.choice(sorted(fields))
        if chance.random() < 0.3:
            del fields[name]
        else:
            fields[name] = "another value" if chance.random() < 0.5 else chance.randrange(10)
        edited = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        connection.execute("UPDATE leaves SET data = ? WHERE log_id = ? AND leaf_index = ?", (edited, log_id, index))
        self._rehash(connection, log_id)
        return f"field {name} of leaf {index} of log {log_id}, all hashes computed anew"

    def _alter_column(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id, index, _, hashes = self._leaf(connection, chance)
        column, value = chance.choice(
            [
                ("event_id", "another"),
                ("recorded_at_us", chance.randrange(2**50)),
                ("subtree_hashes", edit_bytes(hashes, chance, b"")[0]),
                ("leaf_index", chance.randrange(10**6, 10**7)),
                ("leaf_index", -1),
            ]
        )
        connection.execute(f"UPDATE leaves SET {column} = ? WHERE log_id = ? AND leaf_index = ?", (value, log_id, index))
        return f"{column} of leaf {index} of log {log_id}"

    def _delete_leaf(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id, index, _, _ = self._leaf(connection, chance)
        stop = index + chance.choice((1, 1, 5, 1000))
        connection.execute("DELETE FROM leaves WHERE log_id = ? AND leaf_index >= ? AND leaf_index < ?", (log_id, index, stop))
        return f"leaves {index} to {stop} of log {log_id} deleted"

    def _forget_leaf(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id, index, _, _ = self._leaf(connection, chance)
        connection.execute("DELETE FROM leaves WHERE log_id = ? AND leaf_index = ?", (log_id, index))
        connection.execute("UPDATE leaves SET leaf_index = -leaf_index WHERE log_id = ? AND leaf_index > ?", (log_id, index))
        connection.execute("UPDATE leaves SET leaf_index = -leaf_index - 1 WHERE log_id = ? AND leaf_index < 0", (log_id,))
        self._rehash(connection, log_id)
        return f"leaf {index} of log {log_id} deleted, the others moved up, all hashes and the head computed anew"

    def _swap_leaves(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id, index, _, _ = self._leaf(connection, chance)
        (size,) = connection.execute("SELECT size FROM logs WHERE log_id = ?", (log_id,)).fetchone()
        other = (index + chance.randrange(1, size)) % size
        for old, new in ((index, -5), (other, index), (-5, other)):
            connection.execute("UPDATE leaves SET leaf_index = ? WHERE log_id = ? AND leaf_index = ?", (new, log_id, old))
        if chance.random() < 0.5:
            self._rehash(connection, log_id)
        return f"leaves {index} and {other} of log {log_id} swapped"

    def _append_leaf(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id, index, data, _ = self._leaf(connection, chance)
        (size,) = connection.execute("SELECT size FROM logs WHERE log_id = ?", (log_id,)).fetchone()
        connection.execute(
            f"INSERT INTO leaves (log_id, {_LEAF_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
            (log_id, size, "again", 1, leaf_hash(data), data),
        )
        if chance.random() < 0.5:
            self._rehash(connection, log_id)
        return f"leaf {index} of log {log_id} once more at the end"

    def _move_leaf(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id, index, data, hashes = self._leaf(connection, chance)
        other = 3 - log_id
        connection.execute(
            "UPDATE leaves SET data = ?, subtree_hashes = ?, event_id = 'moved' WHERE log_id = ? AND leaf_index = ?",
            (data, hashes, other, min(index, 3)),
        )
        return f"leaf {index} of log {log_id} put into log {other}"

    def _alter_head(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id, size, root, checkpoint, key = chance.choice(
            connection.execute("SELECT log_id, size, root, checkpoint, verifier_key FROM logs ORDER BY 1").fetchall()
        )
        column, value = chance.choice(
            [
                ("size", size + chance.choice((-1, 1, 100))),
                ("root", edit_bytes(root, chance, b"")[0]),
                ("checkpoint", edit_bytes(checkpoint.encode(), chance, b"")[0].decode("latin-1")),
                ("checkpoint", chance.choice(_pairs(self.pristine.older_keys["signed-checkpoints.jsonl"]))[1]),
                ("verifier_key", key.replace("bank", "knab").replace("broker", "rekorb")),
                ("origin", f"{PLATFORM}/audit/nobody"),
                ("log_id", 77),
            ]
        )
        connection.execute(f"UPDATE logs SET {column} = ? WHERE log_id = ?", (value, log_id))
        return f"{column} of the head of log {log_id}"

    def _roll_back(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        origin, checkpoint = chance.choice(_pairs(self.pristine.older_keys["signed-checkpoints.jsonl"]))
        head = Checkpoint.parse(checkpoint.rpartition("\n\n")[0] + "\n")
        (log_id,) = connection.execute("SELECT log_id FROM logs WHERE origin = ?", (origin,)).fetchone()
        connection.execute("DELETE FROM leaves WHERE log_id = ? AND leaf_index >= ?", (log_id, head.size))
        connection.execute("DELETE FROM open_intents WHERE log_id = ? AND leaf_index >= ?", (log_id, head.size))
        connection.execute(
            "UPDATE logs SET size = ?, root = ?, checkpoint = ? WHERE log_id = ?", (head.size, head.root, checkpoint, log_id)
        )
        return f"log {log_id} rolled back to {head.size} leaves that were signed"

    def _exchange_logs(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        connection.execute("UPDATE leaves SET log_id = CASE log_id WHEN 1 THEN -2 ELSE -1 END")
        connection.execute("UPDATE leaves SET log_id = -log_id")
        return "the leaves of two logs exchanged"

    def _new_key(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id, index, data, _ = self._leaf(connection, chance)
        (origin,) = connection.execute("SELECT origin FROM logs WHERE log_id = ?", (log_id,)).fetchone()
        signer = signer_from_seed(origin, SignatureType.ED25519, chance.randbytes(32))
        edited = data.replace(b"customer_support", b"another_purpose_")
        connection.execute("UPDATE leaves SET data = ? WHERE log_id = ? AND leaf_index = ?", (edited, log_id, index))
        size, root = self._rehash(connection, log_id)
        assert isinstance(signer, Ed25519Signer)
        connection.execute(
            "UPDATE logs SET verifier_key = ?, checkpoint = ? WHERE log_id = ?",
            (str(signer.verifier_key), sign_note(Checkpoint(origin, size, root).text(), signer), log_id),
        )
        return f"leaf {index} of log {log_id} altered, everything signed with another key"

    def _alter_intents(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        rows = connection.execute("SELECT log_id, request_id, leaf_index FROM open_intents ORDER BY 1, 2, 3").fetchall()
        row = chance.choice(rows)
        connection.execute("DELETE FROM open_intents WHERE log_id = ? AND request_id = ? AND leaf_index = ?", row)
        match chance.randrange(3):
            case 0:
                return f"open intent {row[2]} of log {row[0]} forgotten"
            case 1:
                connection.execute("INSERT INTO open_intents VALUES (?, ?, ?)", (row[0], "another", row[2]))
                return f"open intent {row[2]} of log {row[0]} given to another request"
            case _:
                connection.execute("INSERT INTO open_intents VALUES (?, ?, ?)", (row[0], row[1], row[2] + 1))
                return f"open intent {row[2]} of log {row[0]} moved"

    def _delete_log(self, connection: sqlite3.Connection, chance: random.Random) -> str:
        log_id = chance.choice((1, 2))
        tables = ["logs"] if chance.random() < 0.5 else ["leaves", "open_intents", "logs"]
        for table in tables:
            connection.execute(f"DELETE FROM {table} WHERE log_id = ?", (log_id,))
        return f"{', '.join(tables)} of log {log_id} deleted"

    def _rehash(self, connection: sqlite3.Connection, log_id: int) -> tuple[int, bytes]:
        """Compute all hashes and the head anew, as a forger would. The signature he has not."""
        frontier = Frontier(0, [])
        leaves = connection.execute("SELECT sequence, data FROM leaves WHERE log_id = ? ORDER BY leaf_index", (log_id,)).fetchall()
        for sequence, data in leaves:
            hashes = b"".join(frontier.append(leaf_hash(data)))
            connection.execute("UPDATE leaves SET subtree_hashes = ? WHERE sequence = ?", (hashes, sequence))
        root = frontier.root()
        assert root == tree_hash([data for _, data in leaves])
        connection.execute("UPDATE logs SET size = ?, root = ? WHERE log_id = ?", (frontier.size, root, log_id))
        return frontier.size, root


class SignedFile(_Files):
    """The second place, beside an untouched store."""

    name = "second place: signed-checkpoints.jsonl"

    def __init__(self, pristine: Pristine, directory: Path) -> None:
        super().__init__(directory, pristine.store | {"signed-checkpoints.jsonl": pristine.keys["signed-checkpoints.jsonl"]})
        self._pristine = pristine
        self._path = directory / "signed-checkpoints.jsonl"

    def edit(self, chance: random.Random) -> str:
        older = self._pristine.older_keys["signed-checkpoints.jsonl"]
        if chance.random() < 0.7:
            return self.edit_file("signed-checkpoints.jsonl", chance, older)
        lines = self._path.read_bytes().splitlines(keepends=True)
        at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        match chance.randrange(3):
            case 0:
                lines[at], lines[other] = lines[other], lines[at]
            case 1:
                del lines[at]
            case _:
                lines.append(chance.choice(older.splitlines(keepends=True)))
        self._path.write_bytes(b"".join(lines))
        return f"lines {at} and {other} of {len(lines)} swapped, deleted or replayed"

    def meaning(self) -> object:
        """The last checkpoint of each log, or that it cannot be read."""
        if not self._path.exists():
            return UNREADABLE
        last: dict[str, str] = {}
        lines = self._path.read_bytes().split(b"\n")[:-1]
        parsed = [_json(line) for line in lines]
        for number, batch in enumerate(parsed):
            if not isinstance(batch, dict) or not all(isinstance(value, str) for value in batch.values()):
                if number == 0 or any(isinstance(later, dict) for later in parsed[number:]):
                    return UNREADABLE
                break
            last.update(batch)
        return last

    def check(self) -> Sequence[str]:
        def second() -> list[tuple[str, str]]:
            return [pair for batch in read_batches(self._path) for pair in batch.items()]

        with closing(SqliteLogReader.open(self.directory / "audit.db")) as reader:
            keys = list(self._pristine.verifier_keys.values())
            return [str(finding) for finding in check_store(reader, keys, second, trusted=self._pristine.trusted).findings]


class Keys(_Files):
    """Signing keys."""

    name = "signing keys"

    def __init__(self, pristine: Pristine, directory: Path) -> None:
        super().__init__(directory, {name: content for name, content in pristine.keys.items() if name.endswith(".key")})
        self._pristine = pristine

    def edit(self, chance: random.Random) -> str:
        name = chance.choice(sorted(self._files))
        other = chance.choice([content for file, content in self._files.items() if file != name])
        return self.edit_file(name, chance, other)

    def meaning(self) -> object:
        files = _files(self.directory)
        return {name: content.strip() for name, content in files.items()}

    def check(self) -> Sequence[str]:
        found = []
        keys = KeyDirectory(self.directory)
        for name in self._files:
            tenant = name.removesuffix(".key")
            origin = f"{PLATFORM}/audit" if tenant == KEY_NAME else f"{PLATFORM}/audit/{tenant}"
            try:
                signer = keys.load(tenant, origin)
            except KeyUnusable as error:
                found.append(str(error))
                continue
            if signer is None or signer.verifier_key != self._pristine.verifier_keys[origin]:
                found.append(f"the key of {origin} is another or gone")
        return found


class Receipts:
    """A receipt in the hands of whoever got it."""

    name = "receipts"

    def __init__(self, pristine: Pristine) -> None:
        self._receipts = pristine.receipts
        self._keys = [str(key) for key in pristine.verifier_keys.values()]
        self._held = self._receipts[0]
        self._text = self._held.text.encode()

    def restore(self) -> None:
        self._text = self._held.text.encode()

    def edit(self, chance: random.Random) -> str:
        self._held = chance.choice(self._receipts)
        other = chance.choice([receipt for receipt in self._receipts if receipt is not self._held]).text
        self.restore()
        if chance.random() < 0.3:
            lines, from_other = self._held.text.split("\n"), other.split("\n")
            at = chance.randrange(len(lines))
            if chance.random() < 0.5 and at < len(from_other) and lines[at] != from_other[at]:
                lines[at] = from_other[at]
                what = f"line {at} as in another receipt"
            else:
                del lines[at]
                what = f"line {at} deleted"
            self._text = "\n".join(lines).encode()
            return what
        self._text, what = edit_bytes(self._text, chance, other.encode())
        return what

    def meaning(self) -> object:
        """Whether it is what was handed out."""
        return self._text == self._held.text.encode()

    def check(self) -> Sequence[str]:
        try:
            leaf = verify_receipt(self._text, self._keys)
        except VerificationFailed as failure:
            return [str(failure)]
        if (leaf.fields["event_id"], leaf.leaf_index) != (self._held.event_id, self._held.leaf_index):
            return ["it is the receipt of another answer"]
        return []


class Tiles(_Files):
    """Published tiles, read by an auditor who has a checkpoint from a witness."""

    name = "tiles"

    def __init__(self, pristine: Pristine, directory: Path) -> None:
        super().__init__(directory, pristine.tiles)
        self._pristine = pristine
        self._needed = sorted(
            [f"{origin}/checkpoint" for origin in pristine.verifier_keys]
            + [
                f"{origin}/{tile.name}"
                for origin, note in zip(pristine.verifier_keys, pristine.trusted, strict=True)
                for tile in tiles_of(_size(note))
            ]
        )

    def edit(self, chance: random.Random) -> str:
        name = chance.choice(self._needed)
        if chance.random() < 0.1:
            other = chance.choice([other for other in self._needed if other != name])
            first, second = self.directory / name, self.directory / other
            content = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(content)
            return f"{name} and {other} swapped"
        return self.edit_file(name, chance, self._pristine.older_tiles.get(name, b""))

    def meaning(self) -> object:
        files = _files(self.directory)
        return {name: files.get(name) for name in self._needed}

    def check(self) -> Sequence[str]:
        found = []
        for (origin, key), trusted in zip(self._pristine.verifier_keys.items(), self._pristine.trusted, strict=True):
            source = DirectorySource(self.directory / origin)
            try:
                checkpoint = open_checkpoint(read_checkpoint(source), origin, [key]).checkpoint
                reader = TreeReader(source, checkpoint)
                known = Checkpoint.parse(trusted.rpartition("\n\n")[0] + "\n")
                if checkpoint.size < known.size or reader.root_at(known.size) != known.root:
                    found.append("it is not what the witness saw")
                for tile in tiles_of(checkpoint.size):
                    if tile.level is not None:
                        reader.subtree_hashes(tile.subtrees())
                for _ in reader.entries(0, checkpoint.size):
                    pass
            except (CorruptLog, SourceFailed, MalformedNote, UntrustedNote) as error:
                found.append(f"{type(error).__name__}: {error}")
        return found


def _size(note: str) -> int:
    return int(note.split("\n")[1])


def _json(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _pairs(content: bytes) -> list[tuple[str, str]]:
    return [pair for line in content.splitlines() for pair in json.loads(line).items()]
