"""Settings of `lionrock up`, and what the services are told."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from lionrock.audit.settings import AuditSettings
from lionrock.chassis.settings import load_settings
from lionrock.cli.certificates import Certificates
from lionrock.cli.configuration import START_ORDER, certificate_plan, choose_ports, configure, write_configuration
from lionrock.cli.errors import EXIT_USAGE, CommandError
from lionrock.cli.settings import MeshSettings, load_mesh_settings
from lionrock.cli.state import StateDir
from lionrock.gateway.settings import GatewaySettings
from lionrock.guardrails.settings import GuardrailsSettings
from lionrock.inference.settings import InferenceSettings
from lionrock.modelstore.source import ModelSource
from lionrock.tokenization.settings import TokenizationSettings

SETTINGS = {
    "gateway": GatewaySettings,
    "tokenization": TokenizationSettings,
    "inference": InferenceSettings,
    "guardrails": GuardrailsSettings,
    "audit": AuditSettings,
}


def test_command_line_goes_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    config = tmp_path / "mesh.yaml"
    config.write_text("port: 9000\ntensor_parallel: 1\n")
    settings = load_mesh_settings(config, {"port": 0})
    assert (settings.port, settings.tensor_parallel, settings.tenant) == (0, 1, "demo")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("porrt: 1", "porrt"),
        ("port: many", "port"),
        ("services: {door: {}}", "services.door"),
        ("[1]", "mapping"),
        ("a: [", "not YAML"),
        ("1: 2", "names"),
        ("tenant: A_b", "tenant"),
    ],
)
def test_bad_setting_is_named(tmp_path: Path, text: str, named: str) -> None:
    config = tmp_path / "mesh.yaml"
    config.write_text(text)
    with pytest.raises(CommandError, match=named) as refused:
        load_mesh_settings(config, {})
    assert refused.value.exit_code == EXIT_USAGE
    assert refused.value.fix


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"none\.yaml cannot be read"):
        load_mesh_settings(tmp_path / "none.yaml", {})


def test_every_service_accepts_what_it_is_told(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.create()
    settings = MeshSettings(port=0, services={"audit": {"region": "HK"}, "gateway": {"limits": {"max_streams": 3}}})
    certificates = Certificates(state, certificate_plan(settings))
    certificates.issue_all()
    model = ModelSource("m", "gguf", (tmp_path / "m.gguf",), "sha256:" + "0" * 64, tmp_path)
    configuration = configure(settings, state, certificates, choose_ports(settings), model)
    write_configuration(state, configuration)
    loaded = {name: load_settings(SETTINGS[name], ["--config", str(state.config(name))]) for name in START_ORDER}
    assert {name: each.server.listen for name, each in loaded.items()} == dict(configuration.targets)
    assert loaded["audit"].region == "HK"  # type: ignore[attr-defined]
    assert loaded["gateway"].limits.max_streams == 3  # type: ignore[attr-defined]
    assert all(each.server.tls.cert_file.exists() and each.server.reflection for each in loaded.values())
    assert all(json.loads(state.config(name).read_text()) == content for name, content in configuration.contents.items())


def test_free_ports_differ() -> None:
    assert len(set(choose_ports(MeshSettings(port=0)).values())) == len(START_ORDER) + 1


def test_taken_port_is_named_with_its_service() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"port {port} for gateway is in use"):
            choose_ports(MeshSettings(port=port))
