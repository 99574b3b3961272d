"""Some hundreds of random edits; tamper.py makes ten thousand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tamper import run, table
from tamper_targets import make_pristine

EDITS = 160


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_every_edit_that_changes_what_is_said_is_found_and_none_ends_in_a_crash(tmp_path: Path) -> None:
    seed = time.time_ns() % 10**9
    print(f"seed {seed}")
    pristine = await make_pristine(tmp_path / "pristine", leaves=80)
    results = run(pristine, tmp_path, edits=EDITS, seed=seed)
    print(table(results))
    assert [line for result in results.values() for line in result.wrong] == [], f"seed {seed}"
    assert all(result.verdicts["found"] > 0 for result in results.values())
