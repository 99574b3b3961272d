"""Settings come from three places, in order, and a bad one ends the program by name and without its value."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Field
from pydantic_settings import SettingsConfigDict

from lionrock.chassis.settings import PeerSettings, ServiceSettings, load_settings


class Limits(BaseModel):
    words: int = Field(default=7, description="words at most")


class SampleSettings(ServiceSettings):
    """A service for these tests."""

    model_config = SettingsConfigDict(env_prefix="LIONROCK_SAMPLE_")

    models: dict[str, Path] = Field(default_factory=dict, description="models by name")
    audit: PeerSettings | None = Field(default=None, description="the audit service")
    limits: Limits = Limits()


YAML = """
server:
  listen: 127.0.0.1:7001
  tls: {cert_file: a.crt, key_file: a.key, ca_file: ca.crt}
  trust_domain: lionrock.local
models: {smollm2: /models/smollm2}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "sample.yaml"
    path.write_text(YAML)
    return str(path)


def problems(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        load_settings(SampleSettings, argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_a_file_is_read_and_the_rest_has_defaults(config: str) -> None:
    settings = load_settings(SampleSettings, ["--config", config])
    assert settings.server.listen == "127.0.0.1:7001"
    assert settings.server.max_concurrent_rpcs == 256
    assert settings.models == {"smollm2": Path("/models/smollm2")}


def test_a_part_that_may_be_left_out_is_named_like_any_other(config: str) -> None:
    assert load_settings(SampleSettings, ["--config", config]).audit is None
    settings = load_settings(SampleSettings, ["--config", config, "--audit.target", "127.0.0.1:7454", "--audit.service", "audit"])
    assert settings.audit == PeerSettings(target="127.0.0.1:7454", service="audit")


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIONROCK_SAMPLE_SERVER__LISTEN", "127.0.0.1:7002")
    monkeypatch.setenv("LIONROCK_SAMPLE_SERVER__MAX_CONCURRENT_RPCS", "5")
    assert load_settings(SampleSettings, ["--config", config]).server.listen == "127.0.0.1:7002"
    settings = load_settings(SampleSettings, ["--config", config, "--server.listen", "127.0.0.1:7003"])
    assert (settings.server.listen, settings.server.max_concurrent_rpcs) == ("127.0.0.1:7003", 5)
    assert settings.server.trust_domain == "lionrock.local"


def test_structures_are_written_as_yaml_or_json(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIONROCK_SAMPLE_AUDIT", '{"target": "127.0.0.1:1", "service": "audit"}')
    settings = load_settings(SampleSettings, ["--config", config, "--models", "{a: /a}"])
    assert settings.models == {"smollm2": Path("/models/smollm2"), "a": Path("/a")}
    assert settings.audit == PeerSettings(target="127.0.0.1:1", service="audit")


def test_constructing_settings_reads_no_environment(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    loaded = load_settings(SampleSettings, ["--config", config])
    monkeypatch.setenv("LIONROCK_SAMPLE_LIMITS__WORDS", "9")
    assert SampleSettings(server=loaded.server).limits.words == 7


def test_a_bad_value_is_named_and_not_shown(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = problems(capsys, "--config", config, "--server.max_concurrent_rpcs", "hunter2")
    assert "--server.max_concurrent_rpcs" in said
    assert "LIONROCK_SAMPLE_SERVER__MAX_CONCURRENT_RPCS" in said
    assert "hunter2" not in said
    assert "Traceback" not in said


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = problems(capsys)
    assert "--server" in said


def test_a_setting_that_does_not_exist_is_refused_wherever_it_comes_from(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "--server.listn" in problems(capsys, "--config", config, "--server.listn", "x")
    typo = tmp_path / "typo.yaml"
    typo.write_text(YAML.replace("listen:", "listn:"))
    assert "server.listn" in problems(capsys, "--config", str(typo))
    monkeypatch.setenv("LIONROCK_SAMPLE_SERVER__LISTN", "x")
    assert "LIONROCK_SAMPLE_SERVER__LISTN" in problems(capsys, "--config", config)
    monkeypatch.delenv("LIONROCK_SAMPLE_SERVER__LISTN")
    monkeypatch.setenv("LIONROCK_SAMPLE_SEVER", "x")
    assert "LIONROCK_SAMPLE_SEVER: no such setting" in problems(capsys, "--config", config)


@pytest.mark.parametrize(("text", "said"), [("a: [", "line 1"), ("- a", "mapping"), ("\x00", "not YAML")])
def test_a_file_that_is_no_configuration_is_refused(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert said in problems(capsys, "--config", str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in problems(capsys, "--config", str(tmp_path / "nope.yaml"))


def test_help_documents_every_setting_with_default_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(SampleSettings, ["--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--server.max_deadline_s VALUE longest deadline" in said
    assert "(default: 600; LIONROCK_SAMPLE_SERVER__MAX_DEADLINE_S)" in said
    assert "(required; LIONROCK_SAMPLE_SERVER__TLS__CERT_FILE)" in said
    assert "words at most (default: 7; LIONROCK_SAMPLE_LIMITS__WORDS)" in said
    assert "--models" in said


def test_every_setting_of_the_chassis_has_a_description() -> None:
    def undocumented(model: type[BaseModel], path: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found += undocumented(field.annotation, f"{path}{name}.")
            elif not field.description:
                found.append(path + name)
        return found

    assert undocumented(ServiceSettings, "") + undocumented(PeerSettings, "peer.") == []
