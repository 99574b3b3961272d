"""A process that records until it is killed, and says which requests were acknowledged: run by test_records_crash.py.

python records_appender.py DIRECTORY
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from audit_harness import Place, intent
from records_harness import Opened, RecordsPlace, concerning

WRITERS = 8


async def write(opened: Opened, writer: int) -> None:
    number = 0
    while True:
        event = concerning(intent(prompt=f"question {writer}/{number}".encode()), (f"person-{writer}-{number % 3}",))
        await opened.logs.append(event, want_receipt=False)
        print(event.context.request_id, f"question {writer}/{number}", sep="\t", flush=True)
        number += 1


async def main(directory: Path) -> None:
    async with RecordsPlace(Place(directory)).open() as opened:
        await asyncio.gather(*(write(opened, writer) for writer in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
