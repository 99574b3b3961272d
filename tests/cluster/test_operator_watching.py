"""Informers, calls and the lease on a real API server, with and without faults on the way."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kubernetes.client
import pytest
from fault_proxy import Fault, FaultProxy, Request, no_faults, proxy_to
from testcluster.control_plane import ControlPlane
from testcluster.objects import Objects
from testcluster.waiting import wait_for

from lionrock.operator.api_errors import Conflict, Expired, NotFound, Refused, Throttled, Unreachable
from lionrock.operator.api_resources import CONFIG_MAP, LEASE, NODE, POD, Resource
from lionrock.operator.cluster import Call, Cluster, Selection
from lionrock.operator.election import Election, ElectionLoop, LeaseTimes
from lionrock.operator.informers import Change, Informer, Pace
from lionrock.operator.lease_store import ClusterLease
from lionrock.operator.work_queue import Backoff

FAST = Pace(backoff=Backoff(base_s=0.01, cap_s=0.2), watch_lasts_s=300, silence_s=5, page=7)


@pytest.fixture
def place(objects: Objects) -> Iterator[str]:
    """A namespace for objects that are no pods."""
    name = f"watching-{secrets.token_hex(4)}"
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    objects.create(manifest)
    yield name
    objects.delete(manifest)


@pytest.fixture
def proxy(own_control_plane: ControlPlane) -> Iterator[FaultProxy]:
    proxy = proxy_to(own_control_plane.api_url, own_control_plane.kubeconfig)
    yield proxy
    proxy.close()


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
def cluster(proxy: FaultProxy, calls: list[Call]) -> Iterator[Cluster]:
    """The operator's way to the cluster, through the proxy."""
    configuration = kubernetes.client.Configuration(host=proxy.url)
    configuration.retries = False
    cluster = Cluster(kubernetes.client.ApiClient(configuration), calls.append)
    yield cluster
    cluster.close()


def config_map(name: str, namespace: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


class Watched:
    """An informer of ConfigMaps and everything that it reported."""

    def __init__(self, cluster: Cluster, namespace: str, pace: Pace = FAST, resource: Resource = CONFIG_MAP) -> None:
        self.changes: list[Change] = []
        self.informer = Informer(cluster, resource, Selection(namespace), self.changes.append, pace=pace)

    @property
    def data(self) -> dict[str, str]:
        """What the reports add up to, by name."""
        told: dict[str, str] = {}
        for change in list(self.changes):
            body = change.after or change.before
            assert body is not None
            name = body["metadata"]["name"]
            if name == "kube-root-ca.crt":
                continue
            if change.after is None:
                told.pop(name, None)
            else:
                told[name] = change.after["data"]["value"]
        return told


@contextmanager
def watching(cluster: Cluster, namespace: str, pace: Pace = FAST, resource: Resource = CONFIG_MAP) -> Iterator[Watched]:
    watched = Watched(cluster, namespace, pace, resource)
    watched.informer.start()
    assert watched.informer.wait_synced(20)
    yield watched
    assert watched.informer.stop(10)


def test_lists_in_pages_and_follows_what_happens(cluster: Cluster, objects: Objects, place: str) -> None:
    for index in range(20):  # three pages
        objects.create(config_map(f"m{index}", place, value="0"))
    with watching(cluster, place) as watched:
        assert watched.data == {f"m{index}": "0" for index in range(20)}
        objects.apply(config_map("m3", place, value="1"))
        objects.create(config_map("new", place, value="0"))
        objects.delete(config_map("m4", place))
        expected = {f"m{index}": "0" for index in range(20) if index != 4} | {"m3": "1", "new": "0"}
        wait_for(lambda: watched.data == expected, "the changes are reported")
        kept = watched.informer.get(place, "m3")
        assert kept is not None
        assert "managedFields" not in kept["metadata"]


def test_own_writes_are_seen_at_once_and_never_undone_by_older_events(cluster: Cluster, place: str) -> None:
    with watching(cluster, place) as watched:
        for step in range(50):
            watched.informer.observe(cluster.apply(config_map("mine", place, value=str(step))))
            kept = watched.informer.get(place, "mine")
            assert kept is not None
            assert kept["data"]["value"] == str(step)
        values = [change.after["data"]["value"] for change in watched.changes if change.after and "value" in change.after["data"]]
        assert values == [str(step) for step in range(50)]


def test_an_answer_that_comes_after_its_object_is_gone_does_not_bring_it_back(
    cluster: Cluster, objects: Objects, place: str
) -> None:
    with watching(cluster, place) as watched:
        answer = cluster.apply(config_map("m", place, value="0"))
        wait_for(lambda: watched.data == {"m": "0"}, "it is reported")
        objects.delete(config_map("m", place))
        wait_for(lambda: watched.data == {}, "its end is reported")
        watched.informer.observe(answer)
        assert watched.data == {}
        assert watched.informer.get(place, "m") is None
        objects.create(config_map("m", place, value="1"))
        wait_for(lambda: watched.data == {"m": "1"}, "another one of that name is reported")


def test_what_was_deleted_while_nobody_watched_is_reported_after_the_next_list(
    cluster: Cluster, proxy: FaultProxy, objects: Objects, place: str
) -> None:
    objects.create(config_map("stays", place, value="0"))
    with watching(cluster, place) as watched:
        proxy.plan = lambda request: Fault(status=410) if request.is_watch else None
        proxy.cut_everything()
        # Written and observed while the watch is away, and deleted by another before it is back: only a list can tell.
        watched.informer.observe(cluster.apply(config_map("ghost", place, value="0")))
        objects.delete(config_map("ghost", place))
        wait_for(lambda: watched.data == {"stays": "0"}, "the ghost is gone")
        proxy.plan = no_faults


def test_a_watch_that_is_cut_again_and_again_loses_nothing(
    cluster: Cluster, proxy: FaultProxy, objects: Objects, place: str
) -> None:
    proxy.plan = lambda request: Fault(cut_watch_after=request.number % 4) if request.is_watch else None
    with watching(cluster, place) as watched:
        for step in range(40):
            objects.apply(config_map(f"m{step % 5}", place, value=str(step)))
        wait_for(lambda: watched.data == {f"m{index}": str(35 + index) for index in range(5)}, "the last values are there")
        lists = [request for request in proxy.requests if not request.is_watch]
        assert len(lists) == 1  # every cut was resumed where it was


@pytest.mark.parametrize("status", [410, 500, 503, 429, 403])
def test_a_server_that_only_refuses_is_not_asked_in_a_loop(
    cluster: Cluster, proxy: FaultProxy, place: str, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    with watching(cluster, place, Pace(backoff=Backoff(base_s=0.05, cap_s=10), page=50)) as watched:
        proxy.restart_numbers()
        refused_for_1_s = threading.Event()
        proxy.plan = lambda request: Fault(status=status) if request.is_watch else None
        proxy.cut_everything()
        refused_for_1_s.wait(1.0)
        assert 2 <= len(proxy.requests) <= 14
        proxy.plan = no_faults
        wait_for(lambda: watched.informer.failures == 0, "the watch is back")
    assert not [record for record in caplog.records if record.exc_info], "failures are told in a line"


def test_a_silent_connection_is_given_up(cluster: Cluster, proxy: FaultProxy, objects: Objects, place: str) -> None:
    pace = Pace(backoff=Backoff(base_s=0.01, cap_s=0.1), silence_s=0.5)
    with watching(cluster, place, pace) as watched:
        # The first watch hangs; what follows comes over the next one.
        proxy.restart_numbers()
        objects.create(config_map("m", place, value="0"))
        wait_for(lambda: watched.data == {"m": "0"}, "the event is reported")
        wait_for(lambda: len([request for request in proxy.requests if request.is_watch]) >= 2, "the watch is opened anew")


def test_the_api_server_may_die_and_come_back(
    cluster: Cluster, own_control_plane: ControlPlane, objects: Objects, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    with watching(cluster, place) as watched:
        objects.create(config_map("before", place, value="0"))
        own_control_plane.kill_api_server()
        wait_for(lambda: watched.informer.failures > 2, "the informer notices")
        own_control_plane.start_api_server()
        objects.create(config_map("after", place, value="1"))
        wait_for(lambda: watched.data == {"before": "0", "after": "1"}, "both are reported")
    assert not [record for record in caplog.records if record.exc_info]


def test_a_kind_that_is_not_there_is_none_and_may_come_later(
    cluster: Cluster, proxy: FaultProxy, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    missing = Resource("absent.lionrock.io", "v1", "Absent", "absents")
    caplog.set_level(logging.DEBUG)
    with watching(cluster, place, resource=missing) as watched:
        assert watched.informer.objects() == []
        wait_for(lambda: watched.informer.failures > 3, "it goes on asking")


def test_pods_that_do_not_matter_are_not_kept(cluster: Cluster, objects: Objects, place: str) -> None:
    def pod(name: str, **resources: str) -> dict[str, Any]:
        container = {"name": "c", "image": "none", "env": [{"name": "LONG", "value": "x" * 500}]}
        container["resources"] = {"limits": resources}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": place},
            "spec": {"containers": [container], "automountServiceAccountToken": False},
        }

    objects.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": place}})
    objects.create(pod("plain"))
    objects.create(pod("with-chips", **{"huawei.com/Ascend910": "8"}))
    with watching(cluster, place, resource=POD) as watched:
        objects.create(pod("plain-too"))
        objects.create(pod("with-chips-too", **{"huawei.com/Ascend910": "8"}))
        wait_for(lambda: len(watched.informer.objects()) == 2, "the second one is seen")
        assert {body["metadata"]["name"] for body in watched.informer.objects()} == {"with-chips", "with-chips-too"}
        assert all("env" not in body["spec"]["containers"][0] for body in watched.informer.objects())
        # Labels decide too, and labels change.
        objects.merge(pod("plain"), {"metadata": {"labels": {"app.kubernetes.io/part-of": "lionrock"}}})
        wait_for(lambda: watched.informer.get(place, "plain"), "it matters now")
        objects.merge(pod("plain"), {"metadata": {"labels": {"app.kubernetes.io/part-of": None}}})
        wait_for(lambda: watched.informer.get(place, "plain") is None, "it no longer matters")


def test_errors_have_types(cluster: Cluster, proxy: FaultProxy, place: str, calls: list[Call]) -> None:
    with pytest.raises(NotFound):
        cluster.read(CONFIG_MAP, place, "absent")
    cluster.create(config_map("there", place, value="0"))
    with pytest.raises(Conflict) as conflict:
        cluster.create(config_map("there", place, value="0"))
    assert conflict.value.reason == "AlreadyExists"
    with pytest.raises(Refused):
        cluster.create(config_map("Not A Name", place))
    with pytest.raises(Conflict):
        cluster.delete(CONFIG_MAP, place, "there", uid="another")
    proxy.plan = lambda request: Fault(status=410)
    with pytest.raises(Expired):
        cluster.list_page(CONFIG_MAP, Selection(place), limit=1, token="of an hour ago")
    proxy.plan = lambda request: Fault(status=429, retry_after_s=7)
    with pytest.raises(Throttled) as throttled:
        cluster.read(NODE, None, "any")
    assert throttled.value.retry_after_s == 7
    for fault in (Fault(status=503), Fault(cut_before=True), Fault(cut_after=True)):
        proxy.plan = lambda request, fault=fault: fault  # type: ignore[misc]
        with pytest.raises(Unreachable):
            cluster.read(NODE, None, "any")
    counted = [(call.verb, call.resource, call.outcome) for call in calls]
    assert counted[:3] == [("get", "configmaps", "404"), ("create", "configmaps", "201"), ("create", "configmaps", "409")]
    assert counted[-1] == ("get", "nodes", "none")


def test_a_conflict_storm_ends_in_what_was_applied(cluster: Cluster, proxy: FaultProxy, objects: Objects, place: str) -> None:
    proxy.plan = lambda request: Fault(status=409) if request.is_write and request.number % 3 else None
    for step in range(10):
        while True:
            try:
                cluster.apply(config_map("m", place, value=str(step)))
                break
            except Conflict:
                continue
    found = objects.read("v1", "ConfigMap", "m", place)
    assert found is not None
    assert found["data"] == {"value": "9"}
    assert [each["manager"] for each in found["metadata"]["managedFields"]] == ["lionrock-operator"]


def test_the_way_to_an_unknown_group_is_not_found(cluster: Cluster) -> None:
    assert "apps" in cluster.api_groups()
    assert "kueue.x-k8s.io" not in cluster.api_groups()
    with pytest.raises(NotFound):
        cluster.list_page(Resource("kueue.x-k8s.io", "v1beta1", "Workload", "workloads"), Selection(), limit=1)


# Election

TIMES = LeaseTimes(duration_s=3, renew_deadline_s=2.0, retry_s=0.25)


class Standing:
    """One candidate on the real lease, and when it led."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, times: LeaseTimes = TIMES) -> None:
        self.election = Election(ClusterLease(cluster, namespace, "lionrock-operator", timeout_s=1.0), name, times)
        self.changes: list[bool] = []
        self.loop = ElectionLoop(self.election, times.retry_s, self.changes.append)
        lease = Selection(namespace, fields="metadata.name=lionrock-operator")
        self.informer = Informer(cluster, LEASE, lease, self._changed, pace=FAST)
        self.loop.start()
        self.informer.start()

    def _changed(self, change: Change) -> None:
        if not ((change.after or {}).get("spec") or {}).get("holderIdentity"):
            self.loop.look()

    def stop(self, *, release: bool = True) -> None:
        self.loop.stop(5, release=release)
        self.informer.stop(5)


def test_two_candidates_on_a_real_lease_never_act_together(cluster: Cluster, proxy: FaultProxy, place: str) -> None:
    first = Standing(cluster, place, "first")
    wait_for(lambda: first.election.may_act(), "the first one leads")
    second = Standing(cluster, place, "second")
    together = 0
    over = threading.Event()

    def look() -> None:
        nonlocal together
        while not over.is_set():
            # In this order: whoever came to lead between the two looks is not taken for one who led all the time.
            together += second.election.may_act() and first.election.may_act()
            over.wait(0.001)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        # The first one loses every answer of the lease, so it must stop; both go through one proxy, told apart by nothing.
        wait_for(lambda: second.informer.synced, "the second one watches")
        first.loop.stop(5, release=False)
        wait_for(lambda: second.election.may_act(), "the second one took over", timeout_s=10)
        assert not first.election.may_act()
    finally:
        over.set()
        looking.join(5)
        first.informer.stop(5)
        second.stop()
    assert together == 0


def test_a_lease_given_back_is_taken_within_moments(cluster: Cluster, place: str) -> None:
    slow = LeaseTimes(duration_s=60, renew_deadline_s=40.0, retry_s=20.0)
    first = Standing(cluster, place, "first", slow)
    wait_for(lambda: first.election.may_act(), "the first one leads")
    second = Standing(cluster, place, "second", slow)
    wait_for(lambda: second.informer.synced, "the second one watches")
    first.stop()
    try:
        wait_for(lambda: second.election.may_act(), "the watch of the lease wakes the second one", timeout_s=2)
        assert not first.election.may_act()
    finally:
        second.stop()


def test_the_leader_stops_acting_before_its_lease_can_be_taken(cluster: Cluster, proxy: FaultProxy, place: str) -> None:
    leader = Standing(cluster, place, "leader")
    wait_for(lambda: leader.election.may_act(), "it leads")
    proxy.plan = _no_leases
    wait_for(lambda: leader.changes == [True, False], "it stops", timeout_s=TIMES.duration_s)
    proxy.plan = no_faults
    wait_for(lambda: leader.changes == [True, False, True], "it leads again")
    leader.stop()


def test_the_lease_goes_with_the_operators_service_account(
    own_control_plane: ControlPlane, objects: Objects, namespace: str, cluster: Cluster
) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator", "namespace": namespace}}
    objects.create(account)
    rbac = "rbac.authorization.k8s.io/v1"
    metadata = {"name": "leads", "namespace": namespace}
    rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
    objects.create({"apiVersion": rbac, "kind": "Role", "metadata": metadata, "rules": [rule]})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "leads"}
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
    objects.create({"apiVersion": rbac, "kind": "RoleBinding", "metadata": metadata, "roleRef": reference, "subjects": [subject]})
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/operator/token"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = objects.call("POST", path, asked)["status"]["token"]
    kubeconfig = own_control_plane.ca.token_kubeconfig(own_control_plane.api_url, f"{namespace}-operator", token)
    assert cluster.service_account() is None  # the administrator is none
    operator = Cluster.connect(kubeconfig)
    try:
        election = Election(
            ClusterLease(operator, namespace, "lionrock-operator", 5.0, owner=operator.service_account()), "one", TIMES
        )
        assert election.step()
        assert election.step()  # renewing keeps the owner
        lease = "coordination.k8s.io/v1", "Lease", "lionrock-operator", namespace
        assert objects.read(*lease) is not None
        objects.delete(account)
        wait_for(lambda: objects.read(*lease) is None, "the lease is collected", timeout_s=30)
    finally:
        operator.close()


def _no_leases(request: Request) -> Fault | None:
    return Fault(status=500) if "/leases" in request.path else None
