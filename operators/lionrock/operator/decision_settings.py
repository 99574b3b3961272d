"""What deciding needs to know of the installation. The operator's settings are made into this; tests write it directly.

Plain values with the units in their names. Does not know where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lionrock.operator.pools import PoolRules
from lionrock.operator.tenant_admission import TenantRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Somebody whom pods may call, or who may call them."""

    peers: tuple[Mapping[str, Any], ...]
    """Of a NetworkPolicy: namespaceSelector, podSelector, ipBlock. Not empty: an empty list would mean everybody."""
    ports: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.peers or not all(self.peers) or not self.ports:
            raise ValueError("an opening names peers and ports; it is never open to all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Openings:
    """All that crosses the border of a model's pods. None: there is no such thing."""

    gateways: Opening
    """Who may ask for answers. ports: of the front."""
    kuberay: Opening
    """Who declares Serve applications. ports: Ray's dashboard."""
    operator: Opening | None = None
    """Who asks whether the model is ready. ports: of the front's health checks."""
    dns: Opening = Opening(
        peers=(
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            },
        ),
        ports=(53,),
    )
    api_server: Opening | None = None
    """Where certificates are asked for."""
    telemetry: Opening | None = None
    """The OTLP collector."""
    objects: Opening | None = None
    """Object stores inside the territories, for models that are fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSizes:
    """CPU in thousandths of a core, memory in bytes.

    The head holds Ray's global store, its dashboard and Serve's controller, which together take some 1.5 GiB with a few dozen
    actors; the front decodes and passes on messages and imports no torch. A worker needs a core a chip for the process that drives
    it, one more for Ray, and memory for Ray, for pinned buffers, and for the pages of weights on their way to the chip.
    """

    head_cpu_m: int = 1000
    head_memory_bytes: int = 3 << 30
    front_cpu_m: int = 500
    front_memory_bytes: int = 1 << 30
    worker_cpu_m: int = 1000
    worker_cpu_m_per_chip: int = 1000
    worker_memory_bytes: int = 3 << 30
    worker_memory_bytes_per_chip: int = 6 << 30
    """Of a chip that is the host's own CPU the plan says what a rank holds, and that is added."""
    tokenization_cpu_m: int = 250
    tokenization_memory_bytes: int = 1 << 30
    init_cpu_m: int = 100
    init_memory_bytes: int = 256 << 20
    object_store_bytes: int = 100 << 20
    """Ray's, in /dev/shm: weights and tokens never pass through it."""
    shm_bytes: int = 2 << 30
    """All of /dev/shm: collectives between processes of one pod use it too. Counts as memory of who writes."""
    tmp_bytes: int = 4 << 30
    """Ray's files and logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """What is the same in all pods of models."""

    trust_domain: str
    service_account: str = "lionrock-engine"
    """In the model's namespace; it may ask for certificates and nothing else."""
    certificate_signer: str = "lionrock.io/mesh"
    ray_version: str = "2.60.0"
    image_pull_secrets: tuple[str, ...] = ()
    otlp_endpoint: str | None = None
    priority_class: str | None = None
    user_id: int = 65532
    """Of the image's user; its group is the same."""
    tokenization_image: str | None = None
    """None: the engine image of the revision."""
    tokenization_replicas: int = 1
    tokenization_drain_s: int = 600
    """Time in which tokenization that ends decodes the answers that it has begun: no less than the longest answer."""
    sizes: PodSizes = PodSizes()
    termination_grace_s: int = 60
    drain_s: int = 25
    """Time in which a pod that ends finishes its answers; less than the grace."""

    def __post_init__(self) -> None:
        if self.drain_s + 10 > self.termination_grace_s:
            raise ValueError("pods need 10 s after their drain_s, before termination_grace_s kills them")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """Who sees to it that all pods of a replica get their chips together. queue: of kueue or volcano, if one is to be named."""

    by: Literal["operator", "kueue", "volcano"] = "operator"
    queue: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionSettings:
    """Everything together."""

    pools: PoolRules
    pods: PodSettings
    openings: Openings
    namespace: str = "lionrock-system"
    """The operator's own."""
    tenants: TenantRules = field(default_factory=TenantRules)
    gang: Gang = field(default_factory=Gang)
    fronts_are_asked: bool = False
    """Whether reports say of every revision that starts if its model answers. If not, it does when Serve says RUNNING."""
    figures_of: str | None = None
    """Namespace of whose models the gateways tell figures; None: no gateways are asked."""
    revision_drain_s: float = 60
    """How long a revision without requests goes on, for the answers that it has begun."""
    return_after_s: float = 300
    """How long a model stays where it fell back to before it returns to a pool that it prefers: nobody follows pools to and fro."""
    unschedulable_after_s: float = 30
    """How long the scheduler may refuse a pod on its own node before the replica gets other chips."""
    refused_for_s: float = 600
    """How long a node on which the scheduler refused a pod is left out for its model."""
    lost_node_after_s: float = 60
    """How long a node may be silent before what is on it is given up."""
