"""A model that somebody else declares, on pods that hold its chips: found, served, lost with a pod, redeployed, drained.

The tests build on each other, in the order in which they stand: they are the life of one cluster.
"""

from __future__ import annotations

import asyncio
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from declared_service import DeclaredService, eventually
from grpc_health.v1 import health_pb2
from inference_service import MODEL, generate_request, survivors

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[DeclaredService]:
    service = DeclaredService(tmp_path_factory.mktemp("declared"), model_path)
    try:
        yield service
    finally:
        front = psutil.Process(service.process.pid) if service.process.poll() is None else None
        service.process.kill()
        left = service.pods.stop()
        left += [] if front is None else survivors([front], within_s=5)
    assert left == [], "processes outlive the cluster"


async def test_a_front_listens_before_there_is_a_cluster_or_a_model(declared: DeclaredService) -> None:
    await declared.wait_ready(ready=False)
    assert await declared.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    declared.pods.start_head()
    async with declared.stub() as stub:
        answer = await declared.answer(stub, generate_request())
        assert answer.error is not None
        assert (answer.error.reason, answer.error.retry_after_s) == ("MODEL_NOT_READY", 1.0)


async def test_arguments_that_cannot_be_used_are_named_in_the_applications_status(declared: DeclaredService) -> None:
    def problem() -> str:
        return str(declared.pods.applications().get("applications", {}).get(MODEL, {}).get("message", ""))

    bad = declared.declaration(tensor_parallel=0)
    eventually(lambda: declared.pods.put(bad) == 200, problem)
    said = "failed with exception:\nmodel.tensor_parallel: Input should be greater than or equal to 1"  # and no traceback
    eventually(lambda: said in problem(), problem)


async def test_a_declared_model_is_served_from_pods_that_each_hold_a_whole_stage(declared: DeclaredService) -> None:
    for address in ("127.0.0.3", "127.0.0.4"):
        declared.pods.start_worker(address, chips=1)
    eventually(lambda: declared.pods.put(declared.declaration()) == 200, declared.pods.applications)
    took_s = await declared.wait_ready()
    print(f"ready {took_s:.1f} s after the declaration, with the workers' start")
    assert declared.pods.ranks() == {"127.0.0.2": 0, "127.0.0.3": 1, "127.0.0.4": 1}
    assert await declared.health() == health_pb2.HealthCheckResponse.SERVING
    async with declared.stub() as stub:
        answer = await declared.answer(stub, generate_request(max_tokens=8))
        served = await declared.served(stub)
    assert answer.error is None
    assert len(answer.tokens) == 8
    assert answer.started is not None
    assert answer.started.model == served.identity
    assert served.identity.weights_digest.startswith("sha256:")
    assert (served.plan.chip, served.plan.tensor_parallel, served.plan.pipeline_parallel) == ("posing", 1, 2)
    assert served.replicas == 1


def test_serves_own_doors_stay_closed(declared: DeclaredService) -> None:
    said = declared.pods.applications()
    assert said["proxies"] == {}
    assert said["proxy_location"] == "Disabled"
    listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert not {said["http_options"]["port"], said["grpc_options"]["port"]} & listening


async def test_streams_outlive_the_loss_of_a_pod_whose_chips_come_back_elsewhere(declared: DeclaredService) -> None:
    request = generate_request(max_tokens=60)
    async with declared.stub() as stub:
        undisturbed = await declared.answer(stub, request)
        lost = next(address for address in ("127.0.0.3", "127.0.0.4") if not declared.pods.holds(address, "ServeReplica"))
        tokens: list[int] = []
        begin_s = time.monotonic()
        async for message in stub.Generate(generate_request(max_tokens=60), timeout=200):
            tokens += message.tokens.token_ids
            if tokens and lost in declared.pods.ranks():
                declared.pods.lose(lost)
                joining = asyncio.create_task(asyncio.to_thread(declared.pods.start_worker, "127.0.0.5", 1))
        await joining
    print(f"a stream took {time.monotonic() - begin_s:.1f} s over the loss of a pod")
    assert tokens == undisturbed.tokens
    await declared.wait_ready()
    assert sum(declared.pods.ranks().values()) == 2


async def test_a_model_that_is_taken_away_and_declared_again_is_found_again(declared: DeclaredService) -> None:
    assert declared.pods.put({"proxy_location": "Disabled", "applications": []}) == 200
    await declared.wait_ready(ready=False)
    assert declared.pods.put(declared.declaration()) == 200
    await declared.wait_ready()


async def test_a_front_that_is_told_to_end_finishes_its_answers_and_takes_no_others(declared: DeclaredService) -> None:
    async with declared.stub() as stub:
        running = asyncio.create_task(declared.answer(stub, generate_request(max_tokens=60)))
        while (await declared.answer(stub, generate_request(max_tokens=1))).error is not None:
            pass
        begin_s = time.monotonic()
        declared.process.send_signal(signal.SIGTERM)
        answer = await running
    assert answer.error is None
    assert len(answer.tokens) == 60
    assert await asyncio.to_thread(declared.process.wait, 30) == 0
    print(f"ended {time.monotonic() - begin_s:.1f} s after SIGTERM")
    assert sum(declared.pods.ranks().values()) == 2, "what others deployed stays"


def test_every_argument_that_is_wrong_is_named_and_no_value_repeated() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's import, about itself
        from lionrock.inference.serve_application import BadApplication, build
    with pytest.raises(BadApplication) as raised:
        build({"name": "m", "model": {"path": "/m", "chip": "nonesuch-7", "dtype": "secret"}, "ray": {}, "extra": 1})
    said = str(raised.value)
    assert all(name in said for name in ("model.dtype", "ray.tls", "extra"))
    assert "secret" not in said
