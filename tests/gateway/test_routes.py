"""Routes: the document, the choice by weight, and the file that is followed as a mounted ConfigMap changes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lionrock.chassis.tls import TlsFilesUnusable
from lionrock.gateway.routes import (
    MAX_ENDPOINTS,
    MAX_ROUTES_BYTES,
    Endpoint,
    RoutesInvalid,
    RouteTable,
    Share,
    parse_routes,
    pick,
)
from lionrock.gateway.routes_file import RoutesFile
from scripted_mesh import ScriptedMesh

OLD = {"target": "dns:///m-0a1b2c3d.ns.svc:50053", "weight": 90, "revision": "0a1b2c3d"}
NEW = {"target": "dns:///m-4e5f6a7b.ns.svc:50053", "weight": 10, "revision": "4e5f6a7b"}


def document(**models: Any) -> str:
    return json.dumps({"models": models})


ROUTES = document(m={"endpoints": [OLD, NEW], "tenant": None}, private={"endpoints": [], "tenant": "bank"})


# The document


def test_a_document_says_where_each_model_is_answered_and_for_whom() -> None:
    table = parse_routes(ROUTES.encode())
    assert table.targets == {OLD["target"], NEW["target"]}
    assert table.revisions == {("m", "0a1b2c3d"), ("m", "4e5f6a7b")}
    for tenant in ("bank", "broker"):
        route = table.route("m", Share(tenant))
        assert route is not None
        assert [endpoint.weight for endpoint in route.endpoints] == [90, 10]
    assert table.route("private", Share("bank")) is not None
    assert table.route("private", Share("broker")) is None
    assert table.route("unheard-of", Share("bank")) is None


def test_a_tenant_that_shares_no_engines_has_its_own_models_and_no_others() -> None:
    table, dedicated = parse_routes(ROUTES.encode()), Share("bank", dedicated=True)
    assert table.route("private", dedicated) is not None
    assert table.route("m", dedicated) is None
    assert table.route("private", Share("broker", dedicated=True)) is None
    assert RouteTable(only=Endpoint("127.0.0.1:1")).route("m", dedicated) is None


def test_of_its_own_models_a_tenant_has_what_stands_on_its_pools() -> None:
    on_pools = [OLD | {"pool": "ascend"}, NEW | {"pool": "spare"}, OLD | {"target": "elsewhere:1"}]
    table = parse_routes(document(private={"endpoints": on_pools, "tenant": "bank"}).encode())

    def answering(*pools: str) -> list[str]:
        route = table.route("private", Share("bank", dedicated=True, pools=frozenset(pools)))
        assert route is not None, "the model is there, whatever answers for it"
        return [endpoint.target for endpoint in route.endpoints]

    assert answering("ascend") == [OLD["target"]]
    assert answering("ascend", "spare") == [OLD["target"], NEW["target"]]
    assert answering("kunlun") == []


def test_one_engine_for_all_is_asked_for_every_model() -> None:
    table = RouteTable(only=Endpoint("127.0.0.1:1"))
    route = table.route("anything", Share("anybody"))
    assert route is not None
    assert route.endpoints == (Endpoint("127.0.0.1:1"),)
    assert table.targets == {"127.0.0.1:1"}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "JSON"),
        ("[" * 100_000, "JSON"),
        ('{"models": {}, "models": {}}', "twice"),
        ("{}", "models is missing"),
        ('{"models": {}, "more": 1}', "does not know"),
        (document(m={"endpoints": [OLD], "tenants": ["bank"]}), "models.m: a key"),
        (document(m={"endpoints": [OLD | {"zone": "a"}]}), r"endpoints\[0\]: a key"),
        (document(m={"endpoints": [OLD | {"weight": -1}]}), "weight"),
        (document(m={"endpoints": [OLD | {"weight": True}]}), "weight"),
        (document(m={"endpoints": [OLD | {"target": "unix:/tmp/socket"}]}), "target"),
        (document(m={"endpoints": [OLD | {"target": ""}]}), "target"),
        (document(m={"endpoints": [OLD | {"revision": "r\n"}]}), "revision"),
        (document(m={"endpoints": [OLD | {"tokenization": "unix:/tmp/socket"}]}), "tokenization"),
        (document(m={"endpoints": [OLD | {"tokenization": ""}]}), "tokenization"),
        (document(m={"endpoints": [OLD | {"tokenization": 1}]}), "tokenization"),
        (document(m={"endpoints": [OLD | {"pool": "A"}]}), "pool"),
        (document(m={"endpoints": [OLD, OLD]}), "twice"),
        (document(m={"endpoints": [OLD | {"target": f"h:{n}"} for n in range(MAX_ENDPOINTS + 1)]}), "at most"),
        (document(m={"endpoints": [OLD], "tenant": "Bank"}), "tenant"),
        (document(m={"endpoints": [OLD], "tenant": ""}), "tenant"),
        (document(**{"": {"endpoints": []}}), "name"),
        (" " * (MAX_ROUTES_BYTES + 1), "bytes"),
    ],
)
def test_a_document_that_may_not_be_followed_says_where(text: str, where: str) -> None:
    with pytest.raises(RoutesInvalid, match=where):
        parse_routes(text.encode())


KEYS = ["target", "weight", "revision", "tokenization", "x"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.binary(max_size=64)
    | _JSON.map(lambda v: json.dumps(v).encode())
    | st.dictionaries(
        st.text(max_size=3), st.fixed_dictionaries({"endpoints": st.lists(_JSON, max_size=2), "tenant": _JSON}) | _JSON, max_size=3
    ).map(lambda models: json.dumps({"models": models}).encode())
)
def test_any_bytes_are_routes_or_a_named_error(text: bytes) -> None:
    try:
        table = parse_routes(text)
    except RoutesInvalid:
        return
    assert all(isinstance(target, str) and target for target in table.targets)


# The choice


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_endpoints_are_chosen_in_proportion_to_their_weights(weights: list[int]) -> None:
    endpoints = [Endpoint(f"h:{number}", weight) for number, weight in enumerate(weights)]
    total = sum(weights)
    chosen = Counter(pick(endpoints, (draw + 0.5) / total) for draw in range(total))
    assert [chosen[endpoint] for endpoint in endpoints] == weights
    if not total:
        assert pick(endpoints, 0.0) is None


# The file


class Follower:
    """Who is told of routes."""

    def __init__(self) -> None:
        self.tables: list[RouteTable] = []
        self.refused = 0
        self.error: Exception | None = None

    def follow(self, table: RouteTable) -> None:
        if self.error is not None:
            raise self.error
        self.tables.append(table)

    def refuse(self) -> None:
        self.refused += 1


@pytest.fixture
def follower() -> Follower:
    return Follower()


@pytest.fixture
def file(idle_mesh: ScriptedMesh, follower: Follower) -> RoutesFile:
    return RoutesFile(idle_mesh.routes_directory / "routes.json", follower.follow, follower.refuse)


def test_a_swap_of_links_is_seen_once(idle_mesh: ScriptedMesh, file: RoutesFile, follower: Follower) -> None:
    idle_mesh.write_routes(document())
    file.start()
    assert not file.look()
    idle_mesh.write_routes(ROUTES)
    assert [file.look(), file.look()] == [True, False]
    assert [len(table.models) for table in follower.tables] == [0, 2]


def test_bad_routes_leave_the_former_ones_and_are_said_and_counted_once(
    idle_mesh: ScriptedMesh, file: RoutesFile, follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    idle_mesh.write_routes(ROUTES)
    file.start()
    idle_mesh.write_routes("{")
    with caplog.at_level(logging.ERROR, "lionrock.gateway"):
        assert [file.look(), file.look()] == [False, False]
    assert (len(follower.tables), follower.refused, len(caplog.records)) == (1, 1, 1)
    (idle_mesh.routes_directory / "routes.json").unlink()
    assert [file.look(), file.look()] == [False, False]
    assert (len(follower.tables), follower.refused) == (1, 2)
    idle_mesh.write_routes(document())
    assert file.look()


def test_a_missing_file_is_a_cluster_without_models_until_it_comes(
    idle_mesh: ScriptedMesh, file: RoutesFile, follower: Follower
) -> None:
    file.start()
    assert [file.look(), file.look()] == [False, False]
    idle_mesh.write_routes(ROUTES)
    assert file.look()
    assert ([len(table.models) for table in follower.tables], follower.refused) == ([0, 2], 0)


def test_a_bad_file_at_the_start_is_named(idle_mesh: ScriptedMesh, file: RoutesFile) -> None:
    idle_mesh.write_routes(document(m={"endpoints": [{}]}))
    with pytest.raises(RoutesInvalid, match=r"routes_file .*routes\.json: models\.m\.endpoints\[0\]"):
        file.start()


def test_routes_that_could_not_be_followed_yet_are_tried_again(
    idle_mesh: ScriptedMesh, file: RoutesFile, follower: Follower
) -> None:
    file.start()
    idle_mesh.write_routes(ROUTES)
    follower.error = TlsFilesUnusable("half a certificate")
    assert not file.look()
    follower.error = None
    assert file.look()


def test_a_file_of_endless_length_is_not_read_whole(tmp_path: Path, follower: Follower) -> None:
    with pytest.raises(RoutesInvalid, match="bytes"):
        RoutesFile(Path("/dev/zero"), follower.follow, follower.refuse).start()
