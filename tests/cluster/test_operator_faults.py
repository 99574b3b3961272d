"""The operator killed at every call in turn, two at once, storms of errors, an API server that dies: always the same end.

The end is compared with that of a run that nothing disturbed: the same children, field by field, the same chips, and no more events
than happened. Names of namespaces and uids differ from run to run and are taken out of the comparison.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from fault_proxy import Fault, Plan, Request, no_faults
from operators import Place, make_place, model, operating, play_kuberay, settings_for, start_operator_here
from testcluster.control_plane import ControlPlane
from testcluster.objects import Objects
from testcluster.waiting import wait_for

MODELS = ("first", "second")
REPLICAS = 2


@dataclass(frozen=True, slots=True)
class End:
    """What a run came to."""

    children: dict[str, Any]
    status: dict[str, Any]
    pods: dict[str, Any]


@pytest.fixture
def places(objects: Objects, lionrock_crds: list[str], ray_crds: list[str]) -> Iterator[Callable[[], Place]]:
    made: list[Place] = []

    def make() -> Place:
        made.append(make_place(objects))
        return made[-1]

    yield make
    for place in made:
        place.close()


def ask_for_models(place: Place, names: tuple[str, ...] = MODELS) -> None:
    for name in names:
        place.objects.create(model(name, place.namespace, replicas=REPLICAS))


def settled(place: Place, names: tuple[str, ...] = MODELS) -> bool:
    """Whether every model is where it will be: pods are let go, and the routes and statuses say so."""
    pods = place.pods()
    workers = [pod for pod in pods if pod["metadata"]["labels"].get("lionrock.io/role") == "worker"]
    if len(workers) != len(names) * REPLICAS or any(pod["spec"].get("schedulingGates") for pod in workers):
        return False
    if any(place.condition(name, "Scheduled").get("status") != "True" for name in names):
        return False
    kinds = {name.split("/")[0] for name in place.children()}
    # What else belongs to it: 4 children and a record a model, routes of the namespace.
    return len(place.children()) >= 5 * len(names) + 1 and "RayService" in kinds


def end_of(place: Place, names: tuple[str, ...] = MODELS) -> End:
    """What has become of the place, in words that are the same for every place."""
    status = {}
    for name in names:
        told = place.model(name)["status"]
        conditions = [(each["type"], each["status"], each["reason"]) for each in told["conditions"]]
        status[name] = {
            "finalizers": place.model(name)["metadata"]["finalizers"],
            "placement": told["placement"],
            "conditions": conditions,
            "replicas": told.get("replicas"),
        }
    pods = {
        pod["metadata"]["name"]: (pod["spec"].get("schedulingGates"), pod["spec"].get("affinity"), pod["metadata"]["labels"])
        for pod in place.pods()
    }
    text = _without_names(place, json.dumps([place.children(), status, pods], sort_keys=True))
    for name in names:  # a revision is a digest of the pool's name too
        text = text.replace(status[name]["placement"]["revision"], f"REVISION-of-{name}")
    plain = json.loads(text)
    for child in plain[0].values():
        for owner in child["metadata"].get("ownerReferences", ()):
            owner["uid"] = "uid"
        child["managers"] = None if child["kind"] == "ConfigMap" else child["managers"]
    children = {name: child for name, child in plain[0].items() if not name.endswith("lionrock-proposed-pools")}
    return End(children, plain[1], plain[2])


def _without_names(place: Place, text: str) -> str:
    return text.replace(place.namespace, "NAMESPACE").replace(place.region, "REGION").replace(place.region[1:], "MARK")


def undisturbed(control_plane: ControlPlane, place: Place, names: tuple[str, ...] = MODELS) -> tuple[End, int]:
    """Run without faults. Returns the end, and how many calls the operator made until then, watches and lease left out."""
    with play_kuberay(place), operating(control_plane, settings_for(place.namespace, place.region)) as operator:
        operator.wait_leads()
        ask_for_models(place, names)
        wait_for(lambda: settled(place, names), "the undisturbed run settles", timeout_s=60)
        end = steady_end(place, names)
        return end, len([request for request in operator.proxy.requests if counts(request)])


def steady_end(place: Place, names: tuple[str, ...] = MODELS) -> End:
    """The end, once two looks in a row are the same."""
    last = [end_of(place, names)]

    def same_again() -> bool:
        last.append(end_of(place, names))
        return last[-1] == last[-2] and settled(place, names)

    wait_for(same_again, "nothing changes any more", interval_s=0.3)
    return last[-1]


def counts(request: Request) -> bool:
    """Whether a call is one at which the operator is killed: a write of an object."""
    return request.is_write and "/leases" not in request.path


def give_up_lease(place: Place) -> None:
    """Spare the next operator the wait for the lease of one that was killed."""
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "lionrock-operator", "namespace": place.namespace},
    }
    place.objects.delete(lease)


class KilledAt:
    """A plan that kills at the n-th write: before the server hears of it, or after it carried it out."""

    def __init__(self, number: int, *, after: bool) -> None:
        self._number = number
        self._after = after
        self._seen = 0
        self.killed = threading.Event()

    def __call__(self, request: Request) -> Fault | None:
        if self.killed.is_set():
            return Fault(cut_before=True)
        if counts(request):
            self._seen += 1
            if self._seen == self._number:
                self.killed.set()
                return Fault(cut_after=self._after, cut_before=not self._after)
        return None


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_at_every_write_in_turn_it_comes_to_the_same_end(
    own_control_plane: ControlPlane, places: Callable[[], Place]
) -> None:
    alone = MODELS[:1]
    expected, _ = undisturbed(own_control_plane, places(), alone)
    for number in count(1):
        if not _killed_at(number, own_control_plane, places(), alone, expected):
            break
    assert number > 15, "so many writes it takes"


def _killed_at(number: int, control_plane: ControlPlane, place: Place, names: tuple[str, ...], expected: End) -> bool:
    """Run with a kill at that write, and another operator after it. Returns whether there was such a write."""
    plan = KilledAt(number, after=number % 2 == 0)
    settings = settings_for(place.namespace, place.region)
    with play_kuberay(place):
        first = start_operator_here(control_plane, settings, plan=plan)
        ask_for_models(place, names)
        wait_for(lambda: plan.killed.is_set() or settled(place, names), "it is killed or done", timeout_s=60)
        killed = plan.killed.is_set()
        first.kill()
        give_up_lease(place)
        with operating(control_plane, settings):
            wait_for(lambda: settled(place, names), f"it settles after a kill at write {number}", timeout_s=60)
            assert steady_end(place, names) == expected, f"killed at write {number}"
    place.close()
    return killed


STORMS: dict[str, Callable[[random.Random], Plan]] = {
    "conflicts": lambda draw: lambda request: Fault(status=409) if counts(request) and draw.random() < 0.5 else None,
    "too many requests": lambda draw: (
        lambda request: Fault(status=429, retry_after_s=0) if not request.is_watch and draw.random() < 0.5 else None
    ),
    "internal errors": lambda draw: lambda request: Fault(status=500) if draw.random() < 0.4 else None,
    "lost answers": lambda draw: lambda request: Fault(cut_after=True) if counts(request) and draw.random() < 0.5 else None,
    "slow and cut watches": lambda draw: (
        lambda request: Fault(cut_watch_after=draw.randrange(4)) if request.is_watch else Fault(delay_s=draw.random() * 0.1)
    ),
}


@pytest.mark.parametrize("storm", STORMS)
def test_a_storm_of_errors_ends_where_calm_does(own_control_plane: ControlPlane, places: Callable[[], Place], storm: str) -> None:
    expected, _ = undisturbed(own_control_plane, places())
    place = places()
    seed = random.SystemRandom().randrange(2**32)
    with (
        play_kuberay(place),
        operating(own_control_plane, settings_for(place.namespace, place.region), plan=STORMS[storm](random.Random(seed))) as one,
    ):
        ask_for_models(place)
        wait_for(lambda: settled(place), f"it settles within the storm, seed {seed}", timeout_s=90)
        one.proxy.plan = no_faults
        # A write that the storm refused may wait in back-off still, while nothing changes.
        wait_for(lambda: steady_end(place) == expected, f"it ends as calm does, seed {seed}", seen=lambda: end_of(place, MODELS))


def test_two_at_once_make_nothing_twice(own_control_plane: ControlPlane, places: Callable[[], Place]) -> None:
    expected, _ = undisturbed(own_control_plane, places())
    place = places()
    settings = settings_for(place.namespace, place.region)
    with (
        play_kuberay(place),
        operating(own_control_plane, settings) as one,
        operating(own_control_plane, settings) as other,
    ):
        ask_for_models(place)
        wait_for(lambda: settled(place), "it settles")
        assert steady_end(place) == expected
        assert one.running.leads != other.running.leads
        assert min(len(one.writes), len(other.writes)) == 0, "who does not lead writes nothing"


def test_leadership_is_handed_over_without_a_gap(own_control_plane: ControlPlane, places: Callable[[], Place]) -> None:
    place = places()
    # A lease of a minute: whoever waited for it to run out would not be done in time.
    settings = settings_for(
        place.namespace, place.region, lease={"duration_s": 60, "renew_deadline_s": 50, "retry_s": 20}, call_timeout_s=6
    )
    with play_kuberay(place):
        one = start_operator_here(own_control_plane, settings)
        one.wait_leads()
        other = start_operator_here(own_control_plane, settings)
        assert other.running.wait_synced(30)
        place.objects.create(model("first", place.namespace))
        wait_for(lambda: place.condition("first", "Scheduled").get("status") == "True", "the first one is placed")
        assert not other.writes
        assert one.stop(), "it ends cleanly"
        place.objects.create(model("second", place.namespace))
        wait_for(lambda: place.condition("second", "Scheduled").get("status") == "True", "the next leader placed it", timeout_s=10)
        other.stop()


def test_the_api_server_may_die_in_the_middle(own_control_plane: ControlPlane, places: Callable[[], Place]) -> None:
    expected, _ = undisturbed(own_control_plane, places())
    place = places()
    with operating(own_control_plane, settings_for(place.namespace, place.region)) as operator:
        operator.wait_leads()
        ask_for_models(place)
        wait_for(lambda: operator.writes, "it has begun")
        own_control_plane.kill_api_server()
        own_control_plane.start_api_server()
        with play_kuberay(place):
            wait_for(lambda: settled(place), "it settles", timeout_s=60)
            assert steady_end(place) == expected


def test_a_write_whose_answer_is_lost_reserves_no_chips_twice(own_control_plane: ControlPlane, places: Callable[[], Place]) -> None:
    place = places()  # 16 chips
    lose = threading.Event()

    def plan(request: Request) -> Fault | None:
        return Fault(cut_after=True) if lose.is_set() and "/status" in request.path and "modeldeployments" in request.path else None

    with operating(own_control_plane, settings_for(place.namespace, place.region), plan=plan) as operator:
        operator.wait_leads()
        lose.set()
        for index in range(20):  # more than there is room for
            place.objects.create(model(f"m{index}", place.namespace, parallelism={"type": "Given", "tensor": 1}))
        threading.Timer(2.0, lose.clear).start()
        wait_for(lambda: _placed(place) == 16, "all chips are kept", timeout_s=60, seen=lambda: _placed(place))
        assert _overlaps(place) == 0


def _slots(place: Place) -> list[dict[str, Any]]:
    found = place.objects.list("lionrock.io/v1alpha1", "ModelDeployment", place.namespace)
    return [pod for each in found for pod in ((each.get("status") or {}).get("placement") or {}).get("pods", ())]


def _placed(place: Place) -> int:
    return sum(slot["chips"] for slot in _slots(place))


def _overlaps(place: Place) -> int:
    taken: dict[str, int] = {}
    for slot in _slots(place):
        taken[slot["node"]] = taken.get(slot["node"], 0) + slot["chips"]
    return sum(max(0, chips - 8) for chips in taken.values())
