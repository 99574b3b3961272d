"""Give back to the system what a burst of work has left in the C library's heap.

Building a tokenizer, or encoding a million characters, takes for a moment several times the memory that stays in use; glibc keeps
it. Where the C library has no `malloc_trim` (musl, macOS) there is nothing to do: those give it back themselves.
"""

from __future__ import annotations

import ctypes

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_free_memory() -> None:
    """Return free pages of the C heap to the system. Takes milliseconds and does not need the interpreter lock."""
    if _malloc_trim is not None:
        _malloc_trim(0)
