"""The model's config for planning: from the spec, else as a pod has read it from the model's files.

What a pod said is kept in `status.facts` with a digest of the source that it was read from, so that another source is read anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from lionrock.operator.actions import Delete, Manifest
from lionrock.operator.candidates import pools_of
from lionrock.operator.conditions import ConditionType, Finding, Reason, Status
from lionrock.operator.decision_settings import DecisionSettings
from lionrock.operator.desired_state import facts_name, facts_reader
from lionrock.operator.gang import pod_ref
from lionrock.operator.pools import ResolvedPool
from lionrock.operator.resources import GROUP, ModelDeployment, ModelFiles, ObjectKey, Pod, PoolName
from lionrock.operator.world import World

SOURCE_LABEL: Final = f"{GROUP}/source"
_MAX_FACTS_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of the model, and what is done to know it."""

    config: Mapping[str, Any] | None
    status: Mapping[str, Any] | None = None
    """Value of `status.facts`."""
    finding: Finding | None = None
    """Why there is no config yet."""
    apply: tuple[Manifest, ...] = ()
    delete: tuple[Delete, ...] = ()
    recheck_after_s: float | None = None


def facts_of(world: World, model: ModelDeployment, settings: DecisionSettings) -> Facts:
    """Return the config, or what is to be done to have it."""
    source, kept = _digest(model.spec.source), model.status.facts
    pod = world.pods.get(ObjectKey(model.key.namespace, facts_name(model.meta.name)))
    if pod is not None and pod.model != model.key:
        pod = None  # somebody else's, of that name
    if model.spec.config is not None:
        return Facts(config=model.spec.config, delete=_gone(pod))
    if kept is not None and kept.get("source") == source and isinstance(kept.get("config"), Mapping):
        return Facts(config=kept["config"], status=kept, delete=_gone(pod))
    if pod is None:
        return _begin(world, model, settings, source)
    if pod.labels.get(SOURCE_LABEL) != source:
        return Facts(config=None, delete=_gone(pod), finding=_unknown("it was read from another source; it is read anew"))
    if not pod.has_ended:
        stuck = "" if pod.unschedulable is None else f"; the scheduler says: {pod.unschedulable}"
        return Facts(config=None, finding=_unknown(f"pod {pod.key.name} reads it from the model's files{stuck}"))
    config = _said(pod) if pod.phase == "Succeeded" else None
    if config is None:
        told = (pod.last_words or "it said nothing").strip()[:512]
        finding = Finding(ConditionType.PLANNED, Status.FALSE, Reason.CONFIG_UNREADABLE, f"pod {pod.key.name} failed: {told}")
        return Facts(config=None, finding=finding)
    return Facts(config=config, status={"source": source, "config": config}, delete=_gone(pod))


def _begin(world: World, model: ModelDeployment, settings: DecisionSettings, source: str) -> Facts:
    """Have the config read, by the engine image of any pool of the model."""
    found: list[ResolvedPool] = []
    why: list[str] = []
    for name in pools_of(world, model):
        pool = world.resolved(name)
        usable = isinstance(pool, ResolvedPool) and pool.image is not None and pool.pool.territory == model.spec.territory
        if usable and isinstance(pool, ResolvedPool):
            found.append(pool)
        else:
            why.append(_why_not(name, pool))
    if not found:
        told = "; ".join(why) or f"there is no chip pool in {model.spec.territory}"
        return Facts(config=None, finding=Finding(ConditionType.PLANNED, Status.FALSE, Reason.NO_POOL, told))
    manifest = facts_reader(model.spec.source, model.meta, found[0], settings)
    manifest["metadata"]["labels"][SOURCE_LABEL] = source
    return Facts(config=None, apply=(manifest,), finding=_unknown("a pod is made that reads it from the model's files"))


def _why_not(name: PoolName, pool: object) -> str:
    if isinstance(pool, ResolvedPool):
        return f"pool {name}: " + (pool.problem.message if pool.problem is not None else f"it stands in {pool.pool.territory}")
    return f"pool {name}: {getattr(pool, 'message', 'there is no such pool')}"


def _said(pod: Pod) -> Mapping[str, Any] | None:
    """Return the config that a pod's last words are, or None."""
    words = pod.last_words or ""
    if len(words.encode()) > _MAX_FACTS_BYTES:
        return None
    try:
        config = json.loads(words)
    except (ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _gone(pod: Pod | None) -> tuple[Delete, ...]:
    if pod is None or pod.deleted_at is not None:
        return ()
    return (Delete(ref=pod_ref(pod), why="what it has read is known, or read elsewhere"),)


def _unknown(message: str) -> Finding:
    return Finding(ConditionType.PLANNED, Status.UNKNOWN, Reason.CONFIG_UNKNOWN, message)


def _digest(source: ModelFiles) -> str:
    text = json.dumps([type(source).__name__, asdict(source)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
