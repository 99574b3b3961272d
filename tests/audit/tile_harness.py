"""What the tests of tiles share: logs that grow, a bucket, and the strict walk of everything that was published."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from obstore.store import S3Store

sys.path.insert(0, str(Path(__file__).parents[1] / "modelstore"))

from s3_server import BUCKET, S3Server

from lionrock.audit.publisher import PublishedLog
from lionrock.audit.store import LogStore, StoredLeaf
from lionrock.audit.tenant_log import Head
from lionrock.audit.tile_bucket import open_bucket
from lionrock.tlog.checkpoint import Checkpoint
from lionrock.tlog.merkle import EMPTY_ROOT, Frontier, leaf_hash, subtrees_of
from lionrock.tlog.note import Ed25519Signer, VerifierKey, open_note, sign_note
from lionrock.tlog.tiles import CHECKPOINT_NAME, Tile, join_bundle, tiles_of
from mesh_ca import DevCa

ORIGIN = "audit.example.hk/audit/bank"


def signer(origin: str = ORIGIN, seed: int = 1) -> Ed25519Signer:
    return Ed25519Signer(origin, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


class GrowingLog:
    """A log in a real store, signed as the sequencer signs, that grows by made-up leaves without the price of an fsync a leaf."""

    def __init__(self, store: LogStore, origin: str = ORIGIN, *, seed: int = 1) -> None:
        self.origin = origin
        self.store = store
        self.signer = signer(origin, seed)
        stored = store.find_log(origin)
        if stored is None:
            checkpoint = self._sign(0, EMPTY_ROOT)
            stored = store.create_log(origin, str(self.signer.verifier_key), EMPTY_ROOT, checkpoint)
        self.log_id = stored.log_id
        self.head = Head(stored.size, stored.root, stored.checkpoint)
        self.frontier = Frontier(stored.size, store.subtree_hashes(stored.log_id, subtrees_of(0, stored.size)))

    @property
    def key(self) -> VerifierKey:
        return self.signer.verifier_key

    def published(self) -> PublishedLog:
        return PublishedLog(self.origin, self.log_id, lambda: self.head)

    def leaf(self, index: int) -> bytes:
        return f'{{"leaf":{index},"log":"{self.origin}"}}'.encode() + b" " * (index % 7)

    def grow(self, count: int) -> None:
        leaves = []
        for index in range(self.head.size, self.head.size + count):
            data = self.leaf(index)
            leaves.append(StoredLeaf(index, f"event-{index}", index, self.frontier.append(leaf_hash(data)), data))
        root = self.frontier.root()
        head = Head(self.frontier.size, root, self._sign(self.frontier.size, root))
        with self.store.transaction() as transaction:
            transaction.add_leaves(self.log_id, leaves)
            transaction.advance(self.log_id, self.head.size, self.head.root, head.size, root, head.checkpoint)
        self.head = head

    def _sign(self, size: int, root: bytes) -> str:
        return sign_note(Checkpoint(self.origin, size, root).text(), self.signer)


def files_of(size: int, leaves: list[bytes]) -> dict[str, bytes]:
    """Every tile and bundle of a tree, from all its leaves."""
    levels = [[leaf_hash(leaf) for leaf in leaves[:size]]]
    while len(levels[-1]) >= 256:
        below = levels[-1]
        tops = []
        for first in range(0, len(below) - 255, 256):
            frontier = Frontier(0, [])
            for hash_ in below[first : first + 256]:
                frontier.append(hash_)
            tops.append(frontier.root())
        levels.append(tops)
    files = {}
    for tile in tiles_of(size):
        at = slice(tile.index * 256, tile.index * 256 + tile.width)
        files[tile.name] = join_bundle(leaves[:size][at]) if tile.level is None else b"".join(levels[tile.level][at])
    return files


def strict_walk(directory: Path, key: VerifierKey, leaves: list[bytes]) -> int:
    """Check every file of a published log, and that none is missing or one too many. Returns the size that is published.

    A file may belong to a tree that is not published yet, or to an earlier one: then it holds what any later tree says as well.
    """
    present = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    size = 0
    if CHECKPOINT_NAME in present:
        published = Checkpoint.parse(open_note(present.pop(CHECKPOINT_NAME).read_text(encoding="utf-8"), [key]).text)
        size = published.size
        frontier = Frontier(0, [])
        for leaf in leaves[:size]:
            frontier.append(leaf_hash(leaf))
        assert published.root == frontier.root()
    needed = files_of(size, leaves)
    everything = files_of(len(leaves), leaves)
    for name in needed:
        full = Tile.parse(name).full_name
        assert name in present or full in present, f"{name} is missing at {size} leaves"
    for name, path in present.items():
        tile = Tile.parse(name)
        content = path.read_bytes()
        whole = everything.get(tile.full_name)
        if whole is None:
            whole = next(other for name_, other in everything.items() if Tile.parse(name_).full_name == tile.full_name)
        assert whole.startswith(content), f"{name} has other bytes than the tree"
        expected = tile.width * 32 if tile.level is not None else len(join_bundle(leaves[tile.index * 256 :][: tile.width]))
        assert len(content) == expected, f"{name} has the wrong length"
    return size


# Run as tests/modelstore/s3_server.py says: a bucket, and a user who may do with its objects what a publisher does.
_PREPARE = """
import json, sys, ssl, urllib.request
import boto3
endpoint, ca, bucket, _ = sys.argv[1:]
def client(kind):
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    return boto3.client(kind, endpoint_url=endpoint, verify=ca, region_name="us-east-1", **keys)
s3, iam = client("s3"), client("iam")
s3.create_bucket(Bucket=bucket)
iam.create_user(UserName="publisher")
actions = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"]
resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": resources}]}
iam.put_user_policy(UserName="publisher", PolicyName="publish", PolicyDocument=json.dumps(policy))
key = iam.create_access_key(UserName="publisher")["AccessKey"]
context = ssl.create_default_context(cafile=ca)
request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"})
urllib.request.urlopen(request, context=context).read()
print(json.dumps([key["AccessKeyId"], key["SecretAccessKey"]]))
"""


@dataclass(frozen=True)
class Bucket:
    """An S3-compatible server with one bucket."""

    server: S3Server
    ca_file: Path
    name: str = BUCKET

    def store(self, secret: str | None = None) -> S3Store:
        return open_bucket(
            self.server.endpoint,
            self.name,
            access_key_id=self.server.access_key_id,
            secret_access_key=secret or self.server.secret_access_key,
            region="us-east-1",
            ca_file=self.ca_file,
        )

    def headers(self, name: str) -> Mapping[str, str]:
        return {str(key): value for key, value in obstore.get(self.store(), name).attributes.items()}


@contextmanager
def start_bucket(directory: Path) -> Iterator[Bucket]:
    """Raises Unavailable where the server cannot be installed."""
    tls = DevCa(directory).issue("s3")
    server = S3Server(directory, tls, directory / "s3.log", prepare=_PREPARE)
    try:
        yield Bucket(server, tls.ca_file)
    finally:
        server.stop()
