"""Where models are placed, case by case. What holds for every case is in test_placement_properties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from lionrock.operator.conditions import timestamp
from lionrock.operator.placement import Candidate, Outcome, Patience, Request, place
from lionrock.operator.resources import NodeName, ObjectKey, Placement, PoolName, Revision, Slot
from lionrock.operator.survival import survivors
from lionrock.operator.world import World
from operator_objects import ASCEND, CAMBRICON, RULES, START, at, model, node, pod, pool

CHAT = ObjectKey("team", "chat")
PATIENCE = Patience(node_grace_s=60, settle_s=300, hold_after_s=900)
FIRST = Candidate(pool=PoolName("ascend"), revision=Revision("aaaaaaaa"), chips_per_pod=4, pods_per_replica=1)
SECOND = Candidate(pool=PoolName("mlu"), revision=Revision("bbbbbbbb"), chips_per_pod=2, pods_per_replica=1)


class Cluster:
    """A World, and statuses written as the operator writes them."""

    def __init__(self, **nodes: int) -> None:
        self.world = World(RULES)
        self.world.apply_pool(pool("ascend"))
        self.world.apply_pool(pool("mlu", "cambricon-mlu590"))
        self.now = START
        self._version = 1
        for name, chips in nodes.items():
            self.put(name, chips)

    def put(self, name: str, chips: int, **more: Any) -> None:
        resource = CAMBRICON if name.startswith("m") else ASCEND
        self.world.apply_node(node(name, {resource: chips}, **more))

    def request(self, *candidates: Candidate, key: ObjectKey = CHAT, replicas: int = 1, **more: Any) -> Request:
        seen = self.world.models.get(key)
        placement = None if seen is None else seen.status.placement
        return Request(
            model=key,
            territory="HK",
            candidates=candidates or (FIRST,),
            replicas=replicas,
            newest=None if placement is None else placement.revision,
            **{"placed_since": START, **more},
        )

    def place(self, *candidates: Candidate, **more: Any) -> Outcome:
        return place(self.world, self.request(*candidates, **more), PATIENCE, self.now)

    def write(self, outcome: Outcome, key: ObjectKey = CHAT, *, waiting_since: datetime | None = None, **of: Any) -> None:
        """Write a status as after that outcome. waiting_since: it says that chips are missing since then."""
        chosen = outcome.chosen
        placement = Placement(
            pool=chosen.pool if chosen else None, revision=chosen.revision if chosen else None, slots=outcome.slots
        )
        status: dict[str, Any] = {"placement": placement.as_status(), "replicas": {"desired": outcome.wanted}}
        wanted: Candidate = of.pop("plan", chosen or FIRST)
        status["plan"] = {
            "pool": wanted.pool,
            "chipsPerPod": wanted.chips_per_pod,
            "podsPerReplica": wanted.pods_per_replica,
        }
        if (refused := of.pop("refused", None)) is not None:
            status["rollout"] = {"refused": [{"node": refused, "at": timestamp(START)}]}
        if waiting_since is not None:
            status["conditions"] = [
                {
                    "type": "Scheduled",
                    "status": "False",
                    "reason": "NoRoom",
                    "message": "",
                    "lastTransitionTime": timestamp(waiting_since),
                }
            ]
        self._version += 1
        self.world.apply_model(model(key.name, namespace=key.namespace, status=status, version=self._version, **of))

    def wait(self, name: str, chips: int, *, pods: int = 1, since: float = 0, refused: str | None = None) -> None:
        """Let another model wait for chips of the first pool. refused: a node on which the scheduler refuses its pods."""
        plan = replace(FIRST, chips_per_pod=chips, pods_per_replica=pods)
        nothing = Outcome(chosen=None, slots=(), wanted=1, survival=None, refusals=())
        self.write(nothing, ObjectKey("team", name), waiting_since=at(since), plan=plan, refused=refused, pools=["ascend"])

    def settle(self, *candidates: Candidate, key: ObjectKey = CHAT, run: bool = True, **more: Any) -> Outcome:
        """Place, write, and start the pods."""
        outcome = self.place(*candidates, key=key, **more)
        self.write(outcome, key)
        for slot in outcome.slots if run else ():
            self.world.apply_pod(
                pod(
                    f"{key.name}-{slot.revision}-{slot.replica}-{slot.part}",
                    model=key.name,
                    revision=slot.revision,
                    chips={slot.resource: slot.chips},
                    node=slot.node,
                )
            )
        return outcome


def nodes_of(outcome: Outcome) -> list[str]:
    return [slot.node for slot in outcome.slots]


def test_a_replica_goes_where_least_is_left_over() -> None:
    cluster = Cluster(n1=8, n2=5, n3=4)

    assert nodes_of(cluster.place()) == ["n3"]
    assert nodes_of(cluster.place(replace(FIRST, chips_per_pod=5))) == ["n2"]


def test_replicas_spread_over_nodes_only_where_that_costs_nothing() -> None:
    assert nodes_of(Cluster(n1=4, n2=4, n3=8).place(replicas=2)) == ["n1", "n2"]
    assert nodes_of(Cluster(n1=8, n2=8).place(replicas=2)) == ["n1", "n1"]


def test_all_pods_of_a_replica_are_placed_or_none() -> None:
    big = replace(FIRST, pods_per_replica=3)

    outcome = Cluster(n1=8, n2=4).place(big, replicas=2)
    assert (outcome.placed, [(slot.replica, slot.part) for slot in outcome.slots]) == (1, [(0, 0), (0, 1), (0, 2)])
    assert not outcome.complete
    assert Cluster(n1=8).place(big).slots == ()


def test_a_model_that_has_no_room_is_told_what_is_missing() -> None:
    cluster = Cluster(n1=8, n2=8)
    cluster.world.apply_pod(pod("job-1", chips={ASCEND: 5}, node="n1"))
    cluster.world.apply_pod(pod("job-2", chips={ASCEND: 5}, node="n2"))

    outcome = cluster.place(FIRST, SECOND)

    assert outcome.chosen is None
    assert [str(refusal) for refusal in outcome.refusals] == [
        "pool ascend: 6 of 16 chips free but on nodes n1 (3), n2 (3); a pod needs 4 on one node",
        "pool mlu: no node of HK has the chip (cambricon.com/mlu)",
    ]
    assert outcome.message.startswith("0 of 1 replicas have chips; pool ascend: 6 of 16")


@pytest.mark.parametrize(
    ("candidate", "told"),
    [
        (replace(FIRST, pool=PoolName("gone")), "there is no such pool"),
        (replace(FIRST, refusal="weights of 140 GiB do not fit 1 × ascend-910b"), "weights of 140 GiB do not fit"),
        (replace(FIRST, chips_per_pod=16), "its nodes have 8 chips at most, and a pod needs 16 on one node"),
        (replace(FIRST, pods_per_replica=5), "16 of 16 chips free, and a replica needs 20"),
        (replace(FIRST, pool=PoolName("abroad")), "it stands in CN, the model stays in HK"),
        (replace(FIRST, pool=PoolName("bare")), "not ready: NoEngineImage"),
        (replace(FIRST, pool=PoolName("odd")), "not ready: UnknownChip"),
        (replace(FIRST, pool=PoolName("a3"), chips_per_pod=3), "handed out in even numbers, and a pod asks for 3"),
        (replace(FIRST, pool=PoolName("picky")), "no node of HK has the chip"),
    ],
)
def test_every_refusal_can_be_acted_on(candidate: Candidate, told: str) -> None:
    cluster = Cluster(n1=8, n2=8)
    cluster.put("n3", 16, labels={"accelerator-type": "module-a3-16"})
    for each in (
        pool("abroad", territory="CN"),
        pool("bare", "mthreads-s5000"),
        pool("odd", "abacus"),
        pool("a3", "ascend-a3", engine={"image": "registry/a3:1"}),
        pool("picky", nodeSelector={"rack": "9"}),
    ):
        cluster.world.apply_pool(each)

    (refusal,) = cluster.place(candidate).refusals

    assert told in refusal.message


def test_the_first_pool_that_holds_everything_is_taken_else_the_fullest() -> None:
    cluster = Cluster(n1=4, m1=8)

    assert cluster.place(FIRST, SECOND).chosen == FIRST
    assert cluster.place(FIRST, SECOND, replicas=2).chosen == SECOND
    best = cluster.place(FIRST, SECOND, replicas=5)
    assert (best.chosen, best.placed) == (SECOND, 4)
    assert "8 of 8" not in best.message
    assert "pool mlu: 0 of 8 chips free, and a replica needs 2" in best.message


def test_chips_of_foreign_pods_and_of_other_models_are_not_given_away() -> None:
    cluster = Cluster(n1=8)
    cluster.settle(key=ObjectKey("team", "other"))
    cluster.world.apply_pod(pod("job", chips={ASCEND: 1}, node="n1"))

    assert cluster.place().slots == ()
    assert cluster.place(replace(FIRST, chips_per_pod=3)).placed == 1


def test_pods_of_a_deleted_model_hold_their_chips_until_they_end() -> None:
    cluster = Cluster(n1=4)
    cluster.settle(key=ObjectKey("team", "other"))
    cluster.world.forget_model(ObjectKey("team", "other"))

    assert cluster.place().slots == ()
    cluster.world.forget_pod(ObjectKey("team", "other-aaaaaaaa-0-0"))
    assert cluster.place().placed == 1


def test_a_placement_stays_where_it_is_when_a_better_packing_appears() -> None:
    cluster = Cluster(n1=8)
    before = cluster.settle()
    cluster.put("n2", 4)

    after = cluster.place()

    assert after.slots == before.slots
    assert cluster.place(replicas=2).slots[:1] == before.slots


def test_scaling_down_keeps_low_numbers_but_leaves_cordoned_nodes_first() -> None:
    cluster = Cluster(n1=4, n2=4, n3=4)
    cluster.settle(replicas=3)

    assert nodes_of(cluster.place(replicas=2)) == ["n1", "n2"]
    cluster.put("n1", 4, cordoned=True)
    assert nodes_of(cluster.place(replicas=2)) == ["n2", "n3"]


def test_no_replicas_need_no_chips() -> None:
    cluster = Cluster(n1=4)
    cluster.settle()

    outcome = cluster.place(replicas=0)

    assert (outcome.slots, outcome.complete, outcome.refusals) == ((), True, ())


def test_a_replica_that_loses_a_node_is_placed_again_whole() -> None:
    big = replace(FIRST, pods_per_replica=2)
    cluster = Cluster(n1=4, n2=4, n3=4)
    assert nodes_of(cluster.settle(big)) == ["n1", "n2"]
    cluster.world.forget_node(NodeName("n2"))

    outcome = cluster.place(big)

    assert nodes_of(outcome) == ["n1", "n3"]
    assert outcome.survival is not None
    assert outcome.survival.why == {0: "node n2 is gone"}
    assert {slot.node for slot in outcome.survival.given_up} == {"n1", "n2"}
    cluster.world.forget_node(NodeName("n3"))
    assert cluster.place(big).slots == ()
    assert "lost: replica 0: node n2 is gone" in cluster.place(big).message


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"region": "cn-south-1"}, "no longer labelled as standing in HK"),
        ({"region": None}, "no longer labelled as standing in HK"),
        ({"taints": [{"key": "gone", "effect": "NoExecute"}]}, "evicts its pods"),
        ({"ready": False, "ready_since": at(-60)}, "has not been ready for 60 s"),
    ],
)
def test_running_replicas_leave_nodes_that_cannot_keep_them(changes: dict[str, Any], why: str) -> None:
    cluster = Cluster(n1=4, n2=8)
    cluster.settle()
    cluster.put("n1", 4, **changes)

    outcome = cluster.place()

    assert nodes_of(outcome) == ["n2"]
    assert outcome.survival is not None
    assert why in outcome.survival.why[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"cordoned": True},
        {"taints": [{"key": "dedicated", "effect": "NoSchedule"}]},
        {"labels": {"accelerator-type": "module-a3-16"}},
        {"ready": False, "ready_since": at(-59)},
        {"chips": 0},  # its device plugin is being restarted
    ],
)
def test_running_replicas_outlive_what_only_keeps_new_pods_away(changes: dict[str, Any]) -> None:
    cluster = Cluster(n1=4, n2=8)
    before = cluster.settle()
    cluster.put("n1", **{"chips": 4, **changes})

    outcome = cluster.place()

    assert outcome.slots == before.slots
    assert outcome.requeue_after_s == (pytest.approx(1.0) if changes.get("ready") is False else None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cordoned": True}, "cordoned"),
        ({"taints": [{"key": "dedicated", "effect": "NoSchedule"}]}, "a taint"),
        ({"labels": {"accelerator-type": "module-a3-16"}}, "no longer belongs to pool ascend"),
        ({"chips": 0}, "no longer belongs to pool ascend"),
        ({"chips": 2}, "others took chips"),
    ],
)
def test_kept_chips_without_pods_are_lost_where_no_pod_can_come(changes: dict[str, Any], why: str) -> None:
    cluster = Cluster(n1=4, n2=8)
    cluster.settle(run=False)
    cluster.put("n1", **{"chips": 4, **changes})

    outcome = cluster.place()

    assert nodes_of(outcome) == ["n2"]
    assert outcome.survival is not None
    assert why in outcome.survival.why[0]


def test_a_foreigner_that_takes_kept_chips_displaces_pods_that_are_not_there_yet_only() -> None:
    cluster = Cluster(n1=8, n2=8)
    cluster.settle()
    cluster.settle(key=ObjectKey("team", "late"), run=False)
    cluster.world.apply_pod(pod("job", chips={ASCEND: 2}, node="n1"))

    assert nodes_of(cluster.place()) == ["n1"]
    assert nodes_of(cluster.place(key=ObjectKey("team", "late"))) == ["n2"]


def test_a_revision_may_take_the_chips_of_one_that_ends() -> None:
    cluster = Cluster(n1=4)
    old = cluster.settle()
    new = replace(FIRST, revision=Revision("cccccccc"))

    assert cluster.place(new).slots == ()
    beside = cluster.place(new, gives_back=frozenset({old.slots[0].revision}))
    assert nodes_of(beside) == ["n1"]
    cluster.write(beside)  # the old pod still ends
    kept = survivors(cluster.world, CHAT, Revision("cccccccc"), territory="HK", node_grace_s=60, now=START)
    assert kept.kept == beside.slots


def test_a_model_goes_back_to_a_preferred_pool_that_has_settled() -> None:
    cluster = Cluster(m1=8)
    assert cluster.settle(FIRST, SECOND).chosen == SECOND
    cluster.put("n1", 8, ready_since=at(100))
    cluster.now = at(200)

    wait = cluster.place(FIRST, SECOND)
    assert (wait.chosen, wait.moving_to, wait.requeue_after_s) == (SECOND, "ascend", pytest.approx(200.0))
    assert "moves to pool ascend" in wait.message
    cluster.now = at(400)
    assert cluster.place(FIRST, SECOND).chosen == FIRST
    young = cluster.place(FIRST, SECOND, placed_since=at(399))
    assert (young.chosen, young.requeue_after_s) == (SECOND, pytest.approx(299.0))


def test_without_preferences_a_model_stays_where_it_is() -> None:
    cluster = Cluster(m1=8)
    cluster.settle(FIRST, SECOND)
    cluster.put("n1", 8)
    cluster.now = at(1e6)

    outcome = cluster.place(FIRST, SECOND, ordered=False)

    assert (outcome.chosen, outcome.moving_to) == (SECOND, None)


def test_a_preferred_pool_that_holds_only_a_part_is_no_reason_to_move() -> None:
    cluster = Cluster(m1=8)
    cluster.settle(FIRST, SECOND, replicas=2)
    cluster.put("n1", 4)
    cluster.now = at(1e6)

    assert cluster.place(FIRST, SECOND, replicas=2).chosen == SECOND


def test_a_model_falls_back_when_its_pool_dies_and_returns_only_once_in_a_while() -> None:
    cluster = Cluster(n1=8, m1=8)
    cluster.settle(FIRST, SECOND)
    moves = []
    current, placed_since = "ascend", START
    for second in range(0, 3600, 30):
        cluster.now = at(second)
        down = second % 240 < 120  # the node comes and goes
        cluster.put("n1", 8, ready=not down, ready_since=at(second - second % 120))
        outcome = cluster.place(FIRST, SECOND, placed_since=placed_since)
        assert outcome.chosen is not None
        if outcome.chosen.pool != current:
            current, placed_since = outcome.chosen.pool, cluster.now
            moves.append((second, current))
            cluster.world.forget_pod(ObjectKey("team", "chat-aaaaaaaa-0-0"))
            cluster.write(outcome)

    assert moves == [(60, "mlu")]  # never ready for long enough to go back


def test_replicas_on_cordoned_nodes_move_to_another_pool_before_they_are_evicted() -> None:
    cluster = Cluster(n1=8, m1=8)
    cluster.settle(FIRST, SECOND)
    cluster.put("n1", 8, cordoned=True)

    assert cluster.place(FIRST, SECOND).chosen == SECOND
    cluster.put("n2", 8)
    assert nodes_of(cluster.place(FIRST, SECOND)) == ["n1"]  # its own pool will take it when it is evicted


def test_a_model_with_fewer_replicas_than_asked_moves_to_where_all_have_room() -> None:
    cluster = Cluster(n1=4, m1=8)
    cluster.settle(FIRST, SECOND)
    cluster.now = at(400)

    assert cluster.place(FIRST, SECOND, replicas=3).chosen == SECOND
    few = cluster.place(FIRST, SECOND, replicas=9)
    assert (few.chosen, few.placed, len(few.refusals)) == (FIRST, 1, 2)


# ---- who comes first -----------------------------------------------------------------------------------------------------


def test_who_has_waited_longest_is_served_first() -> None:
    cluster = Cluster(n1=4)
    cluster.wait("early", 4, since=-20)
    cluster.wait("late", 4, since=-10)

    refused = cluster.place(key=ObjectKey("team", "late"))
    assert refused.slots == ()
    assert "team/early waited longer and come first" in refused.message
    assert cluster.place().slots == ()
    assert cluster.place(key=ObjectKey("team", "early")).placed == 1


def test_chips_that_are_of_no_use_to_who_comes_first_go_to_the_next() -> None:
    cluster = Cluster(n1=4)
    cluster.wait("early", 4, since=-1e6, refused="n1")

    assert nodes_of(cluster.place()) == ["n1"]


def test_a_small_model_passes_a_large_one_that_cannot_be_placed() -> None:
    cluster = Cluster(n1=8, n2=8)
    cluster.world.apply_pod(pod("job", chips={ASCEND: 1}, node="n1"))
    cluster.wait("large", 8, pods=2, since=-10)

    assert cluster.place().placed == 1


def test_a_large_model_that_has_waited_long_has_nodes_held_for_it() -> None:
    cluster = Cluster(n1=8, n2=8, n3=8)
    other = ObjectKey("team", "other")
    cluster.settle(replace(FIRST, chips_per_pod=6), key=other)  # on n1
    cluster.settle(replace(FIRST, chips_per_pod=5), key=ObjectKey("team", "third"))  # on n2
    cluster.wait("large", 8, pods=2, since=-901)

    assert nodes_of(cluster.place(replace(FIRST, chips_per_pod=2))) == ["n1"]
    refused = cluster.place(replace(FIRST, chips_per_pod=3))
    assert refused.slots == ()  # three are free on n2, and eight on n3
    assert "n3, n2 are held for team/large, which waits since 2026-11-23 07:44 UTC" in refused.message
    cluster.world.forget_model(ObjectKey("team", "third"))
    cluster.world.forget_pod(ObjectKey("team", "third-aaaaaaaa-0-0"))
    large = cluster.place(replace(FIRST, chips_per_pod=8, pods_per_replica=2), key=ObjectKey("team", "large"))
    assert nodes_of(large) == ["n2", "n3"]


def test_nothing_is_held_for_a_model_that_the_pool_could_never_hold() -> None:
    cluster = Cluster(n1=8)
    cluster.world.apply_pod(pod("job", chips={ASCEND: 4}, node="n1"))
    cluster.wait("large", 8, since=-1e6)

    assert cluster.place().placed == 1


def test_a_replica_that_lost_its_node_goes_before_the_queue() -> None:
    cluster = Cluster(n1=4, n2=4)
    cluster.settle()
    cluster.wait("early", 4, since=-100)
    cluster.world.forget_node(NodeName("n1"))

    assert nodes_of(cluster.place()) == ["n2"]


def test_freed_chips_wake_those_who_wait_in_their_order() -> None:
    cluster = Cluster(n1=4, n2=2)
    cluster.settle(key=ObjectKey("team", "owner"))
    cluster.wait("b", 2, since=-10)
    cluster.wait("a", 4, since=-20)
    cluster.wait("huge", 8, since=-30)

    cluster.world.forget_pod(ObjectKey("team", "owner-aaaaaaaa-0-0"))
    touched = cluster.world.forget_model(ObjectKey("team", "owner"))

    assert [key.name for key in touched.models] == ["owner", "a", "b"]
    assert touched.pools == {"ascend"}


def test_a_pool_is_looked_at_again_when_a_model_leaves_its_cordoned_nodes() -> None:
    cluster = Cluster(n1=4)
    cluster.settle(key=ObjectKey("team", "owner"))
    cluster.put("n1", 4, cordoned=True)

    touched = cluster.world.forget_model(ObjectKey("team", "owner"))

    assert touched.pools == {"ascend"}


def test_the_answer_is_the_same_however_the_world_came_about() -> None:
    names: Mapping[str, int] = {"n1": 8, "n2": 8, "n3": 4, "m1": 8}
    there, back = Cluster(**names), Cluster(**dict(reversed(names.items())))
    for cluster in (there, back):
        cluster.settle(FIRST, SECOND, key=ObjectKey("team", "x"))

    assert there.place(FIRST, SECOND, replicas=3) == back.place(FIRST, SECOND, replicas=3)


def test_chips_that_were_just_given_are_not_given_twice() -> None:
    cluster = Cluster(n1=4)
    outcome = cluster.place()
    placement = Placement(pool=FIRST.pool, revision=FIRST.revision, slots=outcome.slots)
    other = ObjectKey("team", "other")

    cluster.world.assume(CHAT, placement)
    assert cluster.place(key=other).slots == ()
    cluster.write(outcome)
    assert cluster.world.slots_of(CHAT) == outcome.slots
    touched = cluster.world.withdraw(CHAT)
    assert (cluster.world.slots_of(CHAT), touched.pools) == (outcome.slots, frozenset())
    cluster.world.assume(CHAT, placement)  # borne out by the next status, and so no longer in the way of the one after it
    cluster.write(replace(outcome, wanted=2))
    cluster.write(cluster.place(replicas=0))
    assert cluster.world.slots_of(CHAT) == ()
    cluster.world.assume(other, replace(placement, slots=(replace(outcome.slots[0], node=NodeName("n9")),)))
    assert [slot.node for slot in cluster.world.slots_of(other)] == ["n9"]
    cluster.world.withdraw(other)
    assert cluster.world.slots_of(other) == ()


def test_an_older_state_of_a_model_does_not_undo_what_was_written() -> None:
    cluster = Cluster(n1=4)
    cluster.write(cluster.place())
    stale = model("chat", version=1)

    assert cluster.world.apply_model(stale).models == ()
    assert len(cluster.world.slots_of(CHAT)) == 1


def test_slots_have_an_order() -> None:
    slot = Slot(revision=Revision("a"), replica=0, part=1, node=NodeName("n"), chips=1, resource=ASCEND, pool=PoolName("p"))
    assert sorted([slot, replace(slot, part=0)])[0].part == 0
