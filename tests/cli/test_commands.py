"""The command line as a user meets it: help at once, messages with a fix, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lionrock.cli.doctor import Finding, examine
from lionrock.cli.state import StateDir

COMMANDS = (
    ["up"],
    ["chat"],
    ["verify"],
    ["trace"],
    ["models"],
    ["models", "pull"],
    ["bundle", "create"],
    ["bundle", "verify"],
    ["tenant", "check"],
    ["tenant", "list"],
    ["tenant", "onboard"],
    ["doctor"],
    ["demo"],
    ["plan"],
)
HEAVY = ("grpc", "torch", "ray", "opentelemetry", "cryptography", "pydantic", "google.protobuf")


def lionrock(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lionrock.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        input=stdin.decode(),
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_examples(command: list[str]) -> None:
    shown = lionrock(*command, "--help")
    assert shown.returncode == 0
    assert "Examples" in shown.stdout or command == ["models"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom lionrock.cli.main import app\n"
        "try:\n app(['--help'], prog_name='lionrock')\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["chat", "hello"], 4, "no mesh runs"),
        (["trace", "00"], 1, "no span"),
        (["verify", "{dir}/none.tlog-proof", "--key", "k"], 1, "cannot be read"),
        (["verify", "{dir}/none.tlog-proof"], 1, "no verifier key"),
        (["models", "show", "nothing"], 1, "no model named nothing"),
        (["models", "pull", "unheard-of"], 1, "not a model that is known by name"),
        (["up", "--config", "{dir}/none.yaml"], 2, "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_error_is_a_message_with_a_fix(tmp_path: Path, arguments: list[str], status: int, words: str) -> None:
    shown = lionrock(*(argument.format(dir=tmp_path) for argument in arguments), "--state-dir", str(tmp_path))
    assert shown.returncode == status
    assert words in shown.stderr
    assert "fix: " in shown.stderr
    assert "Traceback" not in shown.stderr


def test_service_shows_its_own_settings() -> None:
    shown = lionrock("audit", "--help")
    assert shown.returncode == 0
    assert "--server.listen" in shown.stdout


def test_models_list_shows_what_can_be_pulled(tmp_path: Path) -> None:
    shown = lionrock("models", "list", "--json", "--state-dir", str(tmp_path))
    assert [(row["name"], row["present"]) for row in map(json.loads, shown.stdout.splitlines())] == [
        ("smollm2-135m-instruct", False)
    ]


def test_doctor_gives_a_fix_for_all_that_is_not_well(tmp_path: Path) -> None:
    findings = examine(StateDir(tmp_path / "state"))
    assert {finding.check for finding in findings} >= {
        "python",
        "memory",
        "disk",
        "ports",
        "extra inference",
        "ray",
        "model",
        "grpcurl",
    }
    assert all(finding.fix for finding in findings if finding.level != "ok")
    assert not (tmp_path / "state").exists()


def test_doctor_finds_a_directory_that_cannot_be_written() -> None:
    (disk,) = [finding for finding in examine(StateDir(Path("/proc/nothing"))) if finding.check == "disk"]
    assert isinstance(disk, Finding)
    assert disk.level == "missing"
