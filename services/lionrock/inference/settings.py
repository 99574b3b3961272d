"""Settings of the inference service: what it serves, on which chips, within which bounds, and where its Ray is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_settings import SettingsConfigDict

from lionrock.chassis.settings import ServiceSettings, TelemetrySettings, TlsSettings
from lionrock.planner.chips import Chip, InvalidChip, chip, described_chip

_FROZEN = ConfigDict(frozen=True, extra="forbid")

# Unix socket names end at 107 bytes; Ray appends /session_<date>_<pid>/sockets/plasma_store.
MAX_TEMP_DIR_BYTES = 38

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class LimitSettings(BaseModel):
    """Bounds of one replica's engine."""

    model_config = _FROZEN

    max_running: int = Field(default=64, ge=1, le=4096, description="sequences in one step")
    max_waiting: int = Field(default=256, ge=0, description="sequences that wait; more are refused with ENGINE_FULL")
    max_step_tokens: int = Field(default=512, ge=16, description="tokens of one step, prompts cut into chunks")
    shared_step_s: float = Field(
        default=0.1,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="seconds that a step should take at most while several tenants share the engine, torch backend; 0: no aim",
    )
    max_answer_tokens: int = Field(default=131072, ge=1, description="tokens of one answer")
    prefix_cache: bool = Field(default=True, description="whether requests of one tenant share the KV blocks of equal prefixes")
    max_drafts: int = Field(
        default=8, ge=0, le=64, description="guesses of one sequence that a step may check (prompt look-up); 0: none"
    )


class VllmSettings(BaseModel):
    """What only the vllm backend needs to know."""

    model_config = _FROZEN

    enforce_eager: bool = Field(default=False, description="start without compiling the model: sooner ready, slower steps")
    start_timeout_s: float = Field(default=600, gt=0, description="longest start, loading and compiling included")


class StageSettings(BaseModel):
    """The chips of one pipeline stage, where stages run on unlike chips of one vendor."""

    model_config = _FROZEN

    chip: str = Field(description="row of the chip table")
    speed: float = Field(
        gt=0, allow_inf_nan=False, description="memory bandwidth, or any figure in proportion to it over the stages"
    )
    memory_bytes: int | None = Field(default=None, ge=1, description="memory of one chip; unset: that of the chip table")
    node_resource: str | None = Field(
        default=None, pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$", description="Ray resource of the nodes that have these chips"
    )


class ModelSettings(BaseModel):
    """One served model and how it is sharded."""

    model_config = _FROZEN

    path: Path = Field(description="model-store entry, GGUF file, or directory with safetensors files")
    backend: Literal["torch", "vllm"] = Field(
        default="torch", description="engine: Lionrock's own, or vLLM, whose package for the chip must be installed"
    )
    chip: str = Field(default="cpu", description="row of the chip table, or the name of a chip that `chip_description` describes")
    chip_description: dict[str, Any] | None = Field(
        default=None, description="a chip that the table does not know, in the words of a ChipPool's spec.description"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="type of weights, activations and KV cache"
    )
    weight_quantisation: Literal["none", "int8-w8a8", "int8-weight-only", "int4-weight-only"] = Field(
        default="none", description="what the linear layers' weights (and with w8a8 their inputs) are rounded to when loaded"
    )
    tensor_parallel: int = Field(default=1, ge=1, description="ranks that share each layer")
    pipeline_parallel: int = Field(default=1, ge=1, description="stages of layers")
    stages_per_node: int = Field(
        default=1, ge=1, description="stages whose chips are taken together on one node, which in Kubernetes is a pod"
    )
    stages: tuple[StageSettings, ...] | None = Field(
        default=None, description="unlike chips, one entry a stage; layers follow their memory and speed; unset: all are `chip`"
    )
    replicas: int = Field(default=1, ge=1, le=64, description="copies of the model, each with ranks of its own")
    kv_cache_bytes: int = Field(default=256 << 20, ge=1 << 20, description="KV cache of each rank, bytes")
    collective: str | None = Field(default=None, description="torch.distributed back end; unset: that of the chip table")
    threads_per_rank: int | None = Field(
        default=None, ge=1, description="compute threads of a CPU rank; unset: cores by ranks on the node"
    )
    native_kernels: Literal["auto", "off", "required"] = Field(
        default="auto", description="compiled CPU kernels: where there are any, never, or else the model does not start"
    )
    tokenizer_digest: Digest | None = Field(
        default=None, description="digest of the tokenizer that belongs to it, reported with answers"
    )
    limits: LimitSettings = LimitSettings()
    vllm: VllmSettings = VllmSettings()

    @model_validator(mode="after")
    def _stages_are_all_there(self) -> Self:
        if self.stages is not None and len(self.stages) != self.pipeline_parallel:
            raise ValueError(f"stages has {len(self.stages)} entries, and pipeline_parallel is {self.pipeline_parallel}")
        if self.pipeline_parallel % self.stages_per_node:
            raise ValueError(f"stages_per_node {self.stages_per_node} does not divide pipeline_parallel {self.pipeline_parallel}")
        if self.stages is not None and self.stages_per_node > 1:
            raise ValueError("stages on unlike chips are on nodes of their own: leave stages_per_node unset")
        return self

    @model_validator(mode="after")
    def _chip_is_described(self) -> Self:
        if self.chip_description is not None:
            try:
                described_chip(self.chip, self.chip_description)
            except InvalidChip as error:
                raise ValueError(f"chip_description: {error}") from None
            if self.backend == "vllm":
                raise ValueError("the vllm backend knows chips of the chip table only, and not a chip_description")
            if self.stages is not None:
                raise ValueError("stages name rows of the chip table; leave chip_description unset")
        return self

    def chip_row(self) -> Chip:
        """Return the chip, of the table or as described; of stages, that of the first. Raises UnknownChip."""
        if self.chip_description is not None:
            return described_chip(self.chip, self.chip_description)
        return chip(self.chip if self.stages is None else self.stages[0].chip)


class HealthSettings(BaseModel):
    """How lost ranks are found and how long things may take."""

    model_config = _FROZEN

    heartbeat_interval_s: float = Field(default=0.2, gt=0, description="time between two signs of life of a rank")
    heartbeat_timeout_s: float = Field(default=1.25, gt=0, description="silence after which a rank counts as lost")
    collective_timeout_s: float = Field(default=30, gt=0, description="longest wait inside a collective")
    start_timeout_s: float = Field(default=120, gt=0, description="longest start of a shard group, loading included")
    process_start_timeout_s: float = Field(default=60, gt=0, description="longest start of one rank's process, imports included")
    warm_spares: int = Field(
        default=1, ge=0, le=8, description="idle processes that take lost ranks' places; CPU ranks on the replica's node only"
    )
    resume_timeout_s: float = Field(
        default=60,
        ge=0,
        description="how long streams wait for a new shard group before they end with SHARD_GROUP_LOST",
    )


class RayNodeSettings(BaseModel):
    """What is the same on every node of the Ray cluster."""

    model_config = _FROZEN

    tls: TlsSettings = Field(description="identity for Ray's own channels; its certificate names this node's IP address")
    collective_interface: str | None = Field(default="lo", description="network interface of gloo; unset: gloo chooses")


class RaySettings(RayNodeSettings):
    """The Ray cluster: an existing one, or a local head that lives and dies with this process."""

    address: str | None = Field(default=None, description="host:port of an existing cluster's GCS; unset: a local head is started")
    token_file: Path = Field(description="file with the cluster's authentication token, readable by its owner only")
    deploy: bool = Field(
        default=True, description="deploy the models; off where somebody else declares their applications, as KubeRay does"
    )
    join_timeout_s: float = Field(
        default=300, gt=0, description="how long a cluster whose models somebody else deploys may take to be there"
    )
    temp_dir: Path | None = Field(
        default=None, description="a local head's files, a short path; unset: a new one in /tmp, removed after"
    )
    object_store_bytes: int = Field(default=100 << 20, ge=80 << 20, description="a local head's object store")
    undeploy: bool = Field(
        default=False, description="end the models of a joined cluster when the service ends; off where several fronts share them"
    )
    namespace: str = Field(default="lionrock", pattern=r"^[a-z][a-z0-9-]{0,62}$", description="Ray namespace")

    @model_validator(mode="after")
    def _temp_dir_is_short(self) -> Self:
        if self.temp_dir is not None and len(str(self.temp_dir).encode()) > MAX_TEMP_DIR_BYTES:
            raise ValueError(f"temp_dir is longer than {MAX_TEMP_DIR_BYTES} bytes, and Unix socket names are limited")
        return self

    @model_validator(mode="after")
    def _somebody_deploys(self) -> Self:
        if not self.deploy and self.address is None:
            raise ValueError("deploy is off, and in a local head nobody else deploys: set address")
        if not self.deploy and self.undeploy:
            raise ValueError("undeploy would end what somebody else deploys: leave it off")
        return self


class ApplicationSettings(BaseModel):
    """What the replicas of one model are told, wherever they run: `args` of a Serve application that is declared."""

    model_config = _FROZEN

    name: str = Field(min_length=1, max_length=128, description="name by which callers ask for the model")
    model: ModelSettings
    ray: RayNodeSettings
    health: HealthSettings = HealthSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    native_directory: Path | None = Field(default=None, description="compiled CPU kernels; see the service's setting")
    image_digest: Digest | None = Field(default=None, description="digest of the container image, reported with answers")


class InferenceSettings(ServiceSettings):
    """Inference: serves models that are sharded over the chips of a Ray cluster."""

    model_config = SettingsConfigDict(env_prefix="LIONROCK_INFERENCE_", env_nested_delimiter="__", frozen=True, extra="forbid")

    models: dict[str, ModelSettings] = Field(min_length=1, description="served models by name")
    ray: RaySettings
    health: HealthSettings = HealthSettings()
    native_directory: Path | None = Field(
        default=None, description="compiled CPU kernels, which are made there when missing; unset: in the user's cache directory"
    )
    image_digest: Digest | None = Field(default=None, description="digest of the container image, reported with answers")

    def application(self, name: str) -> ApplicationSettings:
        """Return what the replicas of one of the models are told."""
        return ApplicationSettings(
            name=name,
            model=self.models[name],
            ray=RayNodeSettings(tls=self.ray.tls, collective_interface=self.ray.collective_interface),
            health=self.health,
            telemetry=self.telemetry,
            native_directory=self.native_directory,
            image_digest=self.image_digest,
        )
