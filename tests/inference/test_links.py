"""Control links and the shard group over them, with ranks played by threads on real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lionrock.inference.engine.batch import GREEDY, BatchRow, StepBatch, StepResult
from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.engine.sequence import SequenceId
from lionrock.inference.links import MAX_FRAME_BYTES, Kind, Link, LinkClosed, LinkListener, LinkTls, connect
from lionrock.inference.sharding import ShardGroup
from mesh_ca import DevCa

SPEC = RunnerSpec(
    vocab_size=100,
    context_window=64,
    eos_token_ids=frozenset(),
    kv_block_size=16,
    kv_blocks=4,
    kv_bytes_per_token=1,
    sampling_options=frozenset(),
)
BATCH = StepBatch((BatchRow(SequenceId(1), 0, (5,), (0,), GREEDY),))


def pair() -> tuple[Link, Link]:
    left, right = socket.socketpair()
    return Link(left), Link(right)


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    left, right = pair()
    yield left, right
    left.close()
    right.close()


def frames(link: Link, count: int) -> list[tuple[Kind, bytes]]:
    found: list[tuple[Kind, bytes]] = []
    while len(found) < count:
        assert link.wait(5)
        found += link.received()
    return found


def test_frames_arrive_whole_and_in_order_however_large(ends: tuple[Link, Link]) -> None:
    left, right = ends
    payloads = [b"", b"x", b"y" * 3_000_000, b"z"]

    def write() -> None:
        for payload in payloads:
            left.send(Kind.STEP, payload, timeout_s=10)

    writer = threading.Thread(target=write)
    writer.start()
    assert frames(right, 4) == [(Kind.STEP, payload) for payload in payloads]
    writer.join()


def test_frames_before_the_end_are_still_delivered(ends: tuple[Link, Link]) -> None:
    left, right = ends
    left.send(Kind.RESULT, b"last words")
    left.close()
    received = right.received()
    assert next(received) == (Kind.RESULT, b"last words")
    with pytest.raises(LinkClosed):
        next(received)


@pytest.mark.parametrize("header", [(MAX_FRAME_BYTES + 1).to_bytes(4, "little") + b"\x02", b"\x00\x00\x00\x00\xff"])
def test_a_peer_that_speaks_something_else_is_refused_without_buffering(header: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(header)
        with pytest.raises(LinkClosed):
            list(Link(right).received())


def test_a_peer_that_does_not_read_is_given_up(ends: tuple[Link, Link]) -> None:
    left, _ = ends
    with pytest.raises(LinkClosed):
        left.send(Kind.STEP, b"x" * 10_000_000, timeout_s=0.05)


@pytest.fixture
def tls(tmp_path: Path) -> LinkTls:
    files = DevCa(tmp_path).issue("inference")
    return LinkTls(files.cert_file, files.key_file, files.ca_file)


def accept_in_background(listener: LinkListener, ranks: int) -> Callable[[], list[Link]]:
    accepted: list[list[Link]] = []
    thread = threading.Thread(target=lambda: accepted.append(listener.accept(ranks, time.monotonic() + 10)))
    thread.start()

    def links() -> list[Link]:
        thread.join()
        return accepted[0]

    return links


def test_ranks_connect_over_a_unix_socket_or_mutual_tls(tls: LinkTls) -> None:
    listener = LinkListener(node_address="127.0.0.1", tls=tls)
    links = accept_in_background(listener, 2)
    far = connect(listener.address, 1, same_node=False, tls=tls)
    near = connect(listener.address, 0, same_node=True)
    accepted = links()
    for sent, rank in ((near, accepted[0]), (far, accepted[1])):
        sent.send(Kind.BEAT)
        assert frames(rank, 1) == [(Kind.BEAT, b"")]
        rank.send(Kind.STEP, b"s" * 100_000)
        assert frames(sent, 1) == [(Kind.STEP, b"s" * 100_000)]
    for link in (near, far, *accepted):
        link.close()
    listener.close()
    assert not Path(listener.address.unix).exists()


def test_strangers_are_turned_away_and_our_rank_still_gets_in(tls: LinkTls, tmp_path: Path) -> None:
    listener = LinkListener(node_address="127.0.0.1", tls=tls)
    links = accept_in_background(listener, 1)
    assert listener.address.tcp is not None
    plain = socket.create_connection(listener.address.tcp)
    plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
    other_files = DevCa(tmp_path / "other").issue("inference")
    other_ca = LinkTls(other_files.cert_file, other_files.key_file, other_files.ca_file)
    with pytest.raises((LinkClosed, OSError)):
        connect(listener.address, 0, same_node=False, tls=other_ca)
    wrong_secret = type(listener.address)(b"\x00" * 32, listener.address.unix, None)
    stranger = connect(wrong_secret, 0, same_node=True)
    ours = connect(listener.address, 0, same_node=True)
    (accepted,) = links()
    ours.send(Kind.BEAT)
    assert frames(accepted, 1) == [(Kind.BEAT, b"")]
    assert stranger.wait(5)
    with pytest.raises(LinkClosed):
        list(stranger.received())
    listener.close()
    for link in (plain, stranger, ours, accepted):
        link.close()


def test_ranks_on_other_nodes_need_tls() -> None:
    with pytest.raises(ValueError, match="TLS"):
        LinkListener(node_address="127.0.0.1")


class Ranks:
    """Two ranks as threads; rank 0 answers with the token of the batch, plus one."""

    def __init__(self) -> None:
        self.killed = threading.Event()
        self.lost: list[str] = []
        ends = [pair() for _ in range(2)]
        self.far = [far for _, far in ends]
        self.frozen = [threading.Event(), threading.Event()]
        self.steps: list[bytes] = []
        self.group = ShardGroup(
            [near for near, _ in ends],
            SPEC,
            heartbeat_interval_s=0.05,
            heartbeat_timeout_s=0.4,
            kill=self._kill,
            on_lost=lambda _, reason: self.lost.append(reason),
        )
        for rank in range(2):
            threading.Thread(target=self._live, args=(rank,), daemon=True).start()

    def _kill(self, at_fault: frozenset[int]) -> None:
        self.at_fault = at_fault
        self.killed.set()

    def _live(self, rank: int) -> None:
        link = self.far[rank]
        try:
            while True:
                link.wait(0.05)
                if self.frozen[rank].is_set():
                    self.killed.wait(10)
                    return
                link.send(Kind.BEAT)
                for kind, payload in link.received():
                    if kind is Kind.STEP and rank == 0:
                        self.steps.append(payload)
                        link.send(Kind.RESULT, StepResult((StepBatch.decode(payload).rows[0].token_ids[0] + 1,)).encode())
        except LinkClosed:
            return


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.group.close()
    for link in ranks.far:
        link.close()


def test_a_step_goes_to_the_ranks_and_the_tokens_come_back(ranks: Ranks) -> None:
    assert ranks.group.execute(BATCH) == StepResult((6,))
    assert StepBatch.decode(ranks.steps[0]) == BATCH


def test_a_rank_that_goes_away_loses_the_group_in_the_middle_of_a_step(ranks: Ranks) -> None:
    ranks.frozen[0].set()  # holds its answer back
    threading.Timer(0.1, ranks.far[1].close).start()
    begin_s = time.monotonic()
    with pytest.raises(ShardGroupLost, match="rank 1"):
        ranks.group.execute(BATCH)
    assert time.monotonic() - begin_s < 0.4, "not by its silence"
    assert ranks.killed.is_set()
    assert ranks.at_fault == {1}
    assert len(ranks.lost) == 1


def test_a_silent_rank_loses_the_group_even_while_nothing_runs(ranks: Ranks) -> None:
    ranks.frozen[1].set()
    assert ranks.killed.wait(5)
    with pytest.raises(ShardGroupLost, match="rank 1 gives no sign of life"):
        ranks.group.execute(BATCH)


def test_a_rank_that_reports_an_error_loses_the_group_with_its_name(ranks: Ranks) -> None:
    ranks.far[1].send(Kind.FAILED, b"OutOfMemoryError")
    assert ranks.killed.wait(5)
    assert ranks.lost == ["rank 1 failed with OutOfMemoryError"]
    assert ranks.at_fault == {1}


def test_a_rank_that_lost_a_peer_is_not_the_one_at_fault(ranks: Ranks) -> None:
    ranks.far[1].send(Kind.PEER_LOST)
    assert ranks.killed.wait(5)
    assert ranks.at_fault == frozenset()
    with pytest.raises(ShardGroupLost, match="rank 1 lost another rank"):
        ranks.group.execute(BATCH)


def test_a_closed_group_refuses_steps_and_is_not_called_lost(ranks: Ranks) -> None:
    ranks.group.close()
    ranks.group.close()
    with pytest.raises(ShardGroupLost, match="closed"):
        ranks.group.execute(BATCH)
    assert ranks.lost == []
