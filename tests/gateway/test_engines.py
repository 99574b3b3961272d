"""Several engines behind one gateway: who is asked, who takes over, who sees which model, and what the operator hears of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from lionrock.chassis.channel import open_channel
from lionrock.chassis.errors import remote_error
from lionrock.chassis.settings import PeerSettings
from lionrock.gateway.routes import RoutesInvalid
from lionrock.gateway.settings import GatewaySettings
from lionrock.gateway.v1 import gateway_pb2 as gw
from lionrock.gateway.v1 import stats_pb2 as pb
from lionrock.gateway.v1 import stats_pb2_grpc as stats_rpc
from lionrock.tokenization.v1 import tokenization_pb2 as tok
from scripted_mesh import EngineFull, ScriptedMesh, ShardGroupLost, raising, tenant

LOST = ShardGroupLost("a shard died", retry_after_s=0.05)


@pytest.fixture
async def routed(idle_mesh: ScriptedMesh) -> AsyncIterator[ScriptedMesh]:
    """Engines `old` and `new`, not routed yet; the gateway is started by the test."""
    idle_mesh.routed = True
    idle_mesh.limits |= {"routes_poll_s": 0.01, "models_fresh_s": 0.0}
    await idle_mesh.start_engine("old")
    await idle_mesh.start_engine("new")
    yield idle_mesh
    for name in ("old", "new"):
        if name in idle_mesh.servers:
            await idle_mesh.servers.pop(name).stop()


def route(mesh: ScriptedMesh, weights: dict[str, int], tenant: str | None = None) -> dict[str, Any]:
    endpoints = [{"target": mesh.targets[name], "weight": weight, "revision": f"r-{name}"} for name, weight in weights.items()]
    return {"endpoints": endpoints, "tenant": tenant}


def write(mesh: ScriptedMesh, **models: Any) -> None:
    mesh.write_routes(json.dumps({"models": models}))


@asynccontextmanager
async def operator(mesh: ScriptedMesh) -> AsyncIterator[Any]:
    """What the operator asks of the gateway."""
    peer = PeerSettings(target=mesh.targets["gateway"], service="gateway", timeout_s=10)
    async with open_channel(peer, mesh.ca.issue("operator"), name="test") as channel:
        yield stats_rpc.GatewayStatsServiceStub(channel)


async def figures(stub: Any) -> dict[str, pb.RevisionStats]:
    told = await stub.GetModelStats(pb.GetModelStatsRequest())
    return {revision.revision: revision for revision in told.revisions}


def generated(mesh: ScriptedMesh) -> dict[str, int]:
    """Generate calls of each engine."""
    return {name: sum(hasattr(request, "token_ids") for request in engine.requests) for name, engine in mesh.engines.items()}


# Who is asked


async def test_new_requests_go_where_the_weights_say_and_follow_them(routed: ScriptedMesh, ask: Any, hear: Any) -> None:
    write(routed, parrot=route(routed, {"old": 100, "new": 0}))
    async with routed.running(), routed.calling() as stub:
        for _ in range(5):
            assert (await hear(stub.Chat(ask(model="parrot")))).text == routed.engines["old"].text
        assert generated(routed) == {"old": 5, "new": 0}
        write(routed, parrot=route(routed, {"old": 0, "new": 100}))
        async with asyncio.timeout(10):
            while not generated(routed)["new"]:
                await hear(stub.Chat(ask(model="parrot")))
        before = generated(routed)["old"]
        await hear(stub.Chat(ask(model="parrot")))
        assert generated(routed)["old"] == before


async def test_a_canary_gets_its_share(routed: ScriptedMesh, ask: Any, hear: Any) -> None:
    write(routed, parrot=route(routed, {"old": 50, "new": 50}))
    async with routed.running(), routed.calling() as stub:
        await asyncio.gather(*(hear(stub.Chat(ask(model="parrot"))) for _ in range(40)))
    shares = generated(routed)
    assert sum(shares.values()) == 40
    assert min(shares.values()) > 3  # less has a probability of 2e-8


async def test_bad_routes_change_nothing(routed: ScriptedMesh, ask: Any, hear: Any) -> None:
    write(routed, parrot=route(routed, {"old": 1}))
    async with routed.running(), routed.calling() as stub:
        routed.write_routes("{")
        write_again = asyncio.get_running_loop().time() + 0.2
        while asyncio.get_running_loop().time() < write_again:
            assert (await hear(stub.Chat(ask(model="parrot")))).kinds[-1] == "finished"


async def test_a_cluster_without_models_says_so_until_there_is_one(routed: ScriptedMesh, ask: Any, hear: Any, failure: Any) -> None:
    async with routed.running(), routed.calling() as stub:
        for name in ("parrot", ""):
            assert (await failure(stub.Chat(ask(model=name)))).reason == "MODEL_NOT_FOUND"
        assert not (await stub.ListModels(gw.ListModelsRequest())).models
        write(routed, parrot=route(routed, {"old": 1}))
        async with asyncio.timeout(10):
            while not (await stub.ListModels(gw.ListModelsRequest())).models:
                pass
        assert (await hear(stub.Chat(ask()))).text == routed.engines["old"].text


async def test_a_model_whose_engines_all_have_weight_zero_or_are_none_is_unavailable(
    routed: ScriptedMesh, ask: Any, failure: Any
) -> None:
    write(routed, parrot=route(routed, {"old": 0}), empty=route(routed, {}))
    async with routed.running(), routed.calling() as stub:
        for name in ("parrot", "empty"):
            error = await failure(stub.Chat(ask(model=name)))
            assert (error.reason, error.metadata["peer_reason"]) == ("INFERENCE_UNAVAILABLE", "NO_ENDPOINT")
            assert error.retry_after_s is not None


async def test_a_gateway_does_not_start_on_bad_routes(routed: ScriptedMesh) -> None:
    routed.write_routes("[]")
    with pytest.raises(RoutesInvalid, match=r"routes_file .*: the document"):
        async with routed.running():
            pass


def test_engines_are_named_by_one_setting_and_no_more(idle_mesh: ScriptedMesh) -> None:
    idle_mesh.targets = dict.fromkeys(("tokenization", "guardrails", "audit", "inference"), "127.0.0.1:1")
    one = dict(idle_mesh.gateway_settings())
    for changes in ({"inference": None}, {"routes_file": "routes.json"}):
        with pytest.raises(ValueError, match="either inference"):
            GatewaySettings(**(one | changes))
    assert GatewaySettings(**(one | {"inference": None, "routes_file": "routes.json"})).inference is None


# Who takes over


async def test_a_lost_answer_goes_on_elsewhere_as_if_nothing_had_happened(routed: ScriptedMesh, ask: Any, hear: Any) -> None:
    routed.engines["old"].losses = [(5, LOST)]
    write(routed, parrot=route(routed, {"old": 1, "new": 0}))
    async with routed.running(), routed.calling() as stub, operator(routed) as stats:
        heard = await hear(stub.Chat(ask(model="parrot")))
        told = await figures(stats)
    assert heard.text == routed.engines["old"].text
    (resumed,) = routed.engines["new"].requests
    assert resumed.resumed_tokens == 5
    assert generated(routed) == {"old": 1, "new": 1}
    assert (told["r-old"].answers, told["r-old"].failed_answers) == (1, 1)
    assert (told["r-new"].answers, told["r-new"].failed_answers) == (1, 0)


async def test_a_lost_answer_returns_to_its_engine_when_the_others_have_another_model(
    routed: ScriptedMesh, ask: Any, hear: Any
) -> None:
    routed.engines["old"].losses = [(5, LOST)]
    routed.engines["new"].weights = ["sha256:" + "4" * 64]
    write(routed, parrot=route(routed, {"old": 1, "new": 0}))
    async with routed.running(), routed.calling() as stub, operator(routed) as stats:
        heard = await hear(stub.Chat(ask(model="parrot")))
        told = await figures(stats)
    assert heard.text == routed.engines["old"].text
    assert generated(routed) == {"old": 2, "new": 1}
    assert (told["r-old"].answers, told["r-old"].failed_answers) == (1, 0)
    assert "r-new" not in told or not told["r-new"].answers


@pytest.mark.parametrize("how", ["gone", "full"])
async def test_an_engine_that_is_gone_or_full_is_passed_over_at_once(routed: ScriptedMesh, ask: Any, hear: Any, how: str) -> None:
    write(routed, parrot=route(routed, {"old": 1, "new": 0}))
    if how == "gone":
        await routed.servers.pop("old").stop()
    else:
        routed.engines["old"].faults["Generate"] = raising(EngineFull("full", retry_after_s=60))
    async with routed.running(), routed.calling() as stub:
        began = asyncio.get_running_loop().time()
        assert (await hear(stub.Chat(ask(model="parrot")))).text == routed.engines["new"].text
        assert asyncio.get_running_loop().time() - began < 5


async def test_an_answer_that_every_engine_fails_fails_with_the_engines_reason(
    routed: ScriptedMesh, ask: Any, failure: Any
) -> None:
    for engine in routed.engines.values():
        engine.faults["Generate"] = raising(EngineFull("full", retry_after_s=2.5))
    write(routed, parrot=route(routed, {"old": 1, "new": 1}))
    async with routed.running(), routed.calling() as stub, operator(routed) as stats:
        assert (await failure(stub.Chat(ask(model="parrot")))).reason == "OVERLOADED"
        told = await figures(stats)
    assert {name: (told[name].answers, told[name].failed_answers) for name in told} == {"r-old": (1, 1), "r-new": (1, 1)}


async def test_an_engine_that_leaves_the_routes_finishes_its_answers(routed: ScriptedMesh, ask: Any, hear: Any) -> None:
    pace = routed.engines["old"].pace = asyncio.Semaphore(2)
    write(routed, parrot=route(routed, {"old": 1}))
    async with routed.running(), routed.calling() as stub:
        call = stub.Chat(ask(model="parrot"))
        assert (await anext(aiter(call))).HasField("started")
        write(routed, parrot=route(routed, {"new": 1}), another=route(routed, {}))
        async with asyncio.timeout(10):
            while len((await stub.ListModels(gw.ListModelsRequest())).models) == 1:
                pass
        assert (await hear(stub.Chat(ask(model="parrot")))).kinds[-1] == "finished"
        assert generated(routed) == {"old": 1, "new": 1}
        for _ in routed.engines["old"].text:
            pace.release()
        rest = [response async for response in call]
    assert "".join(response.delta.text for response in rest) == routed.engines["old"].text
    assert rest[-1].HasField("finished")


# Who knows the tokenizer


@pytest.fixture
async def tokenized(routed: ScriptedMesh) -> AsyncIterator[ScriptedMesh]:
    """Each engine with a tokenization of its own, `old-tok` and `new-tok`; the gateway has none."""
    routed.own_tokenization = False
    for name in ("old-tok", "new-tok"):
        await routed.start_tokenization(name)
    yield routed
    for name in ("old-tok", "new-tok"):
        if name in routed.servers:
            await routed.servers.pop(name).stop()


def tokenized_route(mesh: ScriptedMesh, weights: dict[str, int]) -> dict[str, Any]:
    found = route(mesh, weights)
    for name, endpoint in zip(weights, found["endpoints"], strict=True):
        endpoint["tokenization"] = mesh.targets[f"{name}-tok"]
    return found


def spelled(mesh: ScriptedMesh) -> set[str]:
    """Tokenizations that were asked what tokens spell."""
    return {name for name in mesh.tokenizers if asked(mesh, name, tok.SpellTokensRequest)}


def asked(mesh: ScriptedMesh, name: str, kind: type[Any]) -> int:
    """Requests of a kind that a tokenization had."""
    return sum(isinstance(request, kind) for request in mesh.tokenizers[name].requests)


async def test_prompts_and_answers_go_through_the_tokenization_of_the_engine_that_answers(
    tokenized: ScriptedMesh, ask: Any, hear: Any
) -> None:
    write(tokenized, parrot=tokenized_route(tokenized, {"old": 1, "new": 0}))
    async with tokenized.running(), tokenized.calling() as stub:
        assert (await hear(stub.Chat(ask(model="parrot")))).kinds[-1] == "finished"
        assert (spelled(tokenized), generated(tokenized)) == ({"old-tok"}, {"old": 1, "new": 0})
        write(tokenized, parrot=tokenized_route(tokenized, {"new": 1}))
        async with asyncio.timeout(10):
            while not generated(tokenized)["new"]:
                assert (await hear(stub.Chat(ask(model="parrot")))).kinds[-1] == "finished"
        assert spelled(tokenized) == {"old-tok", "new-tok"}
        for name, count in generated(tokenized).items():
            assert asked(tokenized, f"{name}-tok", tok.EncodeRequest) == count
        count = await stub.CountTokens(gw.CountTokensRequest(model="parrot", messages=ask().messages))
        assert count.tokens
        assert isinstance(tokenized.tokenizers["new-tok"].requests[-1], tok.CountTokensRequest)


async def test_an_answer_that_goes_on_elsewhere_is_decoded_where_it_began(tokenized: ScriptedMesh, ask: Any, hear: Any) -> None:
    tokenized.engines["old"].losses = [(5, LOST)]
    tokenized.tokenizers["new-tok"].digest = "sha256:" + "9" * 64  # the same weights are told by their own digest
    write(tokenized, parrot=tokenized_route(tokenized, {"old": 1, "new": 0}))
    async with tokenized.running(), tokenized.calling() as stub:
        assert (await hear(stub.Chat(ask(model="parrot")))).text == tokenized.engines["old"].text
    assert generated(tokenized) == {"old": 1, "new": 1}
    assert spelled(tokenized) == {"old-tok"}


@pytest.mark.parametrize("same", [True, False])
async def test_an_engine_that_was_not_asked_first_answers_if_it_reads_the_prompt_alike(
    tokenized: ScriptedMesh, ask: Any, hear: Any, failure: Any, same: bool
) -> None:
    tokenized.engines["old"].faults["Generate"] = raising(EngineFull("full", retry_after_s=60))
    if not same:
        tokenized.tokenizers["new-tok"].digest = "sha256:" + "9" * 64
    write(tokenized, parrot=tokenized_route(tokenized, {"old": 1, "new": 0}))
    async with tokenized.running(), tokenized.calling() as stub:
        call = stub.Chat(ask(model="parrot"))
        if same:
            assert (await hear(call)).text == tokenized.engines["new"].text
        else:
            error = await failure(call)
            assert (error.reason, error.metadata["peer_reason"]) == ("INFERENCE_UNAVAILABLE", "MODEL_CHANGED")
    assert spelled(tokenized) == ({"old-tok"} if same else set())


async def test_a_choice_holds_its_channels_from_the_prompt_to_the_answer(tokenized: ScriptedMesh, ask: Any, hear: Any) -> None:
    encoding, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        encoding.set()
        await go_on.wait()

    tokenized.tokenizers["old-tok"].faults["Encode"] = wait
    write(tokenized, parrot=tokenized_route(tokenized, {"old": 1}))
    async with tokenized.running(), tokenized.calling() as stub:
        call = asyncio.create_task(hear(stub.Chat(ask(model="parrot"))))
        await encoding.wait()
        write(tokenized, parrot=tokenized_route(tokenized, {"new": 1}), another=route(tokenized, {}))
        async with asyncio.timeout(10):
            while len((await stub.ListModels(gw.ListModelsRequest())).models) == 1:
                pass
        assert (await hear(stub.Chat(ask(model="parrot")))).text == tokenized.engines["new"].text
        go_on.set()
        assert (await call).text == tokenized.engines["old"].text
    assert generated(tokenized) == {"old": 1, "new": 1}
    assert spelled(tokenized) == {"old-tok", "new-tok"}


async def test_a_model_that_nothing_encodes_for_is_unavailable_and_others_are_not(
    tokenized: ScriptedMesh, ask: Any, hear: Any, failure: Any
) -> None:
    write(tokenized, parrot=tokenized_route(tokenized, {"old": 1}), bare=route(tokenized, {"new": 1}), empty=route(tokenized, {}))
    async with tokenized.running(), tokenized.calling() as stub:
        assert (await failure(stub.Chat(ask(model="bare")))).reason == "TOKENIZATION_UNAVAILABLE"
        counted = stub.CountTokens(gw.CountTokensRequest(model="empty", messages=ask().messages))
        assert (await failure(counted)).reason == "INFERENCE_UNAVAILABLE"
        assert (await hear(stub.Chat(ask(model="parrot")))).kinds[-1] == "finished"


def test_a_gateway_without_routes_needs_tokenization(idle_mesh: ScriptedMesh) -> None:
    idle_mesh.targets = dict.fromkeys(("tokenization", "guardrails", "audit", "inference"), "127.0.0.1:1")
    one = dict(idle_mesh.gateway_settings())
    with pytest.raises(ValueError, match="state tokenization"):
        GatewaySettings(**(one | {"tokenization": None}))
    routed = GatewaySettings(**(one | {"tokenization": None, "inference": None, "routes_file": "routes.json"}))
    assert routed.tokenization is None


# Who sees which model


async def test_a_tenants_own_model_does_not_exist_for_others(routed: ScriptedMesh, ask: Any, hear: Any, failure: Any) -> None:
    routed.engines["new"].models = ["private"]
    write(routed, parrot=route(routed, {"old": 1}), private=route(routed, {"new": 1}, tenant="broker"))
    async with routed.running(), routed.calling() as bank, routed.calling(routed.identity("broker")) as broker:
        assert (await failure(bank.Chat(ask(model="private")))).reason == "MODEL_NOT_FOUND"
        unheard_of = await failure(bank.Chat(ask(model="unheard-of")))
        hidden = await failure(bank.CountTokens(gw.CountTokensRequest(model="private", messages=ask().messages)))
        assert (hidden.reason, hidden.message) == (unheard_of.reason, unheard_of.message) == ("MODEL_NOT_FOUND", unheard_of.message)
        listed = {who: await stub.ListModels(gw.ListModelsRequest()) for who, stub in (("bank", bank), ("broker", broker))}
        assert [model.identity.model for model in listed["bank"].models] == ["parrot"]
        assert [model.identity.model for model in listed["broker"].models] == ["parrot", "private"]
        assert (await hear(bank.Chat(ask()))).kinds[-1] == "finished"  # the only model that it may use
        assert (await hear(broker.Chat(ask(model="private")))).kinds[-1] == "finished"
        assert (await failure(broker.Chat(ask()))).reason == "INVALID_FIELD"
    assert generated(routed) == {"old": 1, "new": 1}


async def test_a_tenant_that_shares_no_engines_is_answered_by_its_own_on_its_pools_and_by_no_other(
    routed: ScriptedMesh, ask: Any, hear: Any, failure: Any
) -> None:
    dedicated = {"tenancy": {"type": "Dedicated", "pools": ["ascend"]}}
    routed.tenants = [tenant("bank"), {**tenant("broker"), **dedicated}]
    own = {"endpoints": [{**route(routed, {"new": 1})["endpoints"][0], "pool": "ascend"}], "tenant": "broker"}
    moved = {"endpoints": [{**own["endpoints"][0], "pool": "spare"}], "tenant": "broker"}
    write(routed, parrot=route(routed, {"old": 1}), private=own)
    async with routed.running(), routed.calling(routed.identity("broker")) as broker:
        assert (await hear(broker.Chat(ask()))).text == routed.engines["new"].text  # the only model that it may use
        shared, unheard_of = [await failure(broker.Chat(ask(model=name))) for name in ("parrot", "unheard-of")]
        assert (shared.reason, shared.message) == (unheard_of.reason, unheard_of.message) == ("MODEL_NOT_FOUND", shared.message)
        hidden = await failure(broker.CountTokens(gw.CountTokensRequest(model="parrot", messages=ask().messages)))
        assert hidden.reason == "MODEL_NOT_FOUND"
        assert [each.identity.model for each in (await broker.ListModels(gw.ListModelsRequest())).models] == ["private"]
        write(routed, parrot=route(routed, {"old": 1}), private=moved)

        async def until_the_routes_are_followed() -> None:
            while True:
                await hear(broker.Chat(ask(model="private")))

        with pytest.raises(grpc.aio.AioRpcError) as nowhere:
            await asyncio.wait_for(until_the_routes_are_followed(), 10)
        assert remote_error(nowhere.value).reason == "INFERENCE_UNAVAILABLE"
    assert generated(routed)["old"] == 0


async def test_the_list_is_that_of_all_engines_and_says_what_is_not_ready(routed: ScriptedMesh) -> None:
    routed.engines["old"].sampling_options = ["stop", "top_p"]
    routed.engines["new"].sampling_options = ["top_p"]
    routed.engines["new"].models = ["parrot", "secretly-served"]
    write(routed, parrot=route(routed, {"old": 90, "new": 10}), starting=route(routed, {"new": 1}), empty=route(routed, {}))
    async with routed.running(), routed.calling() as stub:
        models = (await stub.ListModels(gw.ListModelsRequest())).models
        assert [(model.identity.model, model.ready) for model in models] == [
            ("empty", False),
            ("parrot", True),
            ("starting", False),
        ]
        await routed.servers.pop("old").stop()
        models = (await stub.ListModels(gw.ListModelsRequest())).models
        assert [(model.identity.model, model.ready) for model in models if model.ready] == [("parrot", True)]


# What the operator hears


async def test_the_operator_hears_how_revisions_answer_and_nobody_else_does(
    routed: ScriptedMesh, ask: Any, hear: Any, failure: Any
) -> None:
    write(routed, parrot=route(routed, {"old": 1}))
    async with routed.running(), routed.calling() as stub, operator(routed) as stats:
        for _ in range(3):
            await hear(stub.Chat(ask(model="parrot")))
        routed.engines["old"].pace = asyncio.Semaphore(0)
        call = stub.Chat(ask(model="parrot"))
        assert (await anext(aiter(call))).HasField("started")
        told = (await figures(stats))["r-old"]
        assert (told.model, told.answers, told.failed_answers) == ("parrot", 3, 0)
        assert (told.open, told.waiting) == (1, 1)
        assert sum(told.window_ttft_counts) == 3
        assert 0 < told.window_ttft_p95.ToMicroseconds() < 20e6
        call.cancel()
        async with asyncio.timeout(10):
            while (told := (await figures(stats))["r-old"]).open:
                pass
        assert (told.answers, told.waiting) == (3, 0)  # what a caller gave up is no answer
        bounds = (await stats.GetModelStats(pb.GetModelStatsRequest())).ttft_bounds_seconds
        assert len(bounds) + 1 == len(told.window_ttft_counts)
        peer = PeerSettings(target=routed.targets["gateway"], service="gateway", timeout_s=10)
        for stranger in (routed.identity(), routed.ca.issue("inference")):
            async with open_channel(peer, stranger, name="test") as channel:
                refused = await failure(stats_rpc.GatewayStatsServiceStub(channel).GetModelStats(pb.GetModelStatsRequest()))
                assert refused.reason == "CALLER_NOT_PERMITTED"
