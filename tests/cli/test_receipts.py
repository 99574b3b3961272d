"""Receipts, openings and keys on disk; `lionrock verify` over them. The log is a real one, in a directory of the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lionrock.cli.errors import CommandError
from lionrock.cli.receipts import Opening, keep_keys, opening_beside, read_keys, save_receipt, saved_keys
from lionrock.cli.state import StateDir

ORIGIN = "lionrock.local/audit/demo"


def opening(answer: str = "一二三") -> Opening:
    return Opening("0190a6e0-0000-7000-8000-000000000000", answer, bytes(range(32)), bytes(32))


def test_opening_is_read_back_as_written(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    path = save_receipt(state, opening().request_id, "proof\n", opening())
    assert path.read_text() == "proof\n"
    beside = opening_beside(path)
    assert beside is not None
    assert Opening.read(beside) == opening()
    assert {file.stat().st_mode & 0o077 for file in state.receipts.iterdir()} == {0}


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"request_id": 1}', '{"request_id":"a","answer":"b","answer_salt":"!","prompt_salt":""}']
)
def test_file_that_is_no_opening_is_a_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.opening.json").write_text(text)
    with pytest.raises(CommandError, match="is not an opening"):
        Opening.read(tmp_path / "a.opening.json")


def test_first_key_of_a_log_stays(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    keep_keys(state, ORIGIN, ["first"])
    keep_keys(state, ORIGIN, ["second"])
    keep_keys(state, "other/audit/x", ["third"])
    assert saved_keys(state, ORIGIN) == ["first"]
    assert sorted(saved_keys(state)) == ["first", "third"]


def test_request_id_never_leaves_the_directory(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    path = save_receipt(state, "../../evil", "proof\n", opening())
    assert path.parent == state.receipts
    assert json.loads(next(state.receipts.glob("*.json")).read_text())["answer"] == "一二三"


def test_keys_file_may_have_comments_and_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# the log's key\n\n a+1+b \n")
    assert read_keys(tmp_path / "keys") == ["a+1+b"]
