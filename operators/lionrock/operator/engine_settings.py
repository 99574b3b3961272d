"""What the engine's processes are told: settings of the front, and arguments of the Serve application.

Both are read by `lionrock.inference.settings` (InferenceSettings, ApplicationSettings); a test really loads them. Paths are those
of the pods that `ray_pods` makes.
"""

from __future__ import annotations

import re
from typing import Any, Final

from lionrock.operator.decision_settings import PodSettings
from lionrock.operator.resources import ModelFiles, ObjectSource
from lionrock.operator.revision_template import RevisionTemplate

FRONT_PORT: Final = 50053
PROBE_PORT: Final = 50054
CONFIG_DIRECTORY: Final = "/etc/lionrock"
CONFIG_FILE: Final = f"{CONFIG_DIRECTORY}/inference.yaml"
TLS_DIRECTORY: Final = "/run/lionrock/tls"
TOKEN_FILE: Final = "/run/lionrock/ray/auth_token"  # noqa: S105  # a path
MODEL_DIRECTORY: Final = "/var/lib/lionrock/model"
STEP_TOKENS: Final = 2048
"""Tokens of one step: what the planner counts activations for."""
_DIGEST: Final = re.compile(r"@(sha256:[0-9a-f]{64})$")


def model_path(source: ModelFiles) -> str:
    """Where the model's files are in the pods: a directory or a GGUF file."""
    if isinstance(source, ObjectSource) or not source.path:
        return MODEL_DIRECTORY
    return f"{MODEL_DIRECTORY}/{source.path.strip('/')}"


def application_arguments(template: RevisionTemplate, replicas: int, settings: PodSettings) -> dict[str, Any]:
    """`args` of the Serve application: fields of ApplicationSettings."""
    arguments: dict[str, Any] = {
        "name": template.served_name,
        "model": _model(template, replicas),
        "ray": {"tls": tls(), "collective_interface": None},
        "health": {"start_timeout_s": 1800, "process_start_timeout_s": 300},
        "telemetry": telemetry(settings),
    }
    if (found := _DIGEST.search(template.image)) is not None:
        arguments["image_digest"] = found[1]
    return arguments


def front_settings(template: RevisionTemplate, replicas: int, settings: PodSettings) -> dict[str, Any]:
    """Fields of InferenceSettings. The Ray cluster's address is that of the pod, so it comes from the environment."""
    arguments = application_arguments(template, replicas, settings)
    front: dict[str, Any] = {
        "server": {
            "listen": f"0.0.0.0:{FRONT_PORT}",
            "probe_listen": f"0.0.0.0:{PROBE_PORT}",
            "tls": tls(),
            "trust_domain": settings.trust_domain,
            "drain_grace_s": settings.drain_s - 5,
        },
        "telemetry": arguments["telemetry"],
        "models": {template.served_name: arguments["model"]},
        "ray": {**arguments["ray"], "token_file": TOKEN_FILE, "deploy": False},
        "health": arguments["health"],
    }
    if "image_digest" in arguments:
        front["image_digest"] = arguments["image_digest"]
    return front


def _model(template: RevisionTemplate, replicas: int) -> dict[str, Any]:
    model: dict[str, Any] = {
        "path": model_path(template.source),
        "backend": template.backend,
        "chip": template.chip,
        "dtype": template.dtype,
        "weight_quantisation": template.weight_quantisation or "none",
        "tensor_parallel": template.tensor_parallel,
        "pipeline_parallel": template.pipeline_parallel,
        "stages_per_node": template.stages_per_pod,
        "replicas": max(1, replicas),
        "kv_cache_bytes": template.kv_cache_bytes,
        "limits": {
            "max_running": template.concurrency,
            "max_waiting": 4 * template.concurrency,
            "max_step_tokens": STEP_TOKENS,
        },
    }
    if template.chip_description is not None:
        model["chip_description"] = dict(template.chip_description)
    if template.tokenizer_digest is not None:
        model["tokenizer_digest"] = template.tokenizer_digest
    return model


def tls() -> dict[str, str]:
    """Where enrolment puts a pod's certificate: fields of TlsSettings."""
    return {
        "cert_file": f"{TLS_DIRECTORY}/tls.crt",
        "key_file": f"{TLS_DIRECTORY}/tls.key",
        "ca_file": f"{TLS_DIRECTORY}/ca.crt",
    }


def telemetry(settings: PodSettings) -> dict[str, Any]:
    """Fields of TelemetrySettings."""
    return {} if settings.otlp_endpoint is None else {"otlp_endpoint": settings.otlp_endpoint}
