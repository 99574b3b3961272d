"""Unwrapped keys, few and not for long.

Knows: a bound, a time to live, that what leaves is overwritten. Does not know: what the keys are for.
A key is handed out as a copy, so that overwriting it here can never change one that is in use. Copies and what the cipher holds are
beyond Python's reach: zeroing here makes the time that a key lies about short, not nil.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable


class KeyCache:
    """Keys by name, the least recently used out first. Belongs to one event loop."""

    def __init__(self, max_keys: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`ttl_s` counts from the time that a key was put in, however often it is used."""
        self._max_keys = max_keys
        self._ttl_s = ttl_s
        self._clock = clock
        self._keys: OrderedDict[Hashable, tuple[float, bytearray]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, name: Hashable) -> bytes | None:
        """Copy of a key that is here and fresh."""
        found = self._keys.get(name)
        if found is None:
            return None
        if self._clock() >= found[0]:
            self.forget(name)
            return None
        self._keys.move_to_end(name)
        return bytes(found[1])

    def put(self, name: Hashable, key: bytes) -> None:
        """Keep a key."""
        self.forget(name)
        if self._max_keys == 0:
            return
        while len(self._keys) >= self._max_keys:
            self.forget(next(iter(self._keys)))
        self._keys[name] = (self._clock() + self._ttl_s, bytearray(key))

    def forget(self, name: Hashable) -> None:
        """Overwrite a key and drop it."""
        found = self._keys.pop(name, None)
        if found is not None:
            found[1][:] = bytes(len(found[1]))

    def forget_of(self, tenant: str) -> None:
        """Overwrite the keys of a tenant, whose names are pairs that begin with it."""
        for name in [name for name in self._keys if isinstance(name, tuple) and name[0] == tenant]:
            self.forget(name)

    def forget_stale(self) -> None:
        """Overwrite keys whose time is over."""
        now = self._clock()
        for name in [name for name, (until, _) in self._keys.items() if now >= until]:
            self.forget(name)

    def clear(self) -> None:
        """Overwrite all."""
        for name in list(self._keys):
            self.forget(name)
