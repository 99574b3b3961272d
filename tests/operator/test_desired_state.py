"""Children of a revision: read as YAML in golden/, loaded by those who read them, and held against the rules that all must keep.

`LIONROCK_WRITE_GOLDEN=1 pytest tests/operator/test_desired_state.py` writes the golden files anew; look at the difference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from simulated_cluster import CONFIG, settings

from lionrock.chassis.settings import load_settings
from lionrock.inference.placement import place
from lionrock.inference.settings import ApplicationSettings, InferenceSettings
from lionrock.operator.candidates import Option, options_of
from lionrock.operator.decision_settings import Gang, Opening
from lionrock.operator.desired_state import Route as ModelRoute
from lionrock.operator.desired_state import RouteEndpoint, children, differs, endpoint, facts_reader, routes
from lionrock.operator.fields import Malformed
from lionrock.operator.pools import PoolRules, TerritoryRule
from lionrock.operator.resources import ModelDeployment, Revision, parse_chip_pool, parse_model_deployment
from lionrock.operator.revision_template import RevisionTemplate, template_from_json
from lionrock.operator.tokenization import tokenization_endpoint
from lionrock.operator.world import World
from lionrock.planner.chips import CHIPS
from lionrock.tokenization.settings import TokenizationSettings

GOLDEN = Path(__file__).parent / "golden"
DIGEST = "sha256:" + "a" * 64
CHIPS_WITH_MEMORY = [name for name, row in CHIPS.items() if row.extended_resource is not None]
DESCRIBED = {
    "product": "Somebody's NPU 9",
    "extendedResource": "somebody.example/npu",
    "torchDevice": "cpu",
    "collective": "gloo",
    "rayResource": "NPU",
    "visibleDevices": "SOMEBODY_VISIBLE_DEVICES",
    "memory": "32Gi",
    "chipsPerNode": 4,
}
SOURCES: Mapping[str, Mapping[str, Any]] = {
    "claim": {"persistentVolumeClaim": {"claimName": "weights", "path": "llama/8b"}},
    "image": {"image": {"reference": f"registry.internal/models/llama@{DIGEST}"}},
    "object": {
        "object": {"endpoint": "https://objects.internal", "bucket": "models", "prefix": "llama/8b/", "secretName": "objects"}
    },
}
RULES = PoolRules(
    {"HK": TerritoryRule("topology.kubernetes.io/region", frozenset({"hk-2", "hk-1"}))},
    {name: f"registry.internal/engine-{name}@{DIGEST}" for name in [*CHIPS_WITH_MEMORY, "pool"]},
)


class Readable(yaml.SafeDumper):
    """YAML without aliases, and texts of several lines as such."""

    def ignore_aliases(self, data: object) -> bool:
        return True


Readable.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)


def option_on(pool: Mapping[str, Any], **spec: Any) -> tuple[ModelDeployment, Option]:
    """A model of 8 billion parameters on a pool."""
    world = World(RULES)
    body = {"metadata": {"name": "pool", "uid": "pool-uid", "generation": 1}, "spec": {"territory": "HK", **pool}}
    world.apply_pool(parse_chip_pool(body))
    model = parse_model_deployment(
        {
            "metadata": {"name": "llama", "namespace": "models", "uid": "model-uid", "generation": 1},
            "spec": {
                "model": {"source": SOURCES["claim"], "config": CONFIG, "tokenizer": {"digest": DIGEST}},
                "territory": "HK",
                "pools": [{"name": "pool"}],
                **spec,
            },
        }
    )
    assert isinstance(model, ModelDeployment)
    (option,) = options_of(world, model, CONFIG)
    assert isinstance(option, Option), option
    return model, option


def children_on(pool: Mapping[str, Any], replicas: int = 2, **spec: Any) -> list[dict[str, Any]]:
    model, option = option_on(pool, **spec)
    return children(option.template, model.meta, replicas, settings())


def pod_specs(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    (service,) = [each for each in manifests if each["kind"] == "RayService"]
    cluster = service["spec"]["rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield "worker", group["template"]["spec"]
    (deployment,) = [each for each in manifests if each["kind"] == "Deployment"]
    yield "tokenization", deployment["spec"]["template"]["spec"]


def containers_of(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


@pytest.mark.parametrize("chip", [*CHIPS_WITH_MEMORY, "described"])
def test_children_are_as_the_golden_file_shows_them(chip: str) -> None:
    pool = {"description": DESCRIBED} if chip == "described" else {"chip": chip, "chipsPerNode": CHIPS[chip].chips_per_node or 8}
    manifests = children_on(pool, parallelism={"type": "Given", "tensor": 2, "pipeline": 1})
    text = yaml.dump_all(manifests, Dumper=Readable, sort_keys=False, width=120, allow_unicode=True)
    path = GOLDEN / f"{chip}.yaml"
    if os.environ.get("LIONROCK_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("chip", [*CHIPS_WITH_MEMORY, "described"])
def test_the_front_and_the_application_load_what_they_are_given(chip: str, tmp_path: Path) -> None:
    pool = {"description": DESCRIBED} if chip == "described" else {"chip": chip, "chipsPerNode": CHIPS[chip].chips_per_node or 8}
    manifests = children_on(pool, parallelism={"type": "Given", "tensor": 2, "pipeline": 2})
    by_kind = {each["kind"]: each for each in manifests}
    config = tmp_path / "inference.yaml"
    config.write_text(by_kind["ConfigMap"]["data"]["inference.yaml"])
    front = load_settings(InferenceSettings, [f"--config={config}", "--ray.address=10.1.2.3:6379"])
    (declared,) = json.loads(by_kind["RayService"]["spec"]["serveConfigV2"])["applications"]
    application = ApplicationSettings.model_validate(declared["args"])
    assert application.model_copy(update={"model": application.model.model_copy(update={"replicas": 2})}) == front.application(
        "llama"
    )
    assert declared["deployments"] == [{"name": "replica", "num_replicas": 2}]
    assert application.image_digest == DIGEST


def tokenization_of(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Children of a revision's tokenization, by kind."""
    return {each["kind"]: each for each in manifests if each["metadata"]["name"].endswith("-tok")}


@pytest.mark.parametrize(("source", "path"), [("claim", "/llama/8b"), ("image", ""), ("object", "")])
def test_tokenization_loads_what_it_is_given_and_reads_the_models_own_files(source: str, path: str, tmp_path: Path) -> None:
    manifests = children_on({"chip": "ascend-910b"}, model={"source": SOURCES[source], "config": CONFIG})
    (record,) = [each for each in manifests if each["kind"] == "ConfigMap"]
    config = tmp_path / "tokenization.yaml"
    config.write_text(record["data"]["tokenization.yaml"])
    loaded = load_settings(TokenizationSettings, [f"--config={config}"])
    pod = tokenization_of(manifests)["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][-1] == "/etc/lionrock/tokenization.yaml"
    (mount,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "model"]
    assert loaded.models == {"llama": Path(f"{mount}{path}")}
    assert loaded.server.drain_grace_s + 5 < pod["terminationGracePeriodSeconds"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert loaded.server.listen.endswith(f":{ports['grpc']}")
    assert str(loaded.server.probe_listen).endswith(f":{ports['probes']}")
    init = {each["name"]: each for each in pod["initContainers"]}
    assert "--service=tokenization" in init["enrolment"]["command"]
    assert set(init) == ({"enrolment", "fetch"} if source == "object" else {"enrolment"})
    assert source != "object" or "--without-weights" in init["fetch"]["command"]


def test_only_gateways_reach_tokenization_and_it_reaches_none_of_the_models_pods() -> None:
    manifests = children_on({"chip": "ascend-910b"})
    found = tokenization_of(manifests)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    policy, selects = found["NetworkPolicy"]["spec"], found["Deployment"]["spec"]["selector"]["matchLabels"]
    assert selects.items() <= labels.items()
    assert policy["podSelector"]["matchLabels"] == found["Service"]["spec"]["selector"] == selects
    assert policy["ingress"] == [
        {"from": list(settings().openings.gateways.peers), "ports": [{"protocol": "TCP", "port": 50052}]},
    ]
    assert len(policy["egress"]) == 2, "name server, API server"
    (others,) = [each["spec"] for each in manifests if each["kind"] == "NetworkPolicy" and each is not found["NetworkPolicy"]]
    for selector in (others["podSelector"], others["ingress"][0]["from"][0]["podSelector"]):
        (roles,) = selector["matchExpressions"]
        assert labels["lionrock.io/role"] not in roles["values"]


def test_another_image_of_tokenization_makes_no_new_revision_and_a_budget_needs_two_pods() -> None:
    model, option = option_on({"chip": "ascend-910b"})
    for replicas, budgets in ((1, 1), (3, 2)):
        pods = replace(settings().pods, tokenization_image="registry.internal/tokenization:2", tokenization_replicas=replicas)
        manifests = children(option.template, model.meta, 2, replace(settings(), pods=pods))
        deployment = tokenization_of(manifests)["Deployment"]
        assert deployment["metadata"]["name"] == f"llama-{option.template.digest}-tok"
        assert deployment["spec"]["replicas"] == replicas
        assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.internal/tokenization:2"
        assert sum(each["kind"] == "PodDisruptionBudget" for each in manifests) == budgets
    plain = tokenization_of(children_on({"chip": "ascend-910b"}))["Deployment"]["spec"]["template"]["spec"]
    assert plain["containers"][0]["image"] == option.template.image


@pytest.mark.parametrize("chip", [*CHIPS_WITH_MEMORY, "described"])
@pytest.mark.parametrize("pipeline", [1, 2])
def test_each_bundle_of_a_replica_finds_its_chips_and_processors_in_one_pod(chip: str, pipeline: int) -> None:
    pool = {"description": DESCRIBED} if chip == "described" else {"chip": chip, "chipsPerNode": 4}
    manifests = children_on(pool, parallelism={"type": "Given", "tensor": 4, "pipeline": pipeline})
    (service,) = [each for each in manifests if each["kind"] == "RayService"]
    (declared,) = json.loads(service["spec"]["serveConfigV2"])["applications"]
    layout = place(ApplicationSettings.model_validate(declared["args"]).model)
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    start = group["rayStartParams"]
    offered = {"CPU": float(start["num-cpus"]), "GPU": float(start["num-gpus"])} | json.loads(
        start.get("resources", "'{}'").strip("'")
    )
    assert len(layout.bundles) == pipeline
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 2 * pipeline
    for bundle in layout.bundles:
        assert all(amount <= offered.get(name, 0.0) for name, amount in bundle.items()), (bundle, offered)
    chips = group["template"]["spec"]["containers"][0]["resources"]
    assert chips["limits"].items() >= {option_on(pool)[1].template.resource: "4"}.items()
    assert chips["requests"].items() >= {option_on(pool)[1].template.resource: "4"}.items()


@pytest.mark.parametrize("source", SOURCES)
def test_every_pod_keeps_the_restricted_standard_and_the_territory(source: str) -> None:
    spec = {"model": {"source": SOURCES[source], "config": CONFIG}}
    manifests = children_on({"chip": "ascend-910b", "nodeSelector": {"rack": "7"}}, **spec)
    model, option = option_on({"chip": "ascend-910b"}, **spec)
    reader = facts_reader(model.spec.source, model.meta, option.pool, settings())
    for role, pod in [*pod_specs(manifests), ("facts", reader["spec"])]:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert term["matchExpressions"][0] == {"key": "topology.kubernetes.io/region", "operator": "In", "values": ["hk-1", "hk-2"]}
        assert ({"key": "rack", "operator": "In", "values": ["7"]} in term["matchExpressions"]) == (role == "worker")
        assert {"key": "huawei.com/Ascend910", "operator": "Exists"} in pod["tolerations"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        allowed = {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim", "image"}
        assert all(len(volume) == 2 and volume.keys() - {"name"} <= allowed for volume in pod["volumes"])
        names = {volume["name"] for volume in pod["volumes"]}
        for container in containers_of(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
            sees_account = any(mount["name"] == "account" for mount in container["volumeMounts"])
            assert sees_account == (container["name"] == "enrolment")
        assert ("schedulingGates" in pod) == (role == "worker")


def test_only_workers_have_chips_and_who_knows_the_tokenizer_has_the_models_files() -> None:
    for role, pod in pod_specs(children_on({"chip": "nvidia-h100"})):
        asked = {name for each in containers_of(pod) for name in each["resources"]["limits"] if "/" in name}
        assert asked == ({"nvidia.com/gpu"} if role == "worker" else set())
        assert any(volume["name"] == "model" for volume in pod["volumes"]) == (role in ("worker", "tokenization"))


def test_probes_need_nothing_in_the_image() -> None:
    for _, pod in pod_specs(children_on({"chip": "nvidia-h100"})):
        for container in pod["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert {"httpGet", "grpc"} & container[probe].keys(), "an exec probe would need a program"


def test_pods_reach_what_is_named_and_nothing_else() -> None:
    manifests = children_on({"chip": "nvidia-h100"})
    policy, _ = [each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for rule, peers in [*((rule, "from") for rule in policy["ingress"]), *((rule, "to") for rule in policy["egress"])]:
        assert rule[peers], "a rule without peers is open to everybody"
        own = rule[peers][0].get("podSelector", {}).get("matchLabels", {}).get("lionrock.io/model")
        assert own or rule["ports"]
    assert len(policy["egress"]) == 3, "own pods, name server, API server"
    assert not any("objects" in str(rule) for rule in policy["egress"])


def test_object_stores_are_reached_by_models_that_are_fetched_alone() -> None:
    stores = Opening(peers=({"ipBlock": {"cidr": "10.9.0.0/24"}},), ports=(443,))
    using = replace(settings(), openings=replace(settings().openings, objects=stores))
    for source, reaches in (("claim", False), ("object", True)):
        model, option = option_on({"chip": "nvidia-h100"}, model={"source": SOURCES[source], "config": CONFIG})
        for policy in [each for each in children(option.template, model.meta, 1, using) if each["kind"] == "NetworkPolicy"]:
            assert any("10.9.0.0/24" in str(rule) for rule in policy["spec"]["egress"]) == reaches


def test_an_opening_is_never_open_to_everybody() -> None:
    with pytest.raises(ValueError, match="open to all"):
        Opening(peers=(), ports=(443,))
    with pytest.raises(ValueError, match="open to all"):
        Opening(peers=({},), ports=(443,))


def test_a_gang_scheduler_that_the_cluster_has_gets_its_labels_and_no_gates() -> None:
    model, option = option_on({"chip": "nvidia-h100"})
    for gang, label in (
        (Gang(by="kueue", queue="gold"), "kueue.x-k8s.io/queue-name"),
        (Gang(by="volcano"), "ray.io/scheduler-name"),
    ):
        manifests = children(option.template, model.meta, 1, replace(settings(), gang=gang))
        (service,) = [each for each in manifests if each["kind"] == "RayService"]
        assert label in service["metadata"]["labels"]
        assert not any("schedulingGates" in pod for _, pod in pod_specs(manifests))


def test_names_stay_within_what_kuberay_accepts() -> None:
    manifests = children_on({"chip": "nvidia-h100"})
    longest = "m" * 38  # of a ModelDeployment
    for each in manifests:
        name = each["metadata"]["name"].replace("llama", longest)
        assert len(name) <= 63
        assert each["kind"] != "RayService" or len(name) <= 47, "MaxRayServiceNameLength of KubeRay 1.6.2"


def test_a_template_is_read_back_as_it_was_written() -> None:
    for source in SOURCES.values():
        for pool in ({"chip": "ascend-a3", "tolerations": [{"key": "k", "operator": "Exists"}]}, {"description": DESCRIBED}):
            _, option = option_on(pool, model={"source": source, "config": CONFIG})
            assert template_from_json(option.template.to_json()) == option.template


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "source": {"kind": "x"}}'])
def test_a_template_of_another_hand_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        template_from_json(text)


def test_everything_that_makes_new_pods_is_in_the_revision() -> None:
    base, pool = {"chip": "ascend-910b"}, {"chip": "ascend-910b", "engine": {"image": "other:2"}}

    def digest(pool: Mapping[str, Any], **spec: Any) -> Revision:
        return option_on(pool, **spec)[1].template.digest

    changes: list[Revision] = [
        digest(pool),
        digest({**base, "nodeSelector": {"a": "b"}}),
        digest({**base, "tolerations": [{"key": "k", "operator": "Exists"}]}),
        digest({**base, "memory": "32Gi"}),
        digest({**base, "engine": {"backend": "vllm"}}),
        digest(base, parallelism={"type": "Given", "tensor": 2}),
        digest(base, workload={"concurrency": 8}),
        *(digest(base, model={"source": source, "config": CONFIG}) for source in SOURCES.values()),
        digest(base, model={"source": SOURCES["claim"], "config": CONFIG, "dtype": "float16"}),
        digest(base, model={"source": SOURCES["claim"], "config": CONFIG, "name": "other"}),
    ]
    assert len({digest(base), *changes}) == 1 + len(changes)
    assert digest(base, replicas=7) == digest(base, tenancy={"type": "Dedicated", "tenant": "t"}) == digest(base)


def test_where_a_revision_runs_is_not_what_its_owner_decides() -> None:
    on_one, on_other = option_on({"chip": "ascend-910b"})[1].template, option_on({"chip": "cambricon-mlu590"})[1].template
    assert on_one.digest != on_other.digest
    assert on_one.model_digest == on_other.model_digest
    changed = option_on({"chip": "ascend-910b"}, workload={"concurrency": 8})[1].template
    assert changed.model_digest != on_one.model_digest


def test_routes_name_endpoints_with_requests_by_the_name_that_callers_use() -> None:
    def at(name: str, weight: int) -> RouteEndpoint:
        return RouteEndpoint(
            target=endpoint("models", "llama", Revision(name)),
            tokenization=tokenization_endpoint("models", "llama", Revision(name)),
            revision=Revision(name),
            weight=weight,
        )

    found = routes(
        "models",
        [
            ModelRoute(served_name="llama-8b", tenant="t1", endpoints=[at("0123abcd", 90), at("89abcdef", 0)]),
            ModelRoute(served_name="empty", tenant=None, endpoints=[]),
        ],
    )
    assert json.loads(found["data"]["routes.json"]) == {
        "models": {
            "empty": {"endpoints": [], "tenant": None},
            "llama-8b": {
                "endpoints": [
                    {
                        "target": "dns:///llama-0123abcd.models.svc:50053",
                        "tokenization": "dns:///llama-0123abcd-tok.models.svc:50052",
                        "weight": 90,
                        "revision": "0123abcd",
                    }
                ],
                "tenant": "t1",
            },
        }
    }


def test_what_others_add_is_no_difference_and_what_they_change_is() -> None:
    wanted = {"spec": {"a": [{"x": 1}], "empty": {}, "none": ""}}
    assert not differs(wanted, {"spec": {"a": [{"x": 1, "defaulted": 2}]}, "status": {}})
    assert differs(wanted, {"spec": {"a": [{"x": 2}]}})
    assert differs(wanted, {"spec": {"a": [{"x": 1}, {"x": 1}]}})
    assert differs(wanted, {"spec": {}})


def test_equal_arguments_make_equal_manifests() -> None:
    def template() -> RevisionTemplate:
        return option_on({"chip": "ascend-910b", "nodeSelector": {"b": "1", "a": "2"}})[1].template

    model, _ = option_on({"chip": "ascend-910b"})
    one, other = (json.dumps(children(template(), model.meta, 3, settings())) for _ in range(2))
    assert one == other
