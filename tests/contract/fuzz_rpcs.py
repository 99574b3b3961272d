"""Fuzz every RPC: `python tests/contract/fuzz_rpcs.py [--seconds 60] [--seed N]`.

Ends with 1 at the first imprecise status, and says which method and seed it answers.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import grpc  # noqa: E402
from real_services import METHODS, decoded, serve_all  # noqa: E402


async def fuzz(seconds: float, seed: int) -> int:
    """Call random methods with hostile requests until the time is up."""
    rng = random.Random(seed)
    codes: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as directory:
        async with serve_all(Path(directory)) as served:
            while time.monotonic() < end:
                method, case = rng.choice(METHODS), rng.randrange(2**63)
                code, reason = await served.call(method, case)
                codes[f"{code.name} {reason}".strip()] += 1
                if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                    print(f"{method.full_name} answered {code.name} to seed {case}:\n{decoded(method, case)}"[:4000])
                    return 1
    for name, count in codes.most_common():
        print(f"{count:8}  {name}")
    print(f"{codes.total()} calls, seed {seed}: every status was precise")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args()
    sys.exit(asyncio.run(fuzz(arguments.seconds, arguments.seed)))
