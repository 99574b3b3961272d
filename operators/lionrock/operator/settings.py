"""What the operator is told, read once in `__main__`. The chart writes it as one YAML file.

Bad values end the program here, by name. `decision_settings` is what the deciding files get of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from lionrock.chassis.settings import ProgramSettings, TlsSettings
from lionrock.operator.cluster import SERVER_SHARE
from lionrock.operator.decision_settings import DecisionSettings, Gang, Opening, Openings, PodSettings, PodSizes
from lionrock.operator.election import LeaseTimes
from lionrock.operator.pools import PoolRules, TerritoryRule
from lionrock.operator.tenant_admission import TenantRules

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
_NAMESPACE = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_BUILT_IN_SIGNER = "lionrock.io/mesh"
_MIB = 1 << 20


class TerritorySettings(BaseModel):
    """How nodes of one territory are labelled."""

    model_config = _FROZEN

    key: str = Field(default="topology.kubernetes.io/region", min_length=1, max_length=316, description="label of the nodes")
    values: frozenset[str] = Field(min_length=1, max_length=64, description="values of the label that are in the territory")


class GangSettings(BaseModel):
    """Who sees to it that all pods of a replica get their chips together."""

    model_config = _FROZEN

    by: Literal["operator", "kueue", "volcano"] = Field(
        default="operator", description="operator: scheduling gates and reserved nodes; the others as far as they are installed"
    )
    queue: str | None = Field(default=None, min_length=1, max_length=253, description="queue of Kueue or Volcano, if one is named")

    @model_validator(mode="after")
    def _queue_of_whom(self) -> Self:
        if self.queue is not None and self.by == "operator":
            raise ValueError("a queue is one of kueue or volcano")
        return self


class OpeningSettings(BaseModel):
    """Somebody whom pods of models may call, or who may call them."""

    model_config = _FROZEN

    peers: tuple[dict[str, Any], ...] = Field(
        min_length=1, max_length=32, description="peers as a NetworkPolicy has them; an empty one would mean everybody"
    )
    ports: tuple[int, ...] = Field(min_length=1, max_length=16, description="TCP ports")

    @field_validator("peers")
    @classmethod
    def _somebody(cls, peers: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        allowed = {"namespaceSelector", "podSelector", "ipBlock"}
        if any(not peer or peer.keys() - allowed for peer in peers):
            raise ValueError(f"a peer has one or more of {', '.join(sorted(allowed))}, and nothing else")
        return peers

    def opening(self) -> Opening:
        """Return it as the deciding files know it."""
        return Opening(peers=self.peers, ports=self.ports)


class OpeningsSettings(BaseModel):
    """All that crosses the border of a model's pods. What is unset is closed."""

    model_config = _FROZEN

    gateways: OpeningSettings = Field(description="who may ask for answers")
    kuberay: OpeningSettings = Field(description="who declares Serve applications")
    operator: OpeningSettings | None = Field(default=None, description="who asks whether a model is ready")
    dns: OpeningSettings | None = Field(default=None, description="name servers; unset: kube-dns in kube-system")
    api_server: OpeningSettings | None = Field(default=None, description="where certificates are asked for")
    telemetry: OpeningSettings | None = Field(default=None, description="the OTLP collector")
    objects: OpeningSettings | None = Field(default=None, description="object stores inside the territories")

    def openings(self) -> Openings:
        """Return them as the deciding files know them."""
        stated = {name: getattr(self, name) for name in type(self).model_fields}
        return Openings(**{name: value.opening() for name, value in stated.items() if value is not None})


class PodSizeSettings(BaseModel):
    """CPU in thousandths of a core, memory in MiB, of the containers of a model's pods."""

    model_config = _FROZEN

    head_cpu_m: int = Field(default=1000, ge=100, description="head of the Ray cluster, thousandths of a core")
    head_memory_mib: int = Field(default=3072, ge=512, description="head of the Ray cluster, MiB")
    front_cpu_m: int = Field(default=500, ge=50, description="front, thousandths of a core")
    front_memory_mib: int = Field(default=1024, ge=128, description="front, MiB")
    worker_cpu_m: int = Field(default=1000, ge=100, description="a worker without chips, thousandths of a core")
    worker_cpu_m_per_chip: int = Field(default=1000, ge=0, description="a worker for each of its chips, thousandths of a core")
    worker_memory_mib: int = Field(default=3072, ge=512, description="a worker without chips, MiB")
    worker_memory_mib_per_chip: int = Field(default=6144, ge=0, description="a worker for each of its chips, MiB")
    tokenization_cpu_m: int = Field(default=250, ge=10, description="a revision's tokenization, thousandths of a core")
    tokenization_memory_mib: int = Field(default=1024, ge=128, description="a revision's tokenization, MiB")
    init_cpu_m: int = Field(default=100, ge=10, description="init containers, thousandths of a core")
    init_memory_mib: int = Field(default=256, ge=64, description="init containers, MiB")
    object_store_mib: int = Field(default=100, ge=80, description="Ray's object store, MiB")
    shm_mib: int = Field(default=2048, ge=256, description="shared memory, MiB")
    tmp_mib: int = Field(default=4096, ge=256, description="Ray's files and logs, MiB")

    def sizes(self) -> PodSizes:
        """Return them as the deciding files know them."""
        stated = self.model_dump()
        return PodSizes(
            **{
                name.replace("_mib", "_bytes") if "_mib" in name else name: value * _MIB if "_mib" in name else value
                for name, value in stated.items()
            }
        )


class ModelPodSettings(BaseModel):
    """What is the same in all pods of models."""

    model_config = _FROZEN

    service_account: str = Field(default="lionrock-engine", pattern=_NAME, description="service account in each model's namespace")
    ray_version: str = Field(default="2.60.0", pattern=r"^[0-9]+(\.[0-9]+){2}$", description="Ray in the engine images")
    image_pull_secrets: tuple[str, ...] = Field(default=(), max_length=16, description="Secrets in each model's namespace")
    otlp_endpoint: str | None = Field(default=None, description="OTLP collector of the pods; unset: nothing is sent")
    priority_class: str | None = Field(default=None, pattern=_NAME, description="priority class")
    user_id: int = Field(default=65532, ge=1, description="user and group that the images run as")
    tokenization_replicas: int = Field(default=1, ge=1, le=64, description="pods of each revision's tokenization")
    tokenization_drain_s: int = Field(
        default=600, ge=1, le=3600, description="time in which tokenization that ends finishes the answers it decodes, in seconds"
    )
    sizes: PodSizeSettings = PodSizeSettings()
    termination_grace_s: int = Field(default=60, ge=15, le=3600, description="time until a pod that ends is killed, in seconds")
    drain_s: int = Field(default=25, ge=6, description="of it, time in which answers are finished, in seconds")


class ImageSettings(BaseModel):
    """Images of what models' pods run beside their engine."""

    model_config = _FROZEN

    tokenization: str | None = Field(
        default=None, min_length=1, description="image of the revisions' tokenization; unset: the engine image of each"
    )


class CertificateSettings(BaseModel):
    """Certificates of models' pods, which name the pod's own address."""

    model_config = _FROZEN

    mode: Literal["builtin", "cert-manager", "spire"] = Field(
        default="builtin",
        description="builtin: the operator approves and signs; cert-manager: it approves; spire: it has no part in it",
    )
    signer_name: str = Field(
        default=_BUILT_IN_SIGNER,
        pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$",
        max_length=571,
        description="signer that the pods ask; of cert-manager: clusterissuers.cert-manager.io/NAME",
    )
    authority_secret: str | None = Field(
        default=None, pattern=_NAME, description="builtin: Secret with ca.key and ca.crt, in the operator's namespace"
    )

    @model_validator(mode="after")
    def _who_signs(self) -> Self:
        if (self.mode == "builtin") != (self.authority_secret is not None):
            raise ValueError("authority_secret is stated with mode builtin, and with no other")
        if (self.mode == "cert-manager") != (self.signer_name != _BUILT_IN_SIGNER):
            raise ValueError("signer_name is stated with mode cert-manager, and with no other")
        return self


class LeaseSettings(BaseModel):
    """The lease by which one of several operators leads."""

    model_config = _FROZEN

    name: str = Field(default="lionrock-operator", pattern=_NAME, description="name of the Lease")
    duration_s: int = Field(default=15, ge=2, le=300, description="time after which an unrenewed lease may be taken, in seconds")
    renew_deadline_s: float = Field(default=10, gt=0, description="time without a renewal after which it is given up, in seconds")
    retry_s: float = Field(default=2, gt=0, description="time between two renewals, or two looks, in seconds")

    @model_validator(mode="after")
    def _times(self) -> Self:
        self.times()
        return self

    def times(self) -> LeaseTimes:
        """Return the times. Raises ValueError for those by which two could lead."""
        return LeaseTimes(self.duration_s, self.renew_deadline_s, self.retry_s)


class TimingSettings(BaseModel):
    """How patient the operator is, in seconds."""

    model_config = _FROZEN

    revision_drain_s: float = Field(default=60, ge=0, description="time that a revision without requests goes on")
    return_after_s: float = Field(default=300, ge=0, description="time on another pool before a model returns to a preferred one")
    unschedulable_after_s: float = Field(default=30, ge=1, description="time that a pod may be refused by the scheduler")
    lost_node_after_s: float = Field(default=60, ge=1, description="time that a node may be silent")
    resync_s: float = Field(default=600, ge=1, description="time after which everything is looked at again")
    relist_s: float = Field(default=1800, ge=1, description="time after which everything is fetched again")
    drain_s: float = Field(default=10, gt=0, description="time in which the operator finishes its writes when it is told to end")


class GatewaysSettings(BaseModel):
    """Gateways that are asked how revisions answer: what canaries and autoscaling go by."""

    model_config = _FROZEN

    target: str = Field(
        pattern=r"^.+:\d{1,5}$",
        description="host:port whose addresses are the gateways' pods: that of a headless Service",
    )
    namespace: str | None = Field(
        default=None, pattern=_NAMESPACE, description="namespace whose routes the gateways read; unset: the operator's own"
    )
    tls: TlsSettings
    interval_s: float = Field(default=15, ge=0.1, le=600, description="time between two rounds of asking, in seconds")
    answer_s: float = Field(default=3, gt=0, le=60, description="deadline of each gateway's answer, in seconds")


class TenantsSettings(BaseModel):
    """What the gateways of a namespace make of its Tenants, beside what is wrong with one by itself."""

    model_config = _FROZEN

    named: tuple[str, ...] = Field(
        default=(), max_length=10_000, description="tenants of the gateways' own settings, which no Tenant can be called like"
    )
    has_state: bool = Field(default=True, description="whether the gateways have a state; without one they refuse quotas")
    keeps_consents: bool = Field(default=True, description="whether the gateways keep consents")


class OperatorSettings(ProgramSettings):
    """The operator: places models on chips and keeps them there."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="LIONROCK_OPERATOR_", env_nested_delimiter="__")

    namespace: str = Field(pattern=_NAMESPACE, description="namespace of the operator, its lease and the mesh's authority")
    instance: str = Field(min_length=1, max_length=128, description="name of this copy of the operator, its pod's")
    namespaces: frozenset[str] = Field(default=frozenset(), max_length=32, description="namespaces with models; empty: all")
    kubeconfig: Path | None = Field(default=None, description="kubeconfig file; unset: the pod's service account")
    trust_domain: str = Field(pattern=r"^[a-z0-9._-]{1,255}$", description="SPIFFE trust domain of the mesh")
    territories: dict[str, TerritorySettings] = Field(min_length=1, max_length=64, description="by ISO 3166-1 code, e.g. HK")
    engine_images: dict[str, str] = Field(default={}, max_length=64, description="engine image by chip, for pools that name none")
    images: ImageSettings = ImageSettings()
    gang: GangSettings = GangSettings()
    openings: OpeningsSettings
    pods: ModelPodSettings = ModelPodSettings()
    certificates: CertificateSettings
    tenants: TenantsSettings = TenantsSettings()
    gateways: GatewaysSettings | None = Field(
        default=None, description="whom to ask for figures; unset: nobody, so that canaries are held and nothing is scaled by load"
    )
    lease: LeaseSettings = LeaseSettings()
    timing: TimingSettings = TimingSettings()
    listen: str = Field(
        default="0.0.0.0:8080",
        pattern=r"^.+:\d{1,5}$",
        description="host:port of /healthz, /readyz and /metrics",
    )
    call_timeout_s: float = Field(default=15, ge=1, le=60, description="deadline of a call to the API server, in seconds")
    writers: int = Field(default=4, ge=1, le=32, description="objects that are written at a time")

    @field_validator("territories")
    @classmethod
    def _codes(cls, territories: dict[str, TerritorySettings]) -> dict[str, TerritorySettings]:
        if any(len(code) != 2 or not code.isascii() or not code.isupper() for code in territories):
            raise ValueError("a territory is named by its ISO 3166-1 alpha-2 code")
        return territories

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.call_timeout_s * SERVER_SHARE >= self.lease.duration_s - self.lease.retry_s:
            raise ValueError("two thirds of call_timeout_s must be less than the lease's duration_s less its retry_s")
        self.decisions()
        return self

    def decisions(self) -> DecisionSettings:
        """Return what the deciding files need. Raises ValueError for values that contradict each other."""
        territories = {code: TerritoryRule(rule.key, rule.values) for code, rule in self.territories.items()}
        pods = self.pods.model_dump(exclude={"sizes"})
        return DecisionSettings(
            namespace=self.namespace,
            pools=PoolRules(territories, self.engine_images),
            pods=PodSettings(
                trust_domain=self.trust_domain,
                certificate_signer=self.certificates.signer_name,
                tokenization_image=self.images.tokenization,
                sizes=self.pods.sizes.sizes(),
                **pods,
            ),
            openings=self.openings.openings(),
            tenants=TenantRules(
                self.trust_domain, frozenset(self.tenants.named), self.tenants.has_state, self.tenants.keeps_consents
            ),
            gang=Gang(by=self.gang.by, queue=self.gang.queue),
            figures_of=None if self.gateways is None else self.gateways.namespace or self.namespace,
            revision_drain_s=self.timing.revision_drain_s,
            return_after_s=self.timing.return_after_s,
            unschedulable_after_s=self.timing.unschedulable_after_s,
            lost_node_after_s=self.timing.lost_node_after_s,
        )
