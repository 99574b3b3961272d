"""What weight quantisation costs in accuracy and gains in time: agreement, perplexity, divergence, and step times.

Three short texts (English, Mandarin, Cantonese) are read with their true continuation forced at every position. Agreement is the
share of positions at which the most likely next token equals that of the bfloat16 model; bfloat16's own agreement with float32 is
the scale for it, because near-ties fall either way in any arithmetic. Divergence is the mean Kullback-Leibler divergence from the
float32 model's distribution. Times are the shortest of several runs of one step, in the order of the cases again and again, so
that a slow minute of the machine hits all of them.

    python -m benchmarks.quantisation [--model PATH] [--threads N] [--kernels auto|off|required] [--quick]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.report import Row, row, write
from lionrock.inference.engine.batch import GREEDY, BatchRow
from lionrock.inference.engine.sequence import SequenceId
from lionrock.inference.model.attention import KVCache
from lionrock.inference.model.forward import Forward, NativeKernels, make_forward, native_library
from lionrock.inference.model.layers import RotaryEmbedding
from lionrock.inference.model.quantisation import QUANTISATIONS, LayerSchemes
from lionrock.inference.model.transformer import Transformer, load_weights
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import DTYPES, KV_BLOCK_SIZE
from lionrock.modelstore.store import ModelStore
from lionrock.tokenization.codec import open_codec

TEXTS = Path(__file__).parent / "texts"
LANGUAGES = ("english", "mandarin", "cantonese")
WINDOW = 512  # tokens that are read together
CONTEXT = 256  # tokens that each sequence of a timed step has behind it
STREAMS = (1, 8, 32)
REFERENCE, BASELINE = "float32", "bfloat16"


@dataclass(frozen=True, slots=True)
class Case:
    """A way to hold the model."""

    name: str
    dtype: str
    schemes: LayerSchemes | None = None


CASES = (
    Case(REFERENCE, "float32"),
    Case(BASELINE, "bfloat16"),
    *(Case(name, "bfloat16", schemes) for name, schemes in QUANTISATIONS.items()),
)


@dataclass(slots=True)
class Reading:
    """What a model made of one text: logits at each position, by window, and the tokens."""

    windows: list[Tensor]
    token_ids: list[int]

    def perplexity(self) -> float:
        """Exponential of the mean surprise at the text's own tokens, the first of each window left out."""
        surprise, count = 0.0, 0
        for index, logits in enumerate(self.windows):
            start = index * WINDOW
            targets = torch.tensor(self.token_ids[start + 1 : start + len(logits)], dtype=torch.long)
            surprise += float(functional.cross_entropy(logits[: len(targets)], targets, reduction="sum")) if len(targets) else 0.0
            count += len(targets)
        return math.exp(surprise / count)

    def agreement(self, other: Reading) -> float:
        """Share of positions with the same most likely token, per cent."""
        pairs = zip(self.windows, other.windows, strict=True)
        same = sum(int((mine.argmax(-1) == theirs.argmax(-1)).sum()) for mine, theirs in pairs)
        return 100 * same / len(self.token_ids)

    def divergence(self, reference: Reading) -> float:
        """Mean Kullback-Leibler divergence from a reference, nats a token."""
        total = 0.0
        for mine, theirs in zip(self.windows, reference.windows, strict=True):
            p = theirs.log_softmax(-1)
            total += float((p.exp() * (p - mine.log_softmax(-1))).sum())
        return total / len(self.token_ids)


class Model:
    """A model held one way, with room for the largest timed step."""

    def __init__(self, path: Path, case: Case, kernels: NativeKernels) -> None:
        source = open_weights(path)
        config, dtype, device = source.config, DTYPES[case.dtype], torch.device("cpu")
        native = native_library(kernels, dtype, device, KV_BLOCK_SIZE)
        decoder = Transformer(config)
        if case.schemes is not None:
            decoder.quantise(case.schemes)
        self.weight_bytes = load_weights(decoder, source, dtype, device, lambda *_: None, native)
        rope = RotaryEmbedding(config.rope, config.rotary_dim, config.context_window, dtype, device)
        blocks = max(STREAMS) * (CONTEXT // KV_BLOCK_SIZE + 1) + WINDOW // KV_BLOCK_SIZE
        shapes = config.cache_shapes(config.kv_heads)
        cache = KVCache(
            layers=config.layers, blocks=blocks, block_size=KV_BLOCK_SIZE, shapes=shapes, dtype=dtype, device=device
        )  # fmt: skip
        self.kernels = "torch" if native is None else "native"
        self._forward: Forward = make_forward(decoder, rope, cache, dtype, device, native)

    def read(self, token_ids: list[int]) -> Reading:
        """Read a text in windows, each without what came before."""
        windows = []
        for start in range(0, len(token_ids), WINDOW):
            window = token_ids[start : start + WINDOW]
            windows.append(self._run([self._row(0, 0, window, samples=len(window))]).clone())
        return Reading(windows, token_ids)

    def step_s(self, streams: int) -> float:
        """Time a decoding step of that many sequences, each with CONTEXT tokens behind it."""
        return self._timed([self._row(index, CONTEXT, [1 + index], samples=1) for index in range(streams)])

    def prefill_s(self, tokens: int) -> float:
        """Time the prefill of one prompt."""
        return self._timed([self._row(0, 0, [1 + index % 1000 for index in range(tokens)], samples=1)])

    def _row(self, index: int, start: int, token_ids: list[int], *, samples: int) -> BatchRow:
        blocks = -(-(start + len(token_ids)) // KV_BLOCK_SIZE)
        first = index * (CONTEXT // KV_BLOCK_SIZE + 1)
        return BatchRow(SequenceId(index), start, token_ids, range(first, first + blocks), GREEDY, drafts=samples - 1)

    @torch.inference_mode()
    def _run(self, rows: Sequence[BatchRow]) -> Tensor:
        self._forward.begin(rows)
        self._forward.hidden(None)
        return self._forward.logits()

    def _timed(self, rows: Sequence[BatchRow]) -> float:
        begun = time.perf_counter()
        self._run(rows)
        return time.perf_counter() - begun


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="GGUF file or safetensors directory; without it SmolLM2 is pulled")
    parser.add_argument("--threads", type=int, help="compute threads")
    parser.add_argument("--kernels", choices=("auto", "off", "required"), default="auto", help="the native kernels")
    parser.add_argument("--quick", action="store_true", help="fewer timed runs, and one window a text")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    path = arguments.model or _smollm2()
    texts = _texts(path, WINDOW if arguments.quick else None)
    print("tokens: " + ", ".join(f"{language} {len(ids)}" for language, ids in texts.items()))
    rows: list[Row] = []
    models: dict[str, Model] = {}
    readings: dict[str, dict[str, Reading]] = {}
    for case in CASES:
        begun = time.perf_counter()
        model = models[case.name] = Model(path, case, arguments.kernels)
        took_s = time.perf_counter() - begun
        readings[case.name] = {language: model.read(token_ids) for language, token_ids in texts.items()}
        rows += _accuracy(case.name, readings)
        rows.append(row(f"{case.name}: weights", [model.weight_bytes / 2**20], "MiB", "lower"))
        rows.append(row(f"{case.name}: load ({model.kernels} kernels)", [took_s], "s", "lower"))
        print(f"{case.name} read", flush=True)
    rows += _times(models, 5 if arguments.quick else 15)
    print(f"written to {write('quantisation', rows)}")


def _accuracy(name: str, readings: dict[str, dict[str, Reading]]) -> list[Row]:
    rows = []
    for language, reading in readings[name].items():
        bfloat16, reference = readings.get(BASELINE, {}).get(language), readings[REFERENCE][language]
        rows.append(
            row(
                f"{name}: perplexity, {language}", [reading.perplexity()], "", "lower",
                baseline=None if bfloat16 is None else BASELINE,
                baseline_values=None if bfloat16 is None else [bfloat16.perplexity()],
            )
        )  # fmt: skip
        if name == REFERENCE:
            continue
        assert bfloat16 is not None
        exact = row(f"{name}: agreement with float32, {language}", [reading.agreement(reference)], "%", "higher")
        rows += [exact, row(f"{name}: divergence from float32, {language}", [reading.divergence(reference)], "nats", "lower")]
        if name != BASELINE:
            own = [bfloat16.agreement(reference)]
            agreement = [reading.agreement(bfloat16)]
            case = f"{name}: agreement with bfloat16, {language}"
            rows.append(row(case, agreement, "%", "higher", baseline="bfloat16's with float32", baseline_values=own))
    return rows


def _times(models: dict[str, Model], runs: int) -> list[Row]:
    """Tokens a second of the shortest of the runs; the spread is that of all."""
    timed: dict[str, dict[str, list[float]]] = {name: {} for name in models if name != REFERENCE}
    for _ in range(runs):
        for name, by_case in timed.items():
            model = models[name]
            for streams in STREAMS:
                case = f"decode of {streams} streams"
                by_case.setdefault(case, []).append(streams / min(model.step_s(streams) for _ in range(3)))
            by_case.setdefault(f"prefill of {WINDOW} tokens", []).append(WINDOW / model.prefill_s(WINDOW))
    return [
        Row(
            f"{name}: {case}, fastest", max(values), "tok/s", "higher", len(values), min(values), max(values),
            BASELINE, max(timed[BASELINE][case]), max(values) / max(timed[BASELINE][case]),
        )
        for name, by_case in timed.items()
        for case, values in by_case.items()
    ]  # fmt: skip


def _smollm2() -> Path:
    (path,) = ModelStore(Path(__file__).resolve().parents[1] / ".cache" / "models").pull("smollm2-135m-instruct").files
    return path


def _texts(path: Path, most: int | None) -> dict[str, list[int]]:
    codec = open_codec("model", path)
    return {name: codec.encode_text((TEXTS / f"{name}.txt").read_text("utf-8")).token_ids[:most] for name in LANGUAGES}


if __name__ == "__main__":
    main()
