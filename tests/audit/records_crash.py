"""A process that records and destroys, and ends itself by SIGKILL at a named step: run by test_records_crash.py.

python records_crash.py DIRECTORY erase|expire STEP NTH
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from audit_harness import Place
from records_harness import Clock, RecordsPlace, who

from lionrock.audit.records.holds import RecordScope

RECORDS = 5


async def main(directory: Path, what: str, step: str, nth: int) -> None:
    seen = 0

    def at(reached: str) -> None:
        nonlocal seen
        if reached == step:
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    clock = Clock()
    async with RecordsPlace(Place(directory)).open(clock=clock, at=at, batch=3) as opened:
        for number in range(RECORDS):
            await opened.say(f"doomed question {number}".encode(), b"doomed answer", subjects=("c-1",), purpose="chit_chat")
        await opened.say(b"kept question", b"kept answer", subjects=("c-2",))
        print("\n".join(said.request_id for said in opened.said), flush=True)
        if what == "erase":
            await opened.records.erase(who("privacy_officer"), RecordScope("subject", "c-1"), basis="asked", allow_partial=False)
        else:
            clock.advance(31)
            await opened.upkeep.expire("bank")
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
