import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_rows import Paged, Shape, attended
from torch.nn import functional

from lionrock.inference.model.native.build import (
    LEVELS,
    KernelsUnavailable,
    Level,
    default_directory,
    find_or_compile,
    level_of_this_machine,
)
from lionrock.inference.model.native.library import Kind, Library, Operation, Program, Step, open_library
from lionrock.inference.model.native.matrix import NativeMatrix

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 4e-2}
HEAD_DIMS = (2, 20, 64, 80, 96, 128, 192, 256)

quietly = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))


def compiled(level: Level) -> Library:
    try:
        return open_library(find_or_compile(default_directory(), level))
    except KernelsUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def library() -> Library:
    return compiled(level_of_this_machine())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


shapes = st.builds(
    Shape,
    kv_heads=st.integers(1, 3),
    group=st.sampled_from((1, 2, 3, 7, 8, 9, 17)),
    head_dim=st.sampled_from(HEAD_DIMS),
    dtype=st.sampled_from(DTYPES),
)
lengths = st.one_of(st.integers(1, 70), st.sampled_from((15, 16, 17, 255, 256, 257, 300, 513)))


@quietly
@given(shape=shapes, tokens=lengths, cuts=st.lists(st.integers(1, 512), max_size=3), seed=st.integers(0, 1 << 30))
def test_attention_over_scattered_blocks_equals_a_naive_reference(
    library: Library, shape: Shape, tokens: int, cuts: list[int], seed: int
) -> None:
    """A prompt in chunks of any lengths, some of one token; no block that was not written is read."""
    blocks = -(-tokens // 16)
    order = torch.randperm(blocks + 3, generator=torch.Generator().manual_seed(seed)).tolist()
    paged = Paged(library, shape, blocks + 3)
    heads = random((tokens, shape.width), shape.dtype, seed)
    ends = sorted({min(cut, tokens) for cut in cuts} | {tokens})
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        (part,) = paged.run([(start, heads[start:end], order[: -(-end // 16)])])
        parts.append(part)
    difference = (torch.cat(parts).double() - attended(heads, shape)).abs().max()
    assert difference < TOLERANCES[shape.dtype]


@quietly
@given(
    shape=shapes, tokens=st.lists(lengths, min_size=2, max_size=4), threads=st.sampled_from((1, 2)), seed=st.integers(0, 1 << 30)
)
def test_the_last_token_attends_to_the_same_bits_alone_in_a_batch_and_in_a_chunk(
    library: Library, shape: Shape, tokens: list[int], threads: int, seed: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        blocks = [-(-count // 16) for count in tokens]
        tables = [list(range(sum(blocks[:i]), sum(blocks[: i + 1]))) for i in range(len(tokens))]
        heads = [random((count, shape.width), shape.dtype, seed + i) for i, count in enumerate(tokens)]
        paged = Paged(library, shape, sum(blocks))
        whole = paged.run([(0, rows, table) for rows, table in zip(heads, tables, strict=True)])
        decoding = [(count - 1, rows[-1:], table) for count, rows, table in zip(tokens, heads, tables, strict=True)]
        together = paged.run(decoding)
        for of_chunk, of_batch, row in zip(whole, together, decoding, strict=True):
            (alone,) = paged.run([row])
            assert torch.equal(alone, of_batch)
            assert torch.equal(alone[0], of_chunk[-1])
    finally:
        torch.set_num_threads(before)


def test_rows_may_share_blocks(library: Library) -> None:
    shape = Shape(kv_heads=2, group=3, head_dim=64, dtype=torch.bfloat16)
    paged = Paged(library, shape, 5)
    prefix, tails = random((32, shape.width), shape.dtype), [random((3, shape.width), shape.dtype, seed) for seed in (1, 2)]
    paged.run([(0, prefix, [4, 0])])
    found = paged.run([(32, tail, [4, 0, block]) for tail, block in zip(tails, (1, 3), strict=True)])
    for tail, part in zip(tails, found, strict=True):
        expected = attended(torch.cat((prefix, tail)), shape)[-3:]
        assert (part.double() - expected).abs().max() < TOLERANCES[shape.dtype]


@quietly
@given(
    rows=st.integers(1, 40),
    outputs=st.integers(1, 200),
    inputs=st.integers(1, 300).map(lambda n: 2 * n),
    slices=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_a_product_equals_the_naive_one_and_a_row_does_not_depend_on_its_company(
    library: Library, rows: int, outputs: int, inputs: int, slices: int, dtype: torch.dtype, bias: bool, seed: int
) -> None:
    weight, x = random((slices * outputs, inputs), dtype, seed), random((rows, inputs), dtype, seed + 1)
    addend = random((slices * outputs,), dtype, seed + 2) if bias else None
    matrix = NativeMatrix(library, weight, [outputs] * slices)
    found = matrix(x, addend)
    expected = functional.linear(x.double(), weight.double(), None if addend is None else addend.double())
    scale = inputs**0.5
    assert (found.double() - expected).abs().max() / scale < TOLERANCES[dtype]
    assert all(torch.equal(matrix(x[i : i + 1], addend)[0], found[i]) for i in range(0, rows, 7))


@quietly
@given(rows=st.integers(1, 5), size=st.integers(1, 100), levels=st.integers(1, 6), seed=st.integers(0, 1 << 30))
def test_of_equal_logits_the_first_is_chosen(library: Library, rows: int, size: int, levels: int, seed: int) -> None:
    logits = torch.randint(-levels, levels, (rows, size), generator=torch.Generator().manual_seed(seed)).float()
    chosen = torch.full((rows,), -1)
    operation = Operation(
        kind=Kind.LARGEST, input=logits.data_ptr(), input_stride=size, inputs=size, output=chosen.data_ptr()
    )  # fmt: skip
    library.run(Step([0] * rows, [0] * rows, [1] * rows, [0] * rows, [0], range(rows), 1), Program([operation]))
    assert chosen.tolist() == [row.index(max(row)) for row in logits.tolist()]


@pytest.mark.parametrize("level", ["avx512", "x86-64", "aarch64"])
def test_lesser_levels_agree_with_the_reference(level: str) -> None:
    """Without instructions for pairs of bfloat16, and without wide vectors; what lies between is the same text."""
    (wanted,) = (known for known in LEVELS if known.name == level)
    if not wanted.runs_here():
        pytest.skip("this processor cannot run it")
    library = compiled(wanted)
    for dtype in DTYPES:
        shape = Shape(kv_heads=2, group=3, head_dim=80, dtype=dtype)
        heads = random((300, shape.width), dtype)
        (part,) = Paged(library, shape, 20).run([(0, heads, range(19))])
        assert (part.double() - attended(heads, shape)).abs().max() < TOLERANCES[dtype]
        weight, x = random((100, 130), dtype), random((11, 130), dtype, 1)
        found = NativeMatrix(library, weight, [60, 40])(x, None)
        assert (found.double() - functional.linear(x.double(), weight.double())).abs().max() / 11 < TOLERANCES[dtype]


@pytest.mark.usefixtures("two_threads")
def test_two_threads_give_the_same_bits_as_one(library: Library) -> None:
    weight, x = random((500, 256), torch.bfloat16), random((200, 256), torch.bfloat16)
    matrix = NativeMatrix(library, weight, [500])
    shared = matrix(x, None)
    torch.set_num_threads(1)
    assert torch.equal(matrix(x, None), shared)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tables": [2]}, "block"),
        ({"tables": [-1]}, "block"),
        ({"starts": [-1]}, "rows"),
        ({"lengths": [2]}, "rows"),
        ({"tables": []}, "rows"),
        ({"table_offsets": [1]}, "rows"),
        ({"sampled": [1]}, "rows"),
        ({"token_ids": [9]}, "token"),
        ({"token_ids": [-1]}, "token"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_before_anything_is_touched(
    library: Library, changes: dict[str, list[int]], problem: str
) -> None:
    columns = {"token_ids": [3], "starts": [0], "lengths": [1], "table_offsets": [0], "tables": [1], "sampled": [0]} | changes
    table, out = torch.zeros(4, 8), torch.full((1, 8), 5.0)
    operation = Operation(kind=Kind.EMBED, weight=table.data_ptr(), inputs=8, outputs=4, output=out.data_ptr(), output_stride=8)
    with pytest.raises(ValueError, match=problem):
        library.run(Step(**columns, blocks=2), Program([operation]))
    assert torch.equal(out, torch.full((1, 8), 5.0))


def test_a_library_is_compiled_once_for_its_sources(tmp_path: Path) -> None:
    directory = tmp_path / "kernels"
    directory.mkdir(mode=0o700)
    made = find_or_compile(default_directory())
    kept = directory / made.name
    kept.write_bytes(made.read_bytes())
    written = kept.stat().st_mtime_ns
    assert find_or_compile(directory) == kept
    assert kept.stat().st_mtime_ns == written
    assert list(directory.iterdir()) == [kept]


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(KernelsUnavailable, match="others may write"):
        find_or_compile(tmp_path)


def test_without_a_compiler_there_are_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailable, match="compiler"):
        find_or_compile(tmp_path)


def test_a_compiler_that_fails_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho 'kernels.cpp: error: no space left' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(compiler.parent))
    directory = tmp_path / "kernels"
    with pytest.raises(KernelsUnavailable, match="no space left"):
        find_or_compile(directory)
    assert [path.name for path in directory.iterdir()] == [".lock"]


def test_ranks_that_start_together_compile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, calls = tmp_path / "bin" / "c++", tmp_path / "calls"
    compiler.parent.mkdir()
    compiler.write_text(f"#!/bin/sh\necho call >> {calls}\nfor last; do :; done\necho compiled > $last\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{compiler.parent}:/bin:/usr/bin")
    with ThreadPoolExecutor(4) as ranks:
        made = set(ranks.map(find_or_compile, [tmp_path / "kernels"] * 4))
    assert calls.read_text() == "call\n"
    assert [path.read_text() for path in made] == ["compiled\n"]


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"not code")
    with pytest.raises(KernelsUnavailable, match="cannot be loaded"):
        Library(broken)
