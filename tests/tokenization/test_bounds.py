"""The longest inputs that the contract allows: time and memory of a million characters of whatever is worst."""

from __future__ import annotations

import json
import subprocess
import sys
from time import perf_counter

from models import smollm2_path
from real_tokenizers import Served

# In a process of its own, so that what it peaks at is what the input took.
SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from lionrock.tokenization.codec import open_codec
from lionrock.tokenization.codec_errors import TooManyTokens
codec = open_codec("m", Path(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for unit in json.loads(sys.argv[2]):
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    began = time.monotonic()
    try:
        tokens = len(codec.encode_text(text).token_ids)
    except TooManyTokens as error:
        tokens = -error.limit
    print(json.dumps([unit, tokens, time.monotonic() - began, peak() - before]))
"""
# fmt: off
WORST = [
    "a", " ", "\n", "1", "!", "🀄", "的", "香港金融管理局要求", "e\u0301", "\u0301", " a", "   a", "\r\n ", "the quick brown fox ",
    "<|im_start|>", "'s", "'", "٣", "\x04", "\U0010fffd",
]
# fmt: on


def test_a_million_characters_take_bounded_time_and_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(smollm2_path()), json.dumps(WORST)],
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(WORST)
    for unit, tokens, seconds, mebibytes in results:
        assert tokens <= 262_144
        assert seconds < 8, f"{unit!r} took {seconds:.1f} s"
        assert mebibytes < 400, f"{unit!r} took {mebibytes} MiB"


def test_time_grows_with_the_length_and_not_with_its_square(smollm2: Served) -> None:
    for unit in ("a", " ", "!", "的", "\n"):
        times = []
        for length in (50_000, 400_000):
            runs = []
            for _ in range(3):
                began = perf_counter()
                smollm2.codec._encode(unit * length)
                runs.append(perf_counter() - began)
            times.append(min(runs))
        assert times[1] < 32 * times[0], f"{unit!r}: 8 times the text took {times[1] / times[0]:.0f} times as long"
