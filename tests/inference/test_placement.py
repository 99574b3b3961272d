"""Which bundles a replica asks for: whole stages on one node, whole pods, and chips that the table does not know."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lionrock.inference.placement import place
from lionrock.inference.settings import ModelSettings

DESCRIBED = {
    "extendedResource": "huawei.com/Ascend910",
    "torchDevice": "cpu",
    "collective": "gloo",
    "rayResource": "NPU",
    "memory": "64Gi",
    "chipsPerNode": 8,
}


def model(**changed: Any) -> ModelSettings:
    return ModelSettings.model_validate({"path": "/models/m"} | changed)


def test_a_bundle_is_a_pod_with_whole_stages_and_the_first_holds_the_replica_too() -> None:
    placement = place(model(chip="ascend-910b", tensor_parallel=4, pipeline_parallel=4, stages_per_node=2))
    assert placement.bundles == ({"CPU": 9, "NPU": 8}, {"CPU": 8, "NPU": 8})
    assert [placement.bundle_of(rank) for rank in range(16)] == [0] * 8 + [1] * 8
    assert [placement.device_of(rank) for rank in range(16)] == [*range(8), *range(8)]


def test_a_stage_is_never_cut_in_two() -> None:
    placement = place(model(chip="nvidia-h100", tensor_parallel=8, pipeline_parallel=2))
    assert placement.bundles == ({"CPU": 9, "GPU": 8}, {"CPU": 8, "GPU": 8})


def test_ranks_on_cpus_ask_for_nothing_but_cpus() -> None:
    assert place(model(tensor_parallel=2)).bundles == ({"CPU": 3},)


def test_a_described_chip_is_asked_for_by_its_own_resource() -> None:
    described = model(chip="lab", chip_description=DESCRIBED, tensor_parallel=2)
    assert place(described).bundles == ({"CPU": 3, "NPU": 2},)
    assert described.chip_row().torch_device == "cpu"


def test_vllm_gets_a_bundle_a_chip_and_one_node_where_the_model_fits_one() -> None:
    placement = place(model(chip="nvidia-h100", backend="vllm", tensor_parallel=2))
    assert placement.bundles == ({"CPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1})
    assert placement.strategy == "STRICT_PACK"
    assert place(model(chip="nvidia-h100", backend="vllm", tensor_parallel=2, pipeline_parallel=2)).strategy == "PACK"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pipeline_parallel": 3, "stages_per_node": 2}, "does not divide"),
        ({"chip": "lab", "chip_description": {**DESCRIBED, "torchDevice": 7}}, "chip lab has no usable torchDevice"),
        ({"chip": "lab", "chip_description": DESCRIBED, "backend": "vllm"}, "vllm"),
    ],
)
def test_layouts_that_cannot_be_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model(**changed)
