"""Which pool and which nodes the replicas of a model get: all pods of a replica, or none.

Chips are given whole, on the node with the least left over, so that large pods find room later; a model's replicas stand on
different nodes where that costs nothing. What a model has it keeps, even where another packing would be better now: a slot moves
only when it is lost (`survival`). Who comes first is decided by `fairness`. The first pool in order of preference that holds all
replicas is taken; if none does, the one that holds most.

A model moves to a pool that it prefers, or that holds all its replicas where its own does not, only if that could hold all of them
on nodes that have been ready for `settle_s`, and only once its present revision has run that long: whatever nodes do, it moves at
most once in that time. It leaves at once when nothing of it is left, or when all of its nodes are cordoned and its pool has no
other room. The answer depends on nothing but World, request and time.

Tenants share nodes but never a chip, so a dedicated tenancy asks nothing more of a placement.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from lionrock.operator.fairness import Claims, set_aside
from lionrock.operator.pools import ResolvedPool
from lionrock.operator.refusals import Refusal, no_room, unusable
from lionrock.operator.resources import NodeName, ObjectKey, PoolName, Revision, Slot
from lionrock.operator.survival import Survival, survivors
from lionrock.operator.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long what is waited for. Seconds."""

    node_grace_s: float = 60.0
    """A node that has not been ready for so long is lost."""
    settle_s: float = 300.0
    """Between two moves of a model, and a preferred pool's nodes must have been ready for so long."""
    hold_after_s: float = 900.0
    """A model that waits for so long has nodes held for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A pool that the model may run on, and what it would be there."""

    pool: PoolName
    revision: Revision | None = None
    chips_per_pod: int = 0
    pods_per_replica: int = 0
    refusal: str | None = None
    """Why it cannot run there, for example that no plan fits; the fields above are then not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be placed."""

    model: ObjectKey
    territory: str
    candidates: tuple[Candidate, ...]
    """In order of preference."""
    replicas: int
    ordered: bool = True
    """Whether the order says what the owner prefers; if not, a model stays where it is."""
    gives_back: frozenset[Revision] = frozenset()
    """Revisions of the model that end before this one starts: their chips count as free."""
    newest: Revision | None = None
    """Revision of the model's present placement; None: it has none."""
    placed_since: datetime | None = None
    """When that revision was started; None: it is not known, and counts as just now."""
    avoid: frozenset[NodeName] = frozenset()
    """Nodes on which the scheduler refuses the model's pods, whatever chips they have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where the model is to be."""

    chosen: Candidate | None
    """None: no pool has chips for a single replica, or none are asked for."""
    slots: tuple[Slot, ...]
    """Of the chosen revision, whole replicas only, those that it has already among them."""
    wanted: int
    survival: Survival | None
    """Of the chosen revision's slots before; None: it has none."""
    refusals: tuple[Refusal, ...]
    """Of each pool that was tried and does not hold all replicas."""
    moving_to: PoolName | None = None
    """Pool that the model will move to when that has settled."""
    requeue_after_s: float | None = None
    """When the answer may change though nothing in the World does."""

    @property
    def placed(self) -> int:
        """Replicas with chips."""
        return len({slot.replica for slot in self.slots})

    @property
    def complete(self) -> bool:
        """Whether all replicas have chips."""
        return self.placed == self.wanted

    @property
    def message(self) -> str:
        """What a person must know, for a condition."""
        told = f"{self.placed} of {self.wanted} replicas have chips"
        if self.chosen is not None:
            told += f" on pool {self.chosen.pool}"
        if self.survival is not None and self.survival.why:
            told += "; lost: " + ", ".join(f"replica {replica}: {why}" for replica, why in sorted(self.survival.why.items()))
        if self.refusals:
            told += "; " + "; ".join(str(refusal) for refusal in self.refusals)
        if self.moving_to is not None:
            told += f"; moves to pool {self.moving_to} when that has settled"
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """What a pool would give. new: slots beside those that the revision has there."""

    candidate: Candidate
    kept: tuple[Slot, ...]
    new: tuple[Slot, ...]
    refusal: Refusal | None

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(sorted((*self.kept, *self.new)))

    @property
    def replicas(self) -> int:
        return len({slot.replica for slot in self.slots})


def place(world: World, request: Request, patience: Patience, now: datetime) -> Outcome:
    """Find chips for the model's replicas. Changes nothing: the caller writes the slots to the status."""
    current = _current(world, request)
    if current is None:
        return _anew(world, request, patience, now)
    survival = _survival(world, request, current, patience, now)
    stay = _try(world, request, current, patience, now, survival)
    if not stay.slots:
        return _anew(world, request, patience, now, current, survival)
    refusals = () if stay.refusal is None else (stay.refusal,)
    requeue = survival.recheck_after_s
    leaves = _must_leave(world, request, current, survival, patience, now)
    for other in _better(request, current, complete=stay.replicas == request.replicas and not leaves):
        trial = _try(world, request, other, patience, now, None)
        if trial.replicas == request.replicas:
            wait_s = 0.0 if leaves else _settles_in(world, trial, request, patience, now)
            if wait_s <= 0:
                return _outcome(request, trial, None, refusals, None)
            requeue = min(wait_s, requeue) if requeue is not None else wait_s
            return _outcome(request, stay, survival, refusals, requeue, moving_to=other.pool)
        if trial.refusal is not None:
            refusals = (*refusals, trial.refusal)
    return _outcome(request, stay, survival, refusals, requeue)


def _anew(
    world: World,
    request: Request,
    patience: Patience,
    now: datetime,
    current: Candidate | None = None,
    lost: Survival | None = None,
) -> Outcome:
    """Choose among all pools for a model that has nothing, or lost it all. current: what it had."""
    best: _Trial | None = None
    refusals: list[Refusal] = []
    for candidate in request.candidates if request.replicas else ():
        trial = _try(world, request, candidate, patience, now, lost if candidate == current else None)
        if trial.replicas == request.replicas:
            best = trial
            break
        if trial.refusal is not None:
            refusals.append(trial.refusal)
        if best is None or trial.replicas > best.replicas:
            best = trial
    if best is None or not best.slots:
        return Outcome(chosen=None, slots=(), wanted=request.replicas, survival=lost, refusals=tuple(refusals))
    return _outcome(request, best, lost, tuple(refusals), None)


def _outcome(
    request: Request,
    trial: _Trial,
    survival: Survival | None,
    refusals: tuple[Refusal, ...],
    requeue: float | None,
    moving_to: PoolName | None = None,
) -> Outcome:
    return Outcome(
        chosen=trial.candidate,
        slots=trial.slots,
        wanted=request.replicas,
        survival=survival,
        refusals=refusals,
        moving_to=moving_to,
        requeue_after_s=requeue,
    )


def _current(world: World, request: Request) -> Candidate | None:
    """Return the candidate that the model has chips for: that of its newest revision, else the first."""
    held = {(slot.revision, slot.pool) for slot in world.slots_of(request.model)}
    having = [each for each in request.candidates if each.refusal is None and (each.revision, each.pool) in held]
    return next((each for each in having if each.revision == request.newest), having[0] if having else None)


def _survival(world: World, request: Request, candidate: Candidate, patience: Patience, now: datetime) -> Survival:
    assert candidate.revision is not None, "a candidate without refusal has a revision"
    return survivors(
        world,
        request.model,
        candidate.revision,
        territory=request.territory,
        node_grace_s=patience.node_grace_s,
        now=now,
        pods_per_replica=candidate.pods_per_replica,
        avoid=request.avoid,
    )


def _try(
    world: World, request: Request, candidate: Candidate, patience: Patience, now: datetime, survival: Survival | None
) -> _Trial:
    """Place as many replicas on a pool as it takes, beside those that survive there."""
    kept = () if survival is None else _reduced(survival, request.replicas)
    missing = request.replicas - len({slot.replica for slot in kept})
    if candidate.refusal is not None:
        return _Trial(candidate=candidate, kept=(), new=(), refusal=Refusal(candidate.pool, candidate.refusal))
    assert candidate.revision is not None, "a candidate without refusal has a revision"
    if missing == 0:
        return _Trial(candidate=candidate, kept=kept, new=(), refusal=None)
    problem = unusable(world, candidate.pool, request.territory, candidate.chips_per_pod)
    if problem is not None:
        return _Trial(candidate=candidate, kept=kept, new=(), refusal=Refusal(candidate.pool, problem))
    pool = world.resolved(candidate.pool)
    given_up = () if survival is None else survival.given_up
    room = world.room(candidate.pool, request.model, revisions=request.gives_back - {candidate.revision}, slots=given_up)
    assert room is not None, "a usable pool has room, be it none"
    assert isinstance(pool, ResolvedPool), "a usable pool has a chip"
    for node in request.avoid:
        room.put(node, 0)
    new: list[Slot] = []
    used = {slot.node for slot in kept}
    recovered = 0 if survival is None else len(survival.why)
    claims = Claims()
    for index, replica in enumerate(_free_numbers({slot.replica for slot in kept}, missing)):
        if index == recovered and room.pods_that_fit(candidate.chips_per_pod) >= candidate.pods_per_replica:
            claims = set_aside(world, candidate.pool, room, request.model, hold_after_s=patience.hold_after_s, now=now)
        nodes = room.take_together(candidate.chips_per_pod, candidate.pods_per_replica, used)
        if nodes is None:
            told = no_room(world, pool, room, claims, candidate.chips_per_pod, candidate.pods_per_replica)
            return _Trial(candidate=candidate, kept=kept, new=tuple(new), refusal=Refusal(candidate.pool, told))
        used.update(nodes)
        new.extend(
            Slot(
                revision=candidate.revision,
                replica=replica,
                part=part,
                node=node,
                chips=candidate.chips_per_pod,
                resource=pool.resource,
                pool=candidate.pool,
            )
            for part, node in enumerate(nodes)
        )
    return _Trial(candidate=candidate, kept=kept, new=tuple(new), refusal=None)


def _reduced(survival: Survival, replicas: int) -> tuple[Slot, ...]:
    """Kept slots of so many replicas at most: first those that do not leave, then by number."""
    staying = sorted(survival.replicas, key=lambda replica: (replica in survival.leaving, replica))[:replicas]
    return tuple(slot for slot in survival.kept if slot.replica in staying)


def _free_numbers(taken: set[int], count: int) -> list[int]:
    """Return the lowest numbers of replicas that are free."""
    return [number for number in range(len(taken) + count) if number not in taken][:count]


def _better(request: Request, current: Candidate, *, complete: bool) -> tuple[Candidate, ...]:
    """Candidates that the model would rather be on, if they held all of its replicas."""
    if not complete:
        return tuple(candidate for candidate in request.candidates if candidate != current)
    return request.candidates[: request.candidates.index(current)] if request.ordered else ()


def _must_leave(world: World, request: Request, current: Candidate, survival: Survival, patience: Patience, now: datetime) -> bool:
    """Whether all of its nodes are cordoned, and its pool has no other room: with its pods it would lose its chips."""
    if not survival.kept or set(survival.replicas) != survival.leaving:
        return False
    elsewhere = _try(world, request, current, patience, now, None)
    return elsewhere.replicas < request.replicas


def _settles_in(world: World, trial: _Trial, request: Request, patience: Patience, now: datetime) -> float:
    """Seconds until the model may move there; not positive: it may now."""
    since = [request.placed_since or now]
    for slot in trial.new:
        node = world.nodes.get(slot.node)
        if node is not None and node.ready_since is not None:
            since.append(node.ready_since)
    return patience.settle_s - (now - max(since)).total_seconds()
