r"""Keeps an answer's bytes well formed where a grammar of code points would let them go wrong.

xgrammar 0.2.8 lets through three things: the UTF-8 of surrogates (ED A0 … ED BF), which is no UTF-8; raw control characters in JSON
strings of bounded length; and in JSON strings any \u escape, so halves of surrogate pairs and second spellings of a property's
name. An automaton over bytes says from its state which tokens would bring one of these about; \u escapes remain for control
characters, which need them.

Knows bytes and token ids; no grammar.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

PLAIN, PLAIN_ED = 0, 1
"""States outside JSON strings: anywhere, and after the byte ED."""
_IN, _IN_ED, _ESCAPE, _U, _U0, _U00, _U00X = range(2, 9)
_STATES = 9
_FORBIDDEN = _STATES

_HEXADECIMAL = b"0123456789abcdefABCDEF"


def transitions(*, json: bool) -> NDArray[np.uint8]:
    """Return the automaton: [state, byte] → state, or the number of states for a byte that must not come."""
    table = np.full((_STATES, 256), _FORBIDDEN, dtype=np.uint8)
    table[PLAIN], table[PLAIN, 0xED] = PLAIN, PLAIN_ED
    table[PLAIN_ED, 0x80:0xA0] = PLAIN
    if not json:
        return table
    table[PLAIN, ord('"')] = _IN
    table[_IN, 0x20:], table[_IN, 0xED] = _IN, _IN_ED
    table[_IN, ord('"')], table[_IN, ord("\\")] = PLAIN, _ESCAPE
    table[_IN_ED, 0x80:0xA0] = _IN
    table[_ESCAPE, list(b'"\\/bfnrt')], table[_ESCAPE, ord("u")] = _IN, _U
    table[_U, ord("0")], table[_U0, ord("0")] = _U0, _U00
    table[_U00, list(b"01")], table[_U00X, list(_HEXADECIMAL)] = _U00X, _IN
    return table


class AnswerFilter:
    """The automaton over a vocabulary: which tokens may follow in each state."""

    def __init__(self, tokens: Iterable[bytes], *, json: bool) -> None:
        """tokens: bytes of each id, in order."""
        self._tokens = tuple(tokens)
        self._table = transitions(json=json)
        self._allowed = _allowed(self._tokens, self._table)

    def allowed(self, state: int) -> NDArray[np.uint8]:
        """Return bit t of little-endian bytes for every token t that may come in a state."""
        allowed: NDArray[np.uint8] = self._allowed[state]
        return allowed

    def after(self, state: int, token_id: int) -> int:
        """Return the state after a token that may come."""
        for byte in self._tokens[token_id]:
            state = int(self._table[state, byte])
        assert state < _STATES, "a token came that must not come"
        return state


def _allowed(tokens: tuple[bytes, ...], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[states, ceil(tokens / 32) * 4] bits. Tokens run through all states at once, longest first, so that short ones drop out."""
    table = np.vstack([table, np.full((1, 256), _FORBIDDEN, dtype=np.uint8)])
    lengths = np.fromiter((len(token) for token in tokens), dtype=np.int64, count=len(tokens))
    order = np.argsort(-lengths, kind="stable")
    blob = np.frombuffer(b"".join(tokens), dtype=np.uint8)
    starts = np.concatenate(([0], np.cumsum(lengths)))[:-1][order]
    ordered_lengths = lengths[order]
    states = np.repeat(np.arange(_STATES, dtype=np.uint8)[:, None], len(tokens), axis=1)
    for position in range(int(lengths.max(initial=0))):
        count = int(np.searchsorted(-ordered_lengths, -position, side="left"))
        states[:, :count] = table[states[:, :count], blob[starts[:count] + position]]
    allowed = np.zeros((_STATES, -(-len(tokens) // 32) * 32), dtype=bool)
    allowed[:, order] = states != _FORBIDDEN
    return np.packbits(allowed, axis=1, bitorder="little")
