import json
import subprocess
import sys
from pathlib import Path

import pytest

from models import smollm2_path


def _engine(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lionrock.cli", "engine", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=100, check=False)


def test_one_prompt_on_one_model_needs_no_mesh() -> None:
    done = _engine("--model", str(smollm2_path()), "--max-tokens", "8", "--threads", "1", "Name three rivers.")
    assert done.returncode == 0
    assert len(done.stdout.split()) >= 3
    assert "completion tokens 8" in done.stderr


def test_the_prompt_may_come_on_standard_input_and_the_answer_as_json() -> None:
    done = _engine(
        "--model", str(smollm2_path()), "--raw", "--max-tokens", "4", "--threads", "1", "--json", stdin="The capital of France is"
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "Paris" in answer["text"]
    assert (answer["finish_reason"], answer["completion_tokens"]) == ("length", 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Hello",), "--model PATH"),
        (("--model", "/no/such/model", "Hello"), "lionrock models list"),
        (("--model", "MODEL"), "there is no prompt"),
        (("--model", "MODEL", "--chip", "abacus", "Hello"), "no chip named 'abacus'"),
    ],
)
def test_a_mistake_gets_one_sentence_and_no_traceback(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = _engine(*(str(smollm2_path()) if argument == "MODEL" else argument for argument in arguments))
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_engine_as_a_library_imports_neither_ray_nor_grpc() -> None:
    code = (
        "import sys, lionrock.inference.local_engine, lionrock.inference.served_model, lionrock.inference.model.worker\n"
        "sys.exit(any(name in sys.modules for name in ('ray', 'grpc')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=False).returncode == 0
