"""The spec of a ModelDeployment as typed values, with the defaults of the resource definition.

Reads what `charts/lionrock-crds` defines. Does not know plans, chips or status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lionrock.operator.fields import Fields, Malformed
from lionrock.operator.metadata import PoolName


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimSource:
    """Files on a PersistentVolumeClaim of the model's namespace."""

    claim_name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """Files in an OCI artifact. reference: with its digest."""

    reference: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSource:
    """Files in an S3-compatible store. secret_name: of accessKeyId and secretAccessKey, in the model's namespace."""

    endpoint: str
    bucket: str
    prefix: str
    secret_name: str


ModelFiles = ClaimSource | ImageSource | ObjectSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one replica must hold at once."""

    concurrency: int = 16
    context_tokens: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """A cut that the owner gives; absent (None in ModelSpec) it is chosen."""

    tensor: int
    pipeline: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """Replicas that follow the load."""

    min_replicas: int
    max_replicas: int
    target_waiting: int = 8
    target_ttft_ms: int = 2000
    scale_down_after_s: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """How a new revision is watched."""

    percent: int = 10
    observe_s: int = 600
    max_failed_percent: int = 1
    max_ttft_percent: int = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How a changed model takes the place of the one that runs."""

    type: str = "Auto"  # "Surge", "InPlace" or "Canary"
    canary: Canary | None = None
    progress_deadline_s: int = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What the owner of a model asks for."""

    model_name: str | None
    """Name by which callers ask for it; None: the name of the object."""
    source: ModelFiles
    config: Mapping[str, Any] | None
    """The model's config.json; None: it is read from the source."""
    tokenizer_digest: str | None
    dtype: str = "bfloat16"
    weight_quantisation: str | None = None
    """A key of the planner's WEIGHT_TYPES; None: as the checkpoint has them."""
    workload: Workload
    pools: tuple[PoolName, ...]
    """In order of preference; empty: every pool of the territory by name."""
    parallelism: Parallelism | None
    """None: chosen by the planner."""
    replicas: int = 1
    """Without autoscaling."""
    autoscaling: Autoscaling | None
    territory: str
    tenant: str | None
    """The only tenant that is served; None: shared."""
    rollout: Rollout


def parse_model_spec(spec: Fields) -> ModelSpec:
    """Read a spec. Raises Malformed."""
    model = spec.under("model")
    if spec.has("replicas") and spec.has("autoscaling"):
        raise Malformed("spec states replicas and autoscaling")
    config = model.values.get("config")
    if config is not None and not isinstance(config, Mapping):
        raise Malformed("spec.model.config is not an object")
    quantisation = model.text("weightQuantisation", "none")
    return ModelSpec(
        model_name=model.optional_text("name"),
        source=_source(model.under("source")),
        config=config,
        tokenizer_digest=model.under("tokenizer").optional_text("digest"),
        dtype=model.one_of("dtype", ("bfloat16", "float16", "float32"), "bfloat16"),
        weight_quantisation=None if quantisation == "none" else quantisation,
        workload=Workload(
            concurrency=spec.under("workload").count("concurrency", 16, least=1),
            context_tokens=spec.under("workload").count("contextTokens", 4096, least=1),
        ),
        pools=tuple(PoolName(each.text("name")) for each in spec.each("pools")),
        parallelism=_parallelism(spec.under("parallelism")),
        replicas=spec.count("replicas", 1),
        autoscaling=_autoscaling(spec.under("autoscaling")) if spec.has("autoscaling") else None,
        territory=spec.text("territory"),
        tenant=_tenant(spec.under("tenancy")),
        rollout=_rollout(spec.under("rollout")),
    )


def _source(fields: Fields) -> ModelFiles:
    given = [key for key in ("persistentVolumeClaim", "image", "object") if fields.has(key)]
    if len(given) != 1:
        raise Malformed(f"{fields.path} states one of persistentVolumeClaim, image and object")
    files = fields.under(given[0])
    if given[0] == "persistentVolumeClaim":
        return ClaimSource(claim_name=files.text("claimName"), path=files.text("path", ""))
    if given[0] == "image":
        return ImageSource(reference=files.text("reference"), path=files.text("path", ""))
    return ObjectSource(
        endpoint=files.text("endpoint"),
        bucket=files.text("bucket"),
        prefix=files.text("prefix"),
        secret_name=files.text("secretName"),
    )


def _parallelism(fields: Fields) -> Parallelism | None:
    if fields.one_of("type", ("Auto", "Given"), "Auto") == "Auto":
        return None
    return Parallelism(tensor=fields.count("tensor", least=1), pipeline=fields.count("pipeline", 1, least=1))


def _autoscaling(fields: Fields) -> Autoscaling:
    least, most = fields.count("minReplicas", least=1), fields.count("maxReplicas", least=1)
    if least > most:
        raise Malformed(f"{fields.at('minReplicas')} is more than maxReplicas")
    return Autoscaling(
        min_replicas=least,
        max_replicas=most,
        target_waiting=fields.count("targetWaiting", 8, least=1),
        target_ttft_ms=fields.count("targetTTFTMilliseconds", 2000, least=1),
        scale_down_after_s=fields.count("scaleDownAfterSeconds", 600),
    )


def _tenant(fields: Fields) -> str | None:
    if fields.one_of("type", ("Shared", "Dedicated"), "Shared") == "Shared":
        return None
    return fields.text("tenant")


def _rollout(fields: Fields) -> Rollout:
    kind = fields.one_of("type", ("Auto", "Surge", "InPlace", "Canary"), "Auto")
    canary = None
    if kind == "Canary":
        given = fields.under("canary")
        canary = Canary(
            percent=given.count("percent", 10, least=1),
            observe_s=given.count("observeSeconds", 600, least=1),
            max_failed_percent=given.count("maxFailedPercent", 1),
            max_ttft_percent=given.count("maxTTFTPercent", 150, least=100),
        )
    return Rollout(type=kind, canary=canary, progress_deadline_s=fields.count("progressDeadlineSeconds", 1800, least=1))
