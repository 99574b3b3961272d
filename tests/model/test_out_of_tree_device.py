"""No `cuda` is assumed anywhere: the model runs on a device that PyTorch learns of at run time, and a new chip is one row."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import lion_device
import pytest
import small_models
import torch
from checkpoints import save_llama
from small_models import engine_over, local_runner, mixed_requests, run_requests

from lionrock.inference.local_engine import LocalOptions, open_engine
from lionrock.planner import chips

VOCAB_SIZE = 331
TEST_CHIP = replace(
    chips.chip("ascend-910b"), name=chips.ChipName("lion"), product="a device of the tests", torch_device=lion_device.NAME,
    torch_module="lion_device", proven=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    save_llama(directory)
    return directory


def test_answers_on_an_out_of_tree_device_equal_those_on_the_cpu(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = mixed_requests(VOCAB_SIZE)
    on_cpu = run_requests(engine_over(local_runner(checkpoint)), requests)
    monkeypatch.setattr(small_models, "DEVICE", lion_device.NAME)
    lion_device.operations.clear()
    assert run_requests(engine_over(local_runner(checkpoint)), requests) == on_cpu
    for operator in ("aten::mm", "aten::embedding", "aten::index_copy_", "aten::argmax", "aten::searchsorted.Tensor"):
        assert lion_device.operations[operator] > 0, f"{operator} ran elsewhere"


async def test_a_chip_that_is_one_row_of_the_table_serves(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chips, "CHIPS", MappingProxyType({**chips.CHIPS, TEST_CHIP.name: TEST_CHIP}))
    requests = mixed_requests(VOCAB_SIZE, count=2)
    lion_device.operations.clear()
    async with open_engine(checkpoint, LocalOptions(chip="lion", dtype="float32", kv_cache_bytes=1 << 20)) as engine:
        answers = {
            request.request_id: sum([output.token_ids async for output in engine.generate(request)], ()) for request in requests
        }
    assert answers == run_requests(engine_over(local_runner(checkpoint)), requests)
    assert lion_device.operations["aten::mm"] > 0


def test_a_host_tensor_among_the_devices_own_is_refused_as_on_a_chip() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match="got a tensor on cpu"):
        torch.zeros(3, device=lion_device.NAME) + torch.ones(3)
