"""One operator, put together: informers, election, reconciler, approver, and who may act when.

A candidate keeps its informers running while another leads, so that it can take over at once. Who comes to lead first fetches all
models anew, since chips are reserved in their status and the watch may lag behind what the leader before wrote last; only then does
it act. Ending is the other way round: no more keys, the writes that were begun, and then the lease is given back.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from lionrock.chassis.telemetry import tracer
from lionrock.operator.actions import Decision, Key, model_key
from lionrock.operator.api_errors import ApiError
from lionrock.operator.api_resources import (
    CHILDREN,
    CHIP_POOL,
    CONFIG_MAP,
    LEASE,
    MODEL_DEPLOYMENT,
    NODE,
    POD,
    SIGNING_REQUEST,
    TENANT,
    Resource,
)
from lionrock.operator.approver import Approver, ApproverLoop, Authority, AuthoritySecret
from lionrock.operator.cluster import Cluster, Object, Selection, ServiceAccount
from lionrock.operator.decision import decide
from lionrock.operator.desired_state import child_name
from lionrock.operator.effects import Effects, Observers
from lionrock.operator.election import Election, ElectionLoop
from lionrock.operator.event_recorder import EventRecorder
from lionrock.operator.front_health import Front, fronts_to_ask
from lionrock.operator.informers import Change, Informer, Pace
from lionrock.operator.lease_store import ClusterLease
from lionrock.operator.metadata import MANAGED_BY, MANAGED_BY_LABEL
from lionrock.operator.observation import Observation
from lionrock.operator.reconciler import Reconciler
from lionrock.operator.reports import Reports, no_reports
from lionrock.operator.resources import ChildKey, ModelDeployment, ObjectKey, Pod, Revision
from lionrock.operator.settings import OperatorSettings
from lionrock.operator.signing_requests import Facts
from lionrock.operator.telemetry import OperatorMetrics, chips_of_pools, models_by_condition, tenants_by_condition
from lionrock.operator.work_queue import Backoff, WorkQueue
from lionrock.operator.world import World

log = logging.getLogger("lionrock.operator")

_GANG_GROUPS = {"kueue": "kueue.x-k8s.io", "volcano": "scheduling.volcano.sh"}
_STOP_S = 5.0


class GangSchedulerMissing(Exception):
    """The settings name a gang scheduler that the cluster does not have."""


def check_gang_scheduler(cluster: Cluster, settings: OperatorSettings) -> None:
    """See that the gang scheduler of the settings is there. Raises GangSchedulerMissing, ApiError."""
    group = _GANG_GROUPS.get(settings.gang.by)
    if group is not None and group not in cluster.api_groups():
        raise GangSchedulerMissing(f"gang.by is {settings.gang.by}, and the cluster serves no {group}")


class RunningOperator:
    """An operator from start to stop."""

    def __init__(
        self,
        cluster: Cluster,
        settings: OperatorSettings,
        measured: OperatorMetrics,
        *,
        account: ServiceAccount | None = None,
        reports: Callable[[], Reports] = no_reports,
        pace: Pace | None = None,
    ) -> None:
        """Put it together; nothing is asked of the cluster yet.

        account: whose the lease is. reports: what revisions say of themselves now.
        """
        self._settings = settings
        self._decisions = replace(settings.decisions(), fronts_are_asked=reports is not no_reports)
        self._reports = reports
        self._pace = pace or Pace(relist_s=settings.timing.relist_s)
        self._cluster = cluster
        self._metrics = measured
        # A name is never used again: the lease of a process that is gone must not look like one's own.
        self.identity = f"{settings.instance}_{uuid.uuid4()}"
        self._queue: WorkQueue[Key] = WorkQueue()
        self._observation = Observation(World(self._decisions.pools, self._decisions.tenants), self._queue.add)
        self._observers = Observers()
        self._informers: list[Informer] = []
        self._models: list[Informer] = []
        self._acting = threading.Event()
        self._stopping = threading.Event()
        self._term = 0
        lease = settings.lease
        store = ClusterLease(cluster, settings.namespace, lease.name, timeout_s=lease.renew_deadline_s / 2, owner=account)
        self._election = Election(store, self.identity, lease.times())
        self._candidacy = ElectionLoop(self._election, lease.retry_s, self._leadership_changed)
        self._add_informers()
        effects = Effects(cluster, self._observers, EventRecorder(cluster, settings.instance), lambda for_s: self._may_act(for_s))
        self._reconciler = Reconciler(
            self._observation,
            self._queue,
            effects,
            self._decide,
            self._may_act,
            tracer(),
            measured,
            writers=settings.writers,
            resync_s=settings.timing.resync_s,
        )
        self._approver = self._make_approver() if settings.certificates.mode != "spire" else None
        self._measure()

    def start(self) -> None:
        """Begin to watch, to stand for election, and to work once elected."""
        for informer in self._informers:
            informer.start()
        self._reconciler.start()
        if self._approver is not None:
            self._approver.start()
        self._candidacy.start()

    def stop(self) -> bool:
        """Finish what was begun and give the lease back. Returns whether everything ended in time."""
        self._stopping.set()
        drain_s = self._settings.timing.drain_s
        clean = self._reconciler.stop(drain_s)
        if self._approver is not None:
            clean = self._approver.stop(drain_s) and clean
        self._acting.clear()
        self._candidacy.stop(self._settings.lease.renew_deadline_s, release=clean)
        stopping = [threading.Thread(target=informer.stop, args=(_STOP_S,), daemon=True) for informer in self._informers]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join(_STOP_S)
        return clean

    @property
    def leads(self) -> bool:
        """Whether this operator acts."""
        return self._may_act()

    def unhealthy(self) -> list[str]:
        """Say what a restart of the process might mend."""
        return [] if self._reconciler.is_alive and self._candidacy.is_alive else ["a loop of the operator stands still"]

    def unready(self) -> list[str]:
        """Say what this operator lacks to be able to lead."""
        return [f"{informer.resource.plural} are not known yet" for informer in self._informers if not informer.synced]

    def wait_synced(self, timeout_s: float) -> bool:
        """Wait until every informer has reported what there is."""
        deadline = time.monotonic() + timeout_s
        return all(informer.wait_synced(max(0.0, deadline - time.monotonic())) for informer in self._informers)

    def look_at(self, models: Iterable[ObjectKey]) -> None:
        """Look at models again: there is something new about them that no watch tells."""
        for model in models:
            self._queue.add(model_key(*model))

    def fronts(self) -> dict[Front, str]:
        """Return the addresses of the fronts of revisions that are starting."""
        with self._observation.world() as world:
            return fronts_to_ask(world)

    def models(self) -> list[ModelDeployment]:
        """Return all models that can be read."""
        with self._observation.world() as world:
            return [model for model in world.models.values() if isinstance(model, ModelDeployment)]

    def _decide(self, world: World, key: Key, now: dt.datetime) -> Decision:
        return decide(world, key, now, self._decisions, self._reports())

    # Who may act

    def _may_act(self, for_s: float = 0.0) -> bool:
        return self._acting.is_set() and self._election.may_act(for_s)

    def _leadership_changed(self, leading: bool) -> None:
        self._acting.clear()
        self._term += 1
        if leading:
            threading.Thread(target=self._take_over, args=(self._term,), name="take-over", daemon=True).start()

    def _take_over(self, term: int) -> None:
        failures = 0
        while self._term == term and not self._stopping.is_set():
            try:
                if self.wait_synced(1.0):
                    for informer in self._models:
                        informer.refresh()
                    break
            except ApiError as error:
                failures += 1
                log.warning("models could not be fetched: %s", error)
                self._stopping.wait(Backoff(base_s=0.1, cap_s=5.0).delay_s(failures, 0.5))
        if self._term != term or self._stopping.is_set():
            return
        self._acting.set()
        self._reconciler.look_at_everything()
        if self._approver is not None:
            self._approver.look_at_everything()

    # What is watched

    def _add_informers(self) -> None:
        namespaces: list[str | None] = [*sorted(self._settings.namespaces)] or [None]
        self._watch(NODE, Selection())
        self._watch(POD, Selection())  # of all namespaces: pods of others hold chips too
        self._watch(CHIP_POOL, Selection())
        for namespace in namespaces:
            self._models.append(self._watch(MODEL_DEPLOYMENT, Selection(namespace)))
            self._watch(TENANT, Selection(namespace))
            for child in CHILDREN:
                self._watch(child, Selection(namespace, labels=f"{MANAGED_BY_LABEL}={MANAGED_BY}"))
        if namespaces != [None] and self._settings.namespace not in namespaces:
            # What has been proposed is remembered there.
            own = Selection(self._settings.namespace, labels=f"{MANAGED_BY_LABEL}={MANAGED_BY}")
            self._watch(CONFIG_MAP, own)
        lease = Selection(self._settings.namespace, fields=f"metadata.name={self._settings.lease.name}")
        self._informers.append(Informer(self._cluster, LEASE, lease, self._lease_changed, pace=self._pace))

    def _watch(self, resource: Resource, selection: Selection) -> Informer:
        informer = Informer(self._cluster, resource, selection, self._changed, pace=self._pace)
        self._observers.add(resource, selection.namespace, informer.observe, informer.get)
        self._informers.append(informer)
        return informer

    def _changed(self, change: Change) -> None:
        self._metrics.changed(change.resource.plural)
        self._observation.take(change)

    def _lease_changed(self, change: Change) -> None:
        spec = (change.after or {}).get("spec") or {}
        if not spec.get("holderIdentity"):  # it was given back, or deleted
            self._candidacy.look()

    # Certificates

    def _make_approver(self) -> ApproverLoop:
        certificates = self._settings.certificates
        queue: WorkQueue[str] = WorkQueue()
        requests = Informer(
            self._cluster,
            SIGNING_REQUEST,
            Selection(fields=f"spec.signerName={certificates.signer_name}"),
            lambda change: loop.take(change),
            pace=self._pace,
        )
        self._informers.append(requests)
        authority = None
        if certificates.authority_secret is not None:
            where = AuthoritySecret(self._settings.namespace, certificates.authority_secret, self._settings.trust_domain)
            authority = Authority(self._cluster, where)
        facts = Facts(self._settings.trust_domain, self._pod, self._runs)
        approver = Approver(self._cluster, facts, authority, requests.observe)
        loop = ApproverLoop(approver, requests.objects, partial(_cluster_scoped, requests.get), self._may_act, queue)
        return loop

    def _pod(self, key: ObjectKey) -> Pod | None:
        with self._observation.world() as world:
            return world.pods.get(key)

    def _runs(self, model: ObjectKey, revision: Revision) -> bool:
        with self._observation.world() as world:
            child = ChildKey("RayService", model.namespace, child_name(model.name, revision))
            return model in world.models and world.child(child) is not None

    # What is measured

    def _measure(self) -> None:
        def leader() -> list[tuple[int | float, dict[str, str]]]:
            return [(int(self._may_act()), {})]

        def depth() -> list[tuple[int | float, dict[str, str]]]:
            return [(len(self._queue), {})]

        def silence() -> list[tuple[int | float, dict[str, str]]]:
            return [(informer.failures, {"resource": informer.resource.plural}) for informer in self._informers]

        self._metrics.gauge("leader", "1 where this operator leads", leader)
        self._metrics.gauge("queue.depth", "Keys that wait", depth)
        self._metrics.gauge("watch.failures", "Failed calls in a row of each informer", silence)
        for name, description, measure in (
            ("models", "Models by condition, status and reason", models_by_condition),
            ("tenants", "Tenants by condition, status and reason", tenants_by_condition),
            ("chips", "Chips of the pools' ready nodes, by use", chips_of_pools),
        ):
            self._metrics.gauge(name, description, partial(self._measured, measure))

    def _measured(
        self, measure: Callable[[World], list[tuple[int | float, dict[str, str]]]]
    ) -> list[tuple[int | float, dict[str, str]]]:
        with self._observation.world() as world:
            return measure(world)


def _cluster_scoped(get: Callable[[str, str], Object | None], name: str) -> Object | None:
    return get("", name)
