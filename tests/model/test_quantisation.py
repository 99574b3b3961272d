"""Quantised linear layers against the plain arithmetic of the same integers, natively and by PyTorch, and whole models of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from checkpoints import save_llama, save_model
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_processes import Job, record, run_ranks
from small_models import engine_over, mixed_requests, plan_for, run_requests

from lionrock.inference.engine.batch import GREEDY, BatchRow
from lionrock.inference.engine.sequence import SequenceId
from lionrock.inference.model.attention import KVCache
from lionrock.inference.model.errors import MalformedWeights
from lionrock.inference.model.forward import make_forward, native_library
from lionrock.inference.model.gguf_file import GgufFile
from lionrock.inference.model.kernels import Packed, pack_quantised
from lionrock.inference.model.layers import RotaryEmbedding
from lionrock.inference.model.native.library import Library
from lionrock.inference.model.native.quantised_matrix import FORMATS, pack_panels
from lionrock.inference.model.quantisation import (
    INT4_INT16,
    INT8_INT8,
    INT8_INT16,
    QUANTISATIONS,
    Quantisation,
    Scheme,
    UnpackedMatrix,
    hadamard,
    quantise,
    rounded_activations,
)
from lionrock.inference.model.transformer import Transformer, load_weights
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import LocalRunner, ShardWorker
from lionrock.inference.served_model import describe_model
from lionrock.inference.settings import ModelSettings
from lionrock.planner.plan import PlanError
from lionrock.planner.weight_types import WEIGHT_TYPES

SCHEMES = (INT8_INT8, INT8_INT16, INT4_INT16)
NAMES = tuple(QUANTISATIONS)
# A model whose cuts for two ranks fall on the groups' edges, so that two ranks hold the integers of one.
ALIGNED = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256}


@pytest.fixture(scope="module")
def native() -> Library:
    library = native_library("auto", torch.bfloat16, torch.device("cpu"), 16)
    if library is None:
        pytest.skip("no native kernels on this machine")
    return library


def naive(x: torch.Tensor, weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The product of what the integers stand for, in float64."""
    return rounded_activations(x, scheme).double() @ quantise(weight, scheme).values().double().T


def random(*shape: int, seed: int) -> torch.Tensor:
    """Numbers with some outliers, as activations and weights have."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(*shape, generator=generator)
    return numbers * (1 + 20 * (torch.rand(shape[-1], generator=generator) > 0.97))


def logits(path: Path, name: Quantisation, token_ids: Sequence[int], native: Library | None) -> torch.Tensor:
    """Logits of every position of a quantised model in float32: [T, V]."""
    source, device = open_weights(path), torch.device("cpu")
    config = source.config
    model = Transformer(config)
    model.quantise(QUANTISATIONS[name])
    load_weights(model, source, torch.float32, device, lambda *_: None, native)
    rope = RotaryEmbedding(config.rope, config.rotary_dim, config.context_window, torch.float32, device)
    shapes = config.cache_shapes(config.kv_heads)
    cache = KVCache(layers=config.layers, blocks=8, block_size=16, shapes=shapes, dtype=torch.float32, device=device)
    forward = make_forward(model, rope, cache, torch.float32, device, native)
    with torch.inference_mode():
        forward.begin([BatchRow(SequenceId(0), 0, token_ids, range(-(-len(token_ids) // 16)), GREEDY, drafts=len(token_ids) - 1)])
        forward.hidden(None)
        return forward.logits().clone()


def runner_of(path: Path, weight_dtype: str, dtype: str = "float32") -> LocalRunner:
    plan = plan_for(open_weights(path).config, dtype=dtype, weight_dtype=weight_dtype)
    worker = ShardWorker(path, plan, 0)
    worker.load()
    worker.allocate_kv_cache(64)
    return LocalRunner(worker)


# ---- arithmetic ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 20), outputs=st.integers(1, 200), inputs=st.integers(1, 300), seed=st.integers(0, 2**20), bias=st.booleans()
)
def test_native_products_are_those_of_the_integers(
    native: Library, scheme: Scheme, rows: int, outputs: int, inputs: int, seed: int, bias: bool
) -> None:
    x, weight = random(rows, inputs, seed=seed), random(outputs, inputs, seed=seed + 1) * 0.05
    added = random(outputs, seed=seed + 2) if bias else None
    first = min(outputs, 1 + seed % outputs)
    slices = [first, outputs - first] if first < outputs else [outputs]
    product = pack_quantised(weight, slices, scheme, torch.float32, native)(x, added)
    expected = naive(x, weight, scheme) + (0 if added is None else added.double())
    # A number halfway between two integers may be rounded either way: one step of one input, for some inputs of a row at most.
    largest = float(rounded_activations(x, scheme).abs().amax() * quantise(weight, scheme).values().abs().amax())
    slack = 8 * largest / scheme.most + 1e-5 * largest * inputs + 1e-6
    torch.testing.assert_close(product.double(), expected, atol=slack, rtol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_by_pytorch_are_those_of_the_integers(scheme: Scheme, dtype: torch.dtype) -> None:
    x, weight, bias = random(7, 130, seed=1).to(dtype), random(33, 130, seed=2), random(33, seed=3).to(dtype)
    product = UnpackedMatrix(weight, scheme)(x, bias)
    assert product.dtype is dtype
    expected = naive(x, weight, scheme) + bias.double()
    torch.testing.assert_close(product.double(), expected, atol=float(expected.abs().max()) * 2**-8, rtol=2**-8)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_company(native: Library, scheme: Scheme, dtype: torch.dtype) -> None:
    matrix = pack_quantised(random(100, 200, seed=4), [100], scheme, dtype, native)
    x = random(300, 200, seed=5).to(dtype)
    together = matrix(x, None)
    for row in (0, 1, 7, 127, 128, 299):
        assert torch.equal(matrix(x[row : row + 1], None)[0], together[row])
    assert torch.equal(matrix(x[5:18], None), together[5:18])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounding_costs_no_more_than_half_a_step(scheme: Scheme) -> None:
    weight = random(20, 256, seed=6)
    quantised = quantise(weight, scheme)
    error = (quantised.values() - _rotated(weight, scheme)).abs().view(20, -1, scheme.group)
    # Scales and minima of 4 bits are rounded to float16.
    assert bool((error <= quantised.scales[..., None] * (0.5001 if scheme.bits == 8 else 0.52)).all())
    assert int(quantised.codes.max()) <= (255 if scheme.bits == 8 else 15)


def test_rotation_spreads_an_outlier_over_its_group_and_costs_the_others_less() -> None:
    x, weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(7)), random(32, 64, seed=8)
    x[:, 5] = 100.0
    exact = x.double() @ weight.double().T
    plain = Scheme(8, 8, 64)
    errors = [float((naive(x, weight, scheme) - exact).pow(2).mean()) for scheme in (INT8_INT8, plain)]
    assert errors[0] < errors[1] / 4


@pytest.mark.parametrize("size", [1, 2, 64])
def test_hadamard_matrices_are_their_own_inverses(size: int) -> None:
    matrix = hadamard(size, torch.device("cpu"))
    torch.testing.assert_close(matrix @ matrix, torch.eye(size))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("outputs", [1, 48, 50, 96])
@pytest.mark.parametrize("inputs", [1, 64, 65])
def test_panels_have_the_size_that_the_kernels_read(native: Library, scheme: Scheme, outputs: int, inputs: int) -> None:
    panels = pack_panels(quantise(torch.ones(outputs, inputs), scheme))
    assert panels.numel() == native.quantised_bytes(FORMATS[scheme], outputs, inputs)
    assert panels.is_contiguous()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_and_weights_of_zeros_give_zeros(native: Library, scheme: Scheme) -> None:
    weight = torch.zeros(50, 70)
    forms: list[Packed] = [pack_quantised(weight, [50], scheme, torch.float32, which) for which in (native, None)]
    for form in forms:
        assert not isinstance(form, torch.Tensor)
        assert torch.equal(form(random(3, 70, seed=9), None), torch.zeros(3, 50))
        assert torch.equal(form(torch.zeros(3, 70), None), torch.zeros(3, 50))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(scheme: Scheme, bad: float) -> None:
    weight = torch.ones(3, 70)
    weight[1, 69] = bad
    with pytest.raises(MalformedWeights):
        quantise(weight, scheme)


def test_weights_beyond_the_type_of_their_scales_are_refused() -> None:
    with pytest.raises(MalformedWeights):
        quantise(torch.full((2, 32), 1e6), INT4_INT16)


# ---- checkpoints --------------------------------------------------------------------------------------------------------------


def test_q4_1_blocks_keep_their_very_values() -> None:
    blocks = quantize(random(64, 256, seed=10).numpy(), GGMLQuantizationType.Q4_1)
    weight = torch.from_numpy(dequantize(blocks, GGMLQuantizationType.Q4_1))
    assert torch.equal(quantise(weight, INT4_INT16).values(), weight)


def test_a_real_q4_1_file_keeps_its_very_values(smollm2: Path) -> None:
    file = GgufFile(smollm2)
    for name in ("blk.0.attn_q", "blk.7.ffn_down", "blk.29.ffn_gate"):
        weight = file.read(f"{name}.weight", None, None, torch.float32)
        assert torch.equal(quantise(weight, INT4_INT16).values(), weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_held_after_loading_is_what_the_plan_counts(native: Library, tmp_path: Path, name: str, tied: bool) -> None:
    save_llama(tmp_path, tie_word_embeddings=tied)
    plan = plan_for(open_weights(tmp_path).config, dtype="bfloat16", weight_dtype=name)
    shard = plan.shards[0]
    assert ShardWorker(tmp_path, plan, 0).load() == shard.weight_bytes + shard.packed_bytes
    assert ShardWorker(tmp_path, plan, 0, native_kernels="off").load() == shard.weight_bytes


def test_every_quantisation_has_its_weight_type_in_the_planner() -> None:
    for name, schemes in QUANTISATIONS.items():
        known = WEIGHT_TYPES[name]
        assert (known.bits, known.block[1]) == (schemes.layers.bits, schemes.layers.group)
        assert known.head is not None
        assert WEIGHT_TYPES[known.head].bits == schemes.head.bits


@pytest.mark.parametrize("name", ["none", *NAMES])
def test_the_setting_becomes_the_plans_weight_type(smollm2: Path, name: str) -> None:
    model = describe_model("smollm2", ModelSettings.model_validate({"path": smollm2, "weight_quantisation": name}))
    assert model.plan.weight_dtype == (None if name == "none" else name)


def test_an_unknown_quantisation_is_refused_by_name(tmp_path: Path) -> None:
    save_llama(tmp_path)
    with pytest.raises(PlanError, match="int3"):
        plan_for(open_weights(tmp_path).config, weight_dtype="int3")


# ---- models -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_native_and_pytorch_run_the_same_quantised_model(native: Library, tmp_path: Path, name: Quantisation) -> None:
    save_model("qwen2", tmp_path)  # with biases
    token_ids = torch.randint(3, 331, (40,), generator=torch.Generator().manual_seed(11)).tolist()
    natively, by_pytorch = (logits(tmp_path, name, token_ids, library) for library in (native, None))
    assert natively.std() > 0.1
    torch.testing.assert_close(natively, by_pytorch, atol=0.02 * float(by_pytorch.abs().max()), rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_answers_do_not_depend_on_the_batch(native: Library, tmp_path: Path, name: str) -> None:
    save_llama(tmp_path)
    requests = mixed_requests(331, count=4, max_tokens=8)
    runner = runner_of(tmp_path, name, dtype="bfloat16")
    together = run_requests(engine_over(runner), requests)
    for request in requests:
        assert run_requests(engine_over(runner), [request])[request.request_id] == together[request.request_id]


def test_two_ranks_answer_as_one_where_cuts_fall_on_groups(tmp_path: Path) -> None:
    save_llama(tmp_path / "model", **ALIGNED)
    requests = mixed_requests(331, count=3, max_tokens=3)
    jobs, expected = [], []
    for name in NAMES:
        steps, results = record(runner_of(tmp_path / "model", name), requests)
        jobs.append(Job(tmp_path / "model", 2, 1, 64, steps, weight_dtype=name))
        expected.append(results)
    for results, reports in zip(expected, run_ranks(jobs, tmp_path / "store"), strict=True):
        assert [result.token_ids for result in reports[0].results if result] == [result.token_ids for result in results]


def test_cuts_of_columns_fall_on_groups(tmp_path: Path) -> None:
    save_llama(tmp_path, **{**ALIGNED, "intermediate_size": 1536})
    config = open_weights(tmp_path).config
    for name in NAMES:
        plan = plan_for(config, tensor_parallel=2, weight_dtype=name)
        assert all(shard.first_mlp_column % QUANTISATIONS[name].layers.group == 0 for shard in plan.shards)


def _rotated(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    if not scheme.rotated:
        return weight
    groups = weight.view(len(weight), -1, scheme.group)
    return (groups @ hadamard(scheme.group, weight.device)).view(weight.shape)
