"""Channels to whatever the routes name: one a target, opened and closed as the routes change, and kept for those who hold one.

A target that leaves the routes is nobody's new choice; its channel is closed when nobody holds it any more and the calls on it have
ended. Knows channels and targets; does not know what is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Generic, TypeVar

from lionrock.chassis.channel import MeshChannel

DRAIN_S = 600.0
"""Longest time that a channel out of the routes stays open: the longest deadline of a call. An unused one is closed at once."""

Client = TypeVar("Client")


class _Peer(Generic[Client]):
    """One target: its channel, the client on it, and how many hold it."""

    __slots__ = ("channel", "client", "holders", "unheld")

    def __init__(self, channel: MeshChannel, client: Client) -> None:
        self.channel = channel
        self.client = client
        self.holders = 0
        self.unheld = asyncio.Event()
        self.unheld.set()


class RoutedChannels(Generic[Client]):
    """All channels to one kind of service. One event loop uses it. Close it at the end."""

    def __init__(self, open_channel: Callable[[str], MeshChannel], client: Callable[[MeshChannel], Client]) -> None:
        """`open_channel` of a target; `client` on it."""
        self._open_channel = open_channel
        self._client = client
        self._peers: Mapping[str, _Peer[Client]] = {}
        self._draining: dict[asyncio.Task[None], _Peer[Client]] = {}

    def opened(self, targets: Set[str]) -> Mapping[str, _Peer[Client]]:
        """Open what of these targets is not open yet, for `follow`. Raises TlsFilesUnusable."""
        return {target: self._opened(target) for target in sorted(targets - self._peers.keys())}

    def follow(self, targets: Set[str], opened: Mapping[str, _Peer[Client]]) -> None:
        """Keep these targets and no others. `opened`: those among them that are new."""
        kept = {target: peer for target, peer in self._peers.items() if target in targets}
        left = [peer for target, peer in self._peers.items() if target not in targets]
        self._peers = {**kept, **opened}
        for peer in left:
            task = asyncio.create_task(_drain(peer), name="lionrock-drain")
            self._draining[task] = peer
            task.add_done_callback(lambda done: self._draining.pop(done, None))

    def client(self, target: str) -> Client:
        """Return the client of a target that is followed now."""
        return self._peers[target].client

    @contextmanager
    def held(self, target: str) -> Iterator[Client]:
        """Have the client of a target that is followed now, and keep its channel open, whatever becomes of the routes."""
        peer = self._peers[target]
        peer.holders += 1
        peer.unheld.clear()
        try:
            yield peer.client
        finally:
            peer.holders -= 1
            if not peer.holders:
                peer.unheld.set()

    async def close(self) -> None:
        """End every channel and the calls on them."""
        draining = dict(self._draining)
        for task in draining:
            task.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        await asyncio.gather(*(peer.channel.close() for peer in [*draining.values(), *self._peers.values()]))

    def _opened(self, target: str) -> _Peer[Client]:
        channel = self._open_channel(target)
        channel.get_state(try_to_connect=True)  # so that the first question does not pay for the handshake
        return _Peer(channel, self._client(channel))


async def _drain(peer: _Peer[Client]) -> None:
    try:
        async with asyncio.timeout(DRAIN_S):
            await peer.unheld.wait()
    except TimeoutError:
        pass  # no call outlives its deadline, and no holder does
    await peer.channel.close(DRAIN_S)
