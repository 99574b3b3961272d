"""`lionrock plan` as a user meets it: numbers that add up, refusals with a way out, the chip table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lionrock.cli.errors import CommandError
from lionrock.cli.plan import PlanOptions, run, show_chips
from lionrock.planner.chips import CHIPS
from models import smollm2_path

sys.path.insert(0, str(Path(__file__).parents[1] / "planner"))
from published import DEEPSEEK_V3, R1_DISTILL_LLAMA_70B

OPTIONS = PlanOptions("", "hygon-dcu", None, None, "bfloat16", "none", 16, 8192, None, None, "torch")


@pytest.fixture
def llama(tmp_path: Path) -> str:
    """R1-Distill-Llama-70B's configuration, as it lies beside the weights."""
    directory = tmp_path / "DeepSeek-R1-Distill-Llama-70B"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(R1_DISTILL_LLAMA_70B))
    return str(directory)


@pytest.fixture
def deepseek(tmp_path: Path) -> str:
    """DeepSeek-V3's, as a file."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DEEPSEEK_V3))
    return str(path)


def lionrock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lionrock.cli", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_known_answer_is_shown_with_numbers_that_add_up(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(replace(OPTIONS, model=llama), as_json=False) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("4 × hygon-dcu, TP 4 × PP 1 (1 pod of 4)\n")
    assert "70.55 billion parameters" in shown
    assert "64.00 GiB × 0.92 = 58.88 GiB" in shown
    (ranks,) = re.findall(r"^  0–3 +0–79((?: +[0-9.]+)+)$", shown, re.MULTILINE)
    *uses, total, free = map(float, ranks.split())
    assert sum(uses) == pytest.approx(total, abs=0.03)
    assert total + free == pytest.approx(58.88, abs=0.01)
    assert "never run by Lionrock's tests" in shown


def test_json_is_the_plan_as_the_operator_writes_it(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(replace(OPTIONS, model=llama), as_json=True) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["summary"], plan["chipsPerPod"], len(plan["ranks"])) == ("4 × hygon-dcu, TP 4 × PP 1", 4, 4)


def test_fp8_is_counted_as_the_engine_holds_it(deepseek: str, capsys: pytest.CaptureFixture[str]) -> None:
    sixteen = replace(OPTIONS, model=deepseek, chip="ascend-910b", chips=16)
    with pytest.raises(CommandError, match=r"bfloat16 weights .* 24 chips would hold them") as refused:
        run(sixteen, as_json=False)
    assert refused.value.fix is not None
    assert "--backend vllm" in refused.value.fix
    assert run(replace(sixteen, backend="vllm"), as_json=False) == 0
    assert "vLLM keeps the checkpoint's fp8" in capsys.readouterr().out
    assert run(replace(sixteen, weights="int8-w8a8"), as_json=False) == 0
    assert "rounded to int8-w8a8 when the engine loads them" in capsys.readouterr().out
    assert run(replace(sixteen, chips=None), as_json=False) == 0
    assert "the checkpoint's fp8 becomes bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chip": "abacus"}, "no chip named 'abacus'"),
        ({"chip": "cpu"}, "state it"),
        ({"memory": "64 GB"}, "no size of memory"),
        ({"weights": "int3"}, "int8-w8a8"),
        ({"dtype": "bfloat17"}, "known are"),
        ({"pipeline": 2}, "--tensor"),
        ({"tensor": 16}, "does not leave its node"),
        ({"context": 200_000}, "131072 tokens"),
        ({"model": "/no/such/model"}, "there is no model"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_sentence(llama: str, changes: dict[str, object], words: str) -> None:
    options = replace(OPTIONS, **{"model": llama, **changes})  # type: ignore[arg-type]
    with pytest.raises(CommandError, match=re.escape(words)) as refused:
        run(options, as_json=False)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"architectures": ["GPT2LMHeadModel"]}'])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(CommandError):
        run(replace(OPTIONS, model=str(path)), as_json=False)


def test_a_gguf_file_is_planned_without_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    options = replace(OPTIONS, model=str(smollm2_path()), chip="cpu", memory="8Gi", context=4096)
    assert run(options, as_json=False) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 × cpu, TP 1 × PP 1")
    assert "0.13 billion parameters" in shown


def test_the_chip_table_marks_what_never_ran_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_chips(as_json=False) == 0
    rows = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line}
    assert {name for name in CHIPS if rows[name] == "yes"} == {"cpu"}
    assert show_chips(as_json=True) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in listed] == list(CHIPS)


def test_the_command_prints_a_plan_or_a_refusal_with_its_status(llama: str) -> None:
    planned = lionrock("--model", llama, "--chip", "ascend-910b", "--tensor", "4", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["tensorParallel"] == 4
    refused = lionrock("--model", llama, "--chip", "ascend-910b", "--chips", "2")
    assert refused.returncode == 1
    assert "3 chips would hold them" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "--model"), (("--model", "x"), "--chips-known"), (("--model", "x", "--chip", "x", "--backend", "y"), "vllm")],
)
def test_what_the_command_line_lacks_is_named(arguments: tuple[str, ...], words: str) -> None:
    shown = lionrock(*arguments)
    assert shown.returncode == 2
    assert words in shown.stderr
