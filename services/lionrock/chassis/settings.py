"""Settings: read once, in `__main__`; frozen; an unknown name or a bad value ends the program by name.

Order: command line, then environment, then the YAML file that --config names. `--help` is made from the models, so that a setting
cannot be undocumented. Constructing a settings class directly reads nothing but its arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

MIB = 2**20
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class TlsSettings(BaseModel):
    """Files of one identity. They are read again when they change, so replace them by renaming."""

    model_config = _FROZEN

    cert_file: Path = Field(description="certificate chain, PEM")
    key_file: Path = Field(description="private key, PEM")
    ca_file: Path = Field(description="certificates of the authorities that are trusted, PEM")


class ServerSettings(BaseModel):
    """One gRPC port and its limits."""

    model_config = _FROZEN

    listen: str = Field(
        default="127.0.0.1:0", pattern=r"^.+:\d{1,5}$", description="host:port to listen on; port 0 takes a free one"
    )
    tls: TlsSettings
    token_listen: str | None = Field(
        default=None,
        pattern=r"^.+:\d{1,5}$",
        description="host:port of a second gRPC port, whose callers bring a bearer token and no certificate; unset: there is none",
    )
    token_tls: TlsSettings | None = Field(default=None, description="certificate of the second port; unset: that of the first")
    trust_domain: str = Field(
        pattern=r"^[a-z0-9._-]{1,255}$", description="SPIFFE trust domain of this mesh; callers of others are refused"
    )
    max_message_bytes: int = Field(default=8 * MIB, ge=1024, le=256 * MIB, description="largest request or response message")
    max_concurrent_rpcs: int = Field(default=256, ge=1, description="RPCs served at once; more are refused with OVERLOADED")
    max_concurrent_rpcs_per_caller: int | None = Field(
        default=None, ge=1, description="the same for one identity; unset: a quarter for a tenant's callers, all for a service"
    )
    max_connections: int = Field(default=1024, ge=1, description="connections open at once; more are refused")
    default_deadline_s: float = Field(default=30, gt=0, description="deadline of an RPC whose caller gave none, in seconds")
    max_deadline_s: float = Field(default=600, gt=0, description="longest deadline; a longer one is cut to it, in seconds")
    stream_idle_timeout_s: float = Field(default=120, gt=0, description="longest silence on a request stream, in seconds")
    drain_grace_s: float = Field(default=20, ge=0, description="time that running RPCs get to finish after SIGTERM, in seconds")
    leave_on_drain: bool = Field(
        default=False,
        description="after SIGTERM close the port and send callers to other replicas (GOAWAY) while running RPCs finish; without"
        " other replicas leave it off: callers then get SHUTTING_DOWN and when to come back",
    )
    max_connection_age_s: float = Field(
        default=3600, gt=0, description="connections are renewed after this time, and the caller's certificate with them"
    )
    reflection: bool = Field(default=False, description="serve gRPC reflection to callers of the trust domain")
    probe_listen: str | None = Field(
        default=None,
        pattern=r"^.+:\d{1,5}$",
        description="host:port that answers health checks, and nothing else, in clear text, for a kubelet, which has no"
        " certificate; unset: none",
    )
    metrics_listen: str | None = Field(
        default=None,
        pattern=r"^.+:\d{1,5}$",
        description="host:port with /metrics for Prometheus, /healthz, /readyz and /version, in clear text; unset: none",
    )
    ready_file: Path | None = Field(default=None, description="file that gets the port number as text once the server listens")


class TelemetrySettings(BaseModel):
    """Traces, metrics and logs. None of them ever holds text of prompts or answers."""

    model_config = _FROZEN

    otlp_endpoint: str | None = Field(
        default=None, description="OTLP/gRPC collector, e.g. https://collector:4317; unset: nothing is sent"
    )
    otlp_ca_file: Path | None = Field(
        default=None, description="authorities trusted for the collector, PEM; unset: those of the system"
    )
    span_dir: Path | None = Field(
        default=None, description="directory for <service>-<pid>.jsonl with spans in OTLP/JSON; unset: none"
    )
    span_file_max_bytes: int = Field(
        default=16 * MIB, ge=64 * 1024, description="a span file that reaches this size is renamed to .1 and begun anew"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least level that is logged")
    sample_ratio: float = Field(default=1.0, ge=0, le=1, description="part of the traces that begin here and are recorded")
    metrics_interval_s: float = Field(default=30, gt=0, description="time between two exports of metrics, in seconds")


class PeerSettings(BaseModel):
    """A service of the mesh that this one calls."""

    model_config = _FROZEN

    target: str = Field(min_length=1, description="host:port, or dns:///name:port, whose addresses share the calls")
    service: str = Field(
        pattern=r"^[a-z][a-z0-9-]{0,62}$", description="name that its certificate must carry: <service>.lionrock.internal"
    )
    timeout_s: float = Field(default=30, gt=0, description="deadline of a call that is given none, in seconds")


class ProgramSettings(BaseSettings):
    """What every program of the mesh has, whether it serves gRPC or not."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__")

    telemetry: TelemetrySettings = TelemetrySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments only: reading the environment is `load_settings`' business."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


class ServiceSettings(ProgramSettings):
    """What every service has. A service subclasses it and sets its env_prefix, e.g. LIONROCK_AUDIT_."""

    server: ServerSettings


S = TypeVar("S", bound=ProgramSettings)


@dataclass(frozen=True, slots=True)
class _Setting:
    """One leaf of the settings tree."""

    path: tuple[str, ...]
    field: FieldInfo

    @property
    def option(self) -> str:
        return "--" + ".".join(self.path)

    def variable(self, prefix: str) -> str:
        return (prefix + "__".join(self.path)).upper()

    def text(self, prefix: str) -> str:
        if self.field.is_required():
            default = "required"
        elif self.field.default is PydanticUndefined:
            default = f"default: {self.field.get_default(call_default_factory=True)}"
        else:
            default = "default: unset" if self.field.default is None else f"default: {self.field.default}"
        return f"{self.field.description or ''} ({default}; {self.variable(prefix)})".strip().replace("%", "%%")

    @property
    def structured(self) -> bool:
        """Whether the value is a list, a mapping or a model, written as YAML (and so as JSON) on the command line."""
        text = str(self.field.annotation)
        return any(mark in text for mark in ("dict[", "list[", "tuple[", "set[", "Mapping[", "Sequence[")) or (
            isinstance(self.field.annotation, type) and issubclass(self.field.annotation, BaseModel)
        )


def _leaves(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[_Setting]:
    for name, field in model.model_fields.items():
        nested = _nested(field.annotation)
        if nested is not None:
            yield from _leaves(nested, (*path, name))
        else:
            yield _Setting((*path, name), field)


def _nested(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a setting that is one, or one or nothing."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType] if isinstance(annotation, UnionType) else [annotation]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel) else None


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _refuse(program: str, problems: Sequence[str]) -> SystemExit:
    for problem in problems:
        print(f"{program}: {problem}", file=sys.stderr)
    return SystemExit(2)


def _parser(cls: type[ProgramSettings], program: str, prefix: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [--config FILE] [--SETTING VALUE ...]",
        description=(cls.__doc__ or "").strip(),
        epilog="Order: command line, environment, configuration file. Lists and mappings are written as YAML or JSON.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings, nested as the names below")
    for setting in _leaves(cls):
        parser.add_argument(setting.option, dest=".".join(setting.path), metavar="VALUE", default=None, help=setting.text(prefix))
    return parser


def _read_yaml(path: Path, program: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refuse(program, [f"--config: {path}: {error.strerror}"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise _refuse(program, [f"--config: {path} is not YAML{where}"]) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise _refuse(program, [f"--config: {path} must hold a mapping"])
    return content


def _from_arguments(cls: type[ProgramSettings], arguments: argparse.Namespace, program: str) -> dict[str, Any]:
    import yaml

    merged: dict[str, Any] = {}
    for setting in _leaves(cls):
        text = getattr(arguments, ".".join(setting.path))
        if text is None:
            continue
        try:
            value: Any = yaml.safe_load(text) if setting.structured else text
        except yaml.YAMLError:
            raise _refuse(program, [f"{setting.option}: is not YAML"]) from None
        for name in reversed(setting.path):
            value = {name: value}
        merged = _merge(merged, value)
    return merged


def _unknown_variables(cls: type[ProgramSettings], prefix: str) -> list[str]:
    """Environment variables with our prefix that name no setting: a typing error that must not pass unseen."""
    known = tuple(f"{prefix}{name}".upper() for name in cls.model_fields)
    return [
        f"{name}: no such setting"
        for name in sorted(os.environ)
        if prefix
        and name.upper().startswith(prefix.upper())
        and not any(name.upper() == k or name.upper().startswith(k + "__") for k in known)
    ]


def load_settings(cls: type[S], argv: Sequence[str]) -> S:
    """Read settings for a program. Raises SystemExit(2) after naming what is wrong, without values, which may be secrets."""
    program = f"python -m {cls.__module__.rpartition('.')[0]}"
    prefix = cls.model_config.get("env_prefix") or ""
    arguments = _parser(cls, program, prefix).parse_args(argv)
    values = _read_yaml(arguments.config, program) if arguments.config else {}
    unknown = _unknown_variables(cls, prefix)
    if unknown:
        raise _refuse(program, unknown)
    values = _merge(values, EnvSettingsSource(cls)())
    values = _merge(values, _from_arguments(cls, arguments, program))
    try:
        return cls(**values)
    except ValidationError as error:
        raise _refuse(
            program, [_problem(found["loc"], found["msg"], prefix) for found in error.errors(include_input=False)]
        ) from None


def _problem(location: tuple[int | str, ...], message: str, prefix: str) -> str:
    names = [str(part) for part in location]
    return f"--{'.'.join(names)} ({(prefix + '__'.join(names)).upper()}): {message}"
