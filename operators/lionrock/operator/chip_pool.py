"""ChipPool as typed values.

Reads what `charts/lionrock-crds` defines; an object that does not match becomes UnreadablePool, which names the field. Does not
know the chip table: `pools` resolves a row's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lionrock.operator.fields import Fields, Malformed
from lionrock.operator.metadata import Condition, Metadata, PoolName, condition, conditions_of, metadata_of
from lionrock.operator.quantities import QuantityError, parse_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """A toleration of a pool's pods; None: the field is not stated."""

    key: str | None
    operator: str = "Equal"  # or "Exists"
    value: str | None = None
    effect: str | None = None
    toleration_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipDescription:
    """A chip that the table does not know, as the pool describes it."""

    product: str | None
    extended_resource: str
    torch_device: str
    torch_module: str | None
    collective: str
    ray_resource: str
    visible_devices: str | None
    memory_bytes: int
    chips_per_node: int
    even_counts_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipPool:
    """A pool: spec as the owner wrote it, and the conditions that the operator wrote."""

    meta: Metadata
    chip: str | None
    """Row of the chip table; None: `description` is given."""
    description: ChipDescription | None
    memory_bytes: int | None
    """Of one chip, where it differs from the table; of the description's own where both are given, this one."""
    chips_per_node: int | None
    node_selector: Mapping[str, str]
    tolerations: tuple[Toleration, ...]
    territory: str
    engine_image: str | None
    engine_backend: str  # "torch" or "vllm"
    conditions: tuple[Condition, ...]
    status: Mapping[str, Any]
    """As it is, to see whether it must be written again."""

    @property
    def name(self) -> PoolName:
        """Name of the object; pools have no namespace."""
        return PoolName(self.meta.key.name)

    def condition(self, kind: str) -> Condition | None:
        """Condition of that type, or None."""
        return condition(self.conditions, kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadablePool:
    """A pool whose spec cannot be read. Nothing is placed on it."""

    meta: Metadata
    problem: str
    conditions: tuple[Condition, ...]
    status: Mapping[str, Any]

    @property
    def name(self) -> PoolName:
        """Name of the object."""
        return PoolName(self.meta.key.name)


def parse_chip_pool(body: Mapping[str, Any]) -> ChipPool | UnreadablePool:
    """Read a ChipPool as the API gives it. Raises Malformed only for one without metadata."""
    meta = metadata_of(body)
    status = body.get("status")
    status = status if isinstance(status, Mapping) else {}
    try:
        conditions = conditions_of(Fields("status", status))
    except Malformed:
        conditions = ()  # written anew with the next status
    try:
        return _parse(meta, Fields.of(body.get("spec"), "spec"), conditions, status)
    except Malformed as error:
        return UnreadablePool(meta=meta, problem=str(error), conditions=conditions, status=status)


def _parse(meta: Metadata, spec: Fields, conditions: tuple[Condition, ...], status: Mapping[str, Any]) -> ChipPool:
    if spec.has("chip") == spec.has("description"):
        raise Malformed("spec states either chip or description")
    engine = spec.under("engine")
    return ChipPool(
        meta=meta,
        chip=spec.optional_text("chip"),
        description=_description(spec.under("description")) if spec.has("description") else None,
        memory_bytes=spec.optional_bytes("memory"),
        chips_per_node=spec.optional_count("chipsPerNode", least=1),
        node_selector=spec.texts("nodeSelector"),
        tolerations=tuple(_toleration(each) for each in spec.each("tolerations")),
        territory=spec.text("territory"),
        engine_image=engine.optional_text("image"),
        engine_backend=engine.one_of("backend", ("torch", "vllm"), "torch"),
        conditions=conditions,
        status=status,
    )


def _description(fields: Fields) -> ChipDescription:
    try:
        memory = parse_bytes(fields.values.get("memory"))
    except QuantityError as error:
        raise Malformed(f"{fields.at('memory')}: {error}") from None
    return ChipDescription(
        product=fields.optional_text("product"),
        extended_resource=fields.text("extendedResource"),
        torch_device=fields.text("torchDevice"),
        torch_module=fields.optional_text("torchModule"),
        collective=fields.text("collective"),
        ray_resource=fields.text("rayResource"),
        visible_devices=fields.optional_text("visibleDevices"),
        memory_bytes=memory,
        chips_per_node=fields.count("chipsPerNode", least=1),
        even_counts_only=fields.flag("evenCountsOnly"),
    )


def _toleration(fields: Fields) -> Toleration:
    return Toleration(
        key=fields.optional_text("key"),
        operator=fields.one_of("operator", ("Equal", "Exists"), "Equal"),
        value=fields.optional_text("value"),
        effect=fields.optional_text("effect"),
        toleration_seconds=fields.optional_count("tolerationSeconds"),
    )
