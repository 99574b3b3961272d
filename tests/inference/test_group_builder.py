"""How a shard group is put together again: which processes are kept, taken or started, and what ends an attempt. No torch."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lionrock.chassis.settings import TelemetrySettings
from lionrock.inference.engine.errors import ShardGroupLost
from lionrock.inference.engine.runner import RunnerSpec
from lionrock.inference.group_builder import GroupBuilder
from lionrock.inference.links import Kind, Link, LinkAddress, LinkClosed, connect
from lionrock.inference.model.config_json import from_config_json
from lionrock.inference.served_model import shape_of
from lionrock.inference.settings import HealthSettings
from lionrock.inference.shard_process import Placement, RankSettings
from lionrock.inference.sharding import ShardGroup
from lionrock.planner.chips import chip
from lionrock.planner.plan import plan_shards

SPEC = RunnerSpec(100, 64, frozenset({0}), 16, 8, 8, frozenset())
CONFIG = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
PLAN = plan_shards(shape_of(from_config_json(CONFIG, None)), chip("cpu"), dtype="float32", tensor_parallel=2)
SETTINGS = RankSettings(
    chip=chip("cpu"), plan=PLAN, source=Path("none"), collective=None, collective_interface="lo", collective_timeout_s=5, threads=1,
    kv_cache_bytes=1 << 20, heartbeat_interval_s=0.02, telemetry=TelemetrySettings(), tls=None,
)  # fmt: skip


class ScriptedRank:
    """A rank without a model: it keeps its link alive, and stands by, stays silent or fails as the test says."""

    def __init__(self, rank: int | None) -> None:
        self.begun_as = rank
        self.calls: list[str] = []
        self.killed = threading.Event()
        self.silent = threading.Event()
        self.well = True
        self.fails_in: str | None = None
        self.never_ends: str | None = None
        self.link: Link | None = None

    async def place(self) -> Placement:
        await self.call("place")
        return Placement("here", "127.0.0.1", os.getpid())

    async def call(self, method: str, *arguments: Any) -> Any:
        self.calls.append(method)
        if self.killed.is_set() or self.fails_in == method:
            raise ShardGroupLost(f"a rank failed in {method}")
        if self.never_ends == method:
            await asyncio.Event().wait()
        match method:
            case "attach":
                await asyncio.to_thread(self._attach, *arguments)
            case "join":
                return 8
            case "allocate":
                return SPEC
            case "stand_by":
                assert self.link is not None
                self.link.close()
                return self.well
        return None

    def kill(self) -> None:
        self.killed.set()
        if self.link is not None:
            self.link.close()

    def _attach(self, rank: int, address: LinkAddress, same_node: bool) -> None:
        self.link = connect(address, rank, same_node=same_node)
        threading.Thread(target=self._beat, args=(self.link,), daemon=True).start()

    def _beat(self, link: Link) -> None:
        while not self.killed.wait(0.02):
            if not self.silent.is_set():
                try:
                    link.send(Kind.BEAT)
                except LinkClosed:
                    return


class Ranks:
    """Starts scripted ranks and remembers them."""

    def __init__(self) -> None:
        self.started: list[ScriptedRank] = []
        self.script: list[dict[str, Any]] = []

    def __call__(self, rank: int | None) -> ScriptedRank:
        process = ScriptedRank(rank)
        for name, value in (self.script.pop(0) if self.script else {}).items():
            setattr(process, name, value)
        self.started.append(process)
        return process

    @property
    def alive(self) -> list[ScriptedRank]:
        return [process for process in self.started if not process.killed.is_set()]


class Losses(asyncio.Queue[str]):
    """An `on_lost` whose calls can be awaited."""

    def __init__(self) -> None:
        super().__init__()
        self._its_loop = asyncio.get_running_loop()

    def __call__(self, _: ShardGroup, reason: str) -> None:
        self._its_loop.call_soon_threadsafe(self.put_nowait, reason)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  # other tasks bring it about
            await asyncio.sleep(0)


@pytest.fixture
def ranks() -> Ranks:
    return Ranks()


def builder_of(ranks: Ranks, *, spares: int = 0, **health: float) -> GroupBuilder:
    told = HealthSettings(warm_spares=spares, heartbeat_interval_s=0.05, **health)
    return GroupBuilder(SETTINGS, told, ranks, node_id="here", node_address="127.0.0.1", restock_after_s=0)


async def test_a_group_after_a_loss_keeps_the_ranks_that_stand_by(ranks: Ranks) -> None:
    builder, losses = builder_of(ranks), Losses()
    await builder.build(losses)
    first, second = ranks.started
    second.kill()
    assert await asyncio.wait_for(losses.get(), 20) == "rank 1 died"
    group = await builder.build(losses)
    assert dict(builder.processes) == {0: first, 1: ranks.started[2]}
    assert not first.killed.is_set()
    assert [process.begun_as for process in ranks.started] == [0, 1, 1]
    group.close()
    await builder.close()
    assert ranks.alive == []


@pytest.mark.parametrize("trouble", [{"well": False}, {"fails_in": "stand_by"}])
async def test_a_rank_that_cannot_stand_by_is_replaced_too(ranks: Ranks, trouble: dict[str, Any]) -> None:
    ranks.script = [trouble]
    builder, losses = builder_of(ranks), Losses()
    await builder.build(losses)
    ranks.started[1].kill()
    await asyncio.wait_for(losses.get(), 20)
    (await builder.build(losses)).close()
    assert len(ranks.alive) == 2
    assert ranks.started[0].killed.is_set()
    await builder.close()


async def test_a_spare_takes_the_place_of_a_lost_rank_and_another_one_its_own(ranks: Ranks) -> None:
    builder, losses = builder_of(ranks, spares=1), Losses()
    await builder.build(losses)
    await until(lambda: len(ranks.started) == 3)
    spare = ranks.started[2]
    assert spare.begun_as is None
    ranks.started[0].kill()
    await asyncio.wait_for(losses.get(), 20)
    group = await builder.build(losses)
    assert builder.processes[0] is spare
    await until(lambda: len(ranks.started) == 4)
    assert ranks.started[3].begun_as is None
    group.close()
    await builder.close()
    assert ranks.alive == []


async def test_a_spare_that_is_of_no_use_is_passed_over(ranks: Ranks) -> None:
    ranks.script = [{}, {}, {"fails_in": "ping"}]
    builder, losses = builder_of(ranks, spares=1), Losses()
    await builder.build(losses)
    await until(lambda: len(ranks.started) == 3 and "place" in ranks.started[2].calls)
    await asyncio.sleep(0)
    ranks.started[0].kill()
    await asyncio.wait_for(losses.get(), 20)
    (await builder.build(losses)).close()
    assert ranks.started[2].killed.is_set()
    assert builder.processes[0].begun_as == 0  # type: ignore[attr-defined]
    await builder.close()


@pytest.mark.parametrize("method", ["place", "attach", "join", "allocate"])
async def test_an_attempt_in_which_a_rank_fails_leaves_no_rank_behind(ranks: Ranks, method: str) -> None:
    ranks.script = [{}, {"fails_in": method}]
    builder = builder_of(ranks)
    with pytest.raises(ShardGroupLost, match=f"failed in {method}"):
        await builder.build(Losses())
    assert ranks.alive == []
    (await builder.build(Losses())).close()
    await builder.close()


async def test_a_rank_that_freezes_while_it_loads_ends_the_attempt_by_its_silence(ranks: Ranks) -> None:
    frozen = threading.Event()
    frozen.set()
    ranks.script = [{}, {"never_ends": "join", "silent": frozen}]
    builder = builder_of(ranks, heartbeat_timeout_s=0.5)
    with pytest.raises(ShardGroupLost, match="rank 1 gave no sign of life while the group was built"):
        await builder.build(Losses())
    assert ranks.alive == []


async def test_a_rank_that_dies_while_another_one_loads_ends_the_attempt_at_once(ranks: Ranks) -> None:
    ranks.script = [{"never_ends": "join"}, {}]
    builder = builder_of(ranks)
    building = asyncio.create_task(builder.build(Losses()))
    await until(lambda: len(ranks.started) == 2 and "join" in ranks.started[1].calls)
    ranks.started[1].kill()
    with pytest.raises(ShardGroupLost, match="rank 1 died while the group was built"):
        await asyncio.wait_for(building, 20)
    assert ranks.alive == []


async def test_a_process_that_does_not_start_in_time_is_ended(ranks: Ranks) -> None:
    ranks.script = [{"never_ends": "place"}]
    builder = builder_of(ranks, process_start_timeout_s=0.05)
    with pytest.raises(ShardGroupLost, match="did not start in time"):
        await builder.build(Losses())
    assert ranks.alive == []


async def test_ranks_that_freeze_together_are_all_ended(ranks: Ranks) -> None:
    builder, losses = builder_of(ranks, heartbeat_timeout_s=0.5), Losses()
    await builder.build(losses)
    for process in ranks.started:
        process.silent.set()
    assert "gives no sign of life" in await asyncio.wait_for(losses.get(), 20)
    assert ranks.alive == []


def test_a_local_rank_ends_with_its_owner() -> None:
    owner = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lionrock.inference.local_ranks import LocalRank\n"
        "rank = LocalRank(None)\n"
        "print(rank.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        rank = psutil.Process(int(process.stdout.readline()))
        process.kill()
    assert rank.wait(timeout=60) in (0, None)


async def test_a_process_that_freezes_in_its_start_is_given_little_more_time_than_others_took(ranks: Ranks) -> None:
    ranks.script = [{}, {}, {"never_ends": "place"}]
    builder, losses = builder_of(ranks, process_start_timeout_s=3600), Losses()
    await builder.build(losses)
    ranks.started[0].kill()
    await asyncio.wait_for(losses.get(), 20)
    with pytest.raises(ShardGroupLost, match="did not start in time"):
        await asyncio.wait_for(builder.build(losses), 60)
    (await builder.build(losses)).close()
    await builder.close()
