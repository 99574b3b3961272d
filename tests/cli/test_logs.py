"""Bounded logs."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lionrock.cli.logs import BoundedLog, last_lines, prune_traces
from lionrock.cli.mesh import last_words


def test_two_generations_stay_within_the_bound(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.jsonl", max_bytes=2000)
    for number in range(1000):
        log.write(f'{{"line": {number}}}\n'.encode())
    log.close()
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) <= 2000
    assert last_lines(tmp_path / "a.jsonl", 1) == ['{"line": 999}']


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), min_size=1), st.integers(1, 17))
def test_lines_come_out_whole_for_every_chunking(tmp_path_factory: object, lines: list[bytes], size: int) -> None:
    directory: Path = tmp_path_factory.mktemp("log")  # type: ignore[attr-defined]
    log = BoundedLog(directory / "a")
    data = b"".join(line + b"\n" for line in lines)
    for start in range(0, len(data), size):
        log.write(data[start : start + size])
        whole = (directory / "a").read_bytes()
        assert whole == b"" or whole.endswith(b"\n")
    log.close()
    assert (directory / "a").read_bytes() == data


def test_line_without_end_is_cut(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a")
    for _ in range(40):
        log.write(b"x" * 10_000)
    log.close()
    assert max(len(line) for line in (tmp_path / "a").read_bytes().split(b"\n")) <= 256 * 1024 + 10_000


def test_last_lines_of_a_log_that_does_not_exist_are_none(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "nothing", 5) == []


def test_oldest_and_empty_span_files_of_earlier_runs_go(tmp_path: Path) -> None:
    for age, (name, size) in enumerate([("new.jsonl", 60), ("empty.jsonl", 0), ("middle.jsonl.1", 30), ("old.jsonl", 20)]):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    prune_traces(tmp_path, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle.jsonl.1", "new.jsonl"]


def test_last_words_are_warnings_where_there_are_any() -> None:
    noise = ["*** SIGTERM received", '{"level": "INFO", "message": "stopped"}', "[1]"]
    why = '{"level": "WARNING", "message": "a rank failed to start"}'
    assert last_words([why, why, *noise]) == ["a rank failed to start"]
    assert last_words(noise) == noise
