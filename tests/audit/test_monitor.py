"""A monitor is quiet while a log does what it should, and shouts at everything else; its evidence convinces others."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from tile_harness import ORIGIN, GrowingLog, signer

from lionrock.audit.evidence import ForkEvidence, NotEvidence
from lionrock.audit.monitor import Alarm, LogMonitor, Look, StateUnusable, WatchedLog
from lionrock.audit.publisher import LogPublisher
from lionrock.audit.store.sqlite import SqliteLogStore
from lionrock.audit.tile_sinks import DirectorySink
from lionrock.audit.tile_sources import DirectorySource, HttpSource
from lionrock.tlog.keys import SignatureType, signer_from_seed
from lionrock.tlog.note import add_signatures, signature_line

WITNESSES = [
    signer_from_seed(f"witness.example/w{number}", SignatureType.ED25519_COSIGNATURE, bytes([number]) * 32) for number in (1, 2)
]


class Site:
    """A log that is published into a directory, and whoever follows it."""

    def __init__(self, root: Path, name: str = "site", log_type: type[GrowingLog] = GrowingLog) -> None:
        self.root = root
        self.store = SqliteLogStore(root / f"{name}.db")
        self.log = log_type(self.store)
        self.tiles = root / name
        self.directory = self.tiles / ORIGIN

    def grow(self, count: int) -> None:
        self.log.grow(count)
        self.publish()

    def publish(self) -> None:
        with closing(DirectorySink(self.tiles)) as sink:
            publisher = LogPublisher(self.log.published(), self.store, sink)
            while publisher.step():
                pass

    def monitor(self, **changes: Any) -> LogMonitor:
        clock: Callable[[], float] = changes.pop("clock", lambda: 1000.0)
        values = {"origin": ORIGIN, "source": DirectorySource(self.directory), "keys": [self.log.key]} | changes
        return LogMonitor(WatchedLog(**values), self.root / "seen", clock=clock)


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(*arguments: Any) -> Site:
        sites.append(Site(tmp_path, *arguments))
        return sites[-1]

    yield make
    for site in sites:
        site.store.close()


@pytest.fixture
def site(open_site: Callable[..., Site]) -> Site:
    return open_site()


class OtherHistory(GrowingLog):
    """The same key, another leaf 40."""

    def leaf(self, index: int) -> bytes:
        return super().leaf(index) + (b"forged" if index == 40 else b"")


def alarms(look: Look) -> list[Alarm]:
    return [finding.alarm for finding in look.findings]


@pytest.mark.parametrize("read_leaves", [True, False])
def test_a_log_that_grows_is_followed_in_silence_also_over_restarts(site: Site, read_leaves: bool) -> None:
    total = 0
    for growth in (0, 1, 5, 250, 0, 256, 700, 3):
        site.grow(growth)
        total += growth
        look = site.monitor(read_leaves=read_leaves).look()
        assert (look.size, alarms(look)) == (total, [])
    assert look.new_leaves == 3


def replace_log(site: Site, by: Site) -> None:
    shutil.rmtree(site.directory)
    shutil.copytree(by.directory, site.directory)


@pytest.mark.parametrize(("seen", "shown"), [(100, 100), (100, 300), (41, 700), (300, 700)])
def test_a_fork_is_found_told_at_every_look_and_proven_to_others(
    site: Site, open_site: Callable[..., Site], seen: int, shown: int
) -> None:
    site.grow(seen)
    assert alarms(site.monitor().look()) == []
    other = open_site("other", OtherHistory)
    other.grow(shown)
    replace_log(site, other)
    monitor = site.monitor()
    for _ in range(2):
        look = monitor.look()
        assert alarms(look) == [Alarm.FORK]
        assert look.size == seen
    evidence = look.findings[0].evidence
    assert evidence is not None
    shorter, longer = ForkEvidence.parse(evidence.read_bytes()).verify(ORIGIN, [site.log.key])
    assert (shorter.size, longer.size) == (seen, shown)
    assert alarms(site.monitor().look()) == [Alarm.FORK], "a restart forgets it"


def test_a_shorter_fork_is_proven_where_the_longer_tiles_are_still_there(site: Site, open_site: Callable[..., Site]) -> None:
    site.grow(300)
    site.monitor().look()
    other = open_site("other", OtherHistory)
    other.grow(60)
    (site.directory / "checkpoint").chmod(0o600)
    (site.directory / "checkpoint").write_bytes((other.directory / "checkpoint").read_bytes())
    look = site.monitor().look()
    assert alarms(look) == [Alarm.FORK]
    assert look.findings[0].evidence is not None
    ForkEvidence.parse(look.findings[0].evidence.read_bytes()).verify(ORIGIN, [site.log.key])


def test_a_roll_back_is_found_with_and_without_the_tiles(site: Site, open_site: Callable[..., Site]) -> None:
    site.grow(300)
    site.monitor().look()
    shorter = open_site("shorter")
    shorter.grow(200)
    (site.directory / "checkpoint").chmod(0o600)
    (site.directory / "checkpoint").write_bytes((shorter.directory / "checkpoint").read_bytes())
    assert alarms(site.monitor().look()) == [Alarm.ROLL_BACK]
    replace_log(site, shorter)
    look = site.monitor().look()
    assert (alarms(look), look.size) == ([Alarm.ROLL_BACK], 300)
    shorter.grow(150)  # the honest history again
    replace_log(site, shorter)
    look = site.monitor().look()
    assert (alarms(look), look.size) == ([], 350)


def test_standing_still_is_an_alarm_after_the_limit_and_not_before(site: Site) -> None:
    now = 1000.0
    monitor = site.monitor(stall_after_s=60, clock=lambda: now)
    site.grow(10)
    assert alarms(monitor.look()) == []
    now = 1060.0
    assert alarms(monitor.look()) == []
    now = 1061.0
    look = monitor.look()
    assert (alarms(look), look.age_s) == ([Alarm.STALL], 61)
    restarted = site.monitor(stall_after_s=60, clock=lambda: now)
    assert alarms(restarted.look()) == [Alarm.STALL]
    site.grow(1)
    assert alarms(restarted.look()) == []
    shutil.rmtree(site.directory)
    now = 1200.0
    assert alarms(restarted.look()) == [Alarm.CORRUPT, Alarm.STALL]


def cosign(site: Site, count: int) -> None:
    text = site.log.head.checkpoint.rpartition("\n\n")[0] + "\n"
    note = add_signatures(site.log.head.checkpoint, [signature_line(text, witness) for witness in WITNESSES[:count]])
    site.log.head = type(site.log.head)(site.log.head.size, site.log.head.root, note)
    site.publish()


def test_missing_cosignatures_are_counted_and_do_not_stop_the_following(site: Site) -> None:
    watched = {"witnesses": [witness.verifier_key for witness in WITNESSES], "witnesses_needed": 2}
    site.grow(10)
    for count, expected in ((0, [Alarm.COSIGNATURES_MISSING]), (1, [Alarm.COSIGNATURES_MISSING]), (2, [])):
        site.log.grow(1)
        cosign(site, count)
        look = site.monitor(**watched).look()
        assert (alarms(look), look.size) == (expected, site.log.head.size)


def test_a_witness_that_cosigns_now_keeps_a_quiet_log_from_being_called_stalled_and_one_from_tomorrow_does_not(site: Site) -> None:
    watched = {"witnesses": [WITNESSES[0].verifier_key], "stall_after_s": 60}
    start = time.time()
    now = start - 1000.0
    monitor = site.monitor(clock=lambda: now, **watched)
    site.grow(10)
    assert alarms(monitor.look()) == []
    cosign(site, 1)
    now = start
    assert alarms(monitor.look()) == []
    now = start + 100
    assert alarms(monitor.look()) == [Alarm.STALL]
    now = start - 500  # as if the cosignature came from the future
    assert alarms(monitor.look()) == [Alarm.STALL]


def test_another_key_another_log_and_no_checkpoint_are_told_apart(site: Site) -> None:
    site.grow(10)
    assert alarms(site.monitor(keys=[signer(ORIGIN, 9).verifier_key]).look()) == [Alarm.UNKNOWN_KEY]
    note = (site.directory / "checkpoint").read_text(encoding="utf-8")
    (site.directory / "checkpoint").chmod(0o600)
    (site.directory / "checkpoint").write_text(note.replace("\n10\n", "\n11\n"), encoding="utf-8")
    assert alarms(site.monitor().look()) == [Alarm.UNKNOWN_KEY]
    (site.directory / "checkpoint").write_text("no note", encoding="utf-8")
    assert alarms(site.monitor().look()) == [Alarm.CORRUPT]
    (site.directory / "checkpoint").unlink()
    assert alarms(site.monitor().look()) == [Alarm.CORRUPT]
    assert alarms(site.monitor(source=HttpSource("http://127.0.0.1:1/")).look()) == [Alarm.UNREACHABLE]


def test_a_corrupt_tile_or_leaf_is_found_when_it_is_new_and_the_log_is_not_gone_on_with(site: Site) -> None:
    site.grow(300)
    site.monitor().look()
    site.grow(300)
    for name in ("tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/001", "tile/entries/002.p/88"):
        path = site.directory / name
        good = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
        look = site.monitor().look()
        assert (alarms(look), look.size) == ([Alarm.CORRUPT], 300), name
        path.write_bytes(good)
    look = site.monitor().look()
    assert (alarms(look), look.size) == ([], 600)


@pytest.mark.parametrize("name", ["tile/0/000", "tile/entries/000"])
def test_old_tiles_and_leaves_are_read_again_when_everything_is_asked_for(site: Site, name: str) -> None:
    site.grow(600)
    site.monitor().look()
    (site.directory / name).chmod(0o600)
    (site.directory / name).write_bytes(bytes(8192))
    assert alarms(site.monitor().look()) == []
    assert alarms(site.monitor().look(everything=True)) == [Alarm.CORRUPT]


def test_what_is_remembered_is_not_forgotten_by_damage(site: Site) -> None:
    site.grow(10)
    site.monitor().look()
    (state,) = (site.root / "seen").glob("*.json")
    good = state.read_bytes()
    for damaged in (
        b"",
        b"{}",
        good[:-20],
        good.replace(b"bank\\n10", b"bank\\n11"),
        good.replace(b'"leaves": 10', b'"leaves": 11'),
    ):
        state.write_bytes(damaged)
        with pytest.raises(StateUnusable, match="restore it, or remove it"):
            site.monitor()
    state.write_bytes(good)
    assert alarms(site.monitor().look()) == []


def test_what_is_no_fork_is_not_taken_for_evidence(site: Site, open_site: Callable[..., Site]) -> None:
    site.grow(100)
    first = site.log.head
    site.grow(200)
    later = site.log.head
    site.monitor().look()
    other = open_site("other", OtherHistory)
    other.grow(300)
    replace_log(site, other)
    (finding,) = site.monitor().look().findings
    assert finding.evidence is not None
    real = ForkEvidence.parse(finding.evidence.read_bytes())
    key = site.log.key
    real.verify(ORIGIN, [key])
    for wrong in (
        ForkEvidence(first.checkpoint, first.checkpoint, first.root, []),
        ForkEvidence(first.checkpoint, later.checkpoint, first.root, real.proof),
        ForkEvidence(first.checkpoint, later.checkpoint, bytes(32), []),
        ForkEvidence(later.checkpoint, first.checkpoint, later.root, []),
        ForkEvidence(first.checkpoint, other.log.head.checkpoint, other.log.head.root, []),
    ):
        with pytest.raises(NotEvidence):
            wrong.verify(ORIGIN, [key])
    with pytest.raises(NotEvidence):
        real.verify(ORIGIN, [signer(ORIGIN, 9).verifier_key])
    with pytest.raises(NotEvidence):
        real.verify("audit.example.hk/audit/broker", [key])


@given(
    st.binary(max_size=300) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_hostile_evidence_is_refused(content: bytes) -> None:
    with pytest.raises(NotEvidence):
        ForkEvidence.parse(content)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lionrock.cli", "audit", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_the_command_ends_with_what_it_found(site: Site, open_site: Callable[..., Site], tmp_path: Path) -> None:
    site.grow(100)
    one = ["monitor", "--once", "--source", str(site.directory), "--key", str(site.log.key), "--state-dir", str(tmp_path / "cli")]
    done = run(*one)
    assert (done.returncode, done.stderr) == (0, "")
    assert [(each["event"], each["size"], each["log"]) for each in events(done.stdout)] == [("verified", 100, ORIGIN)]
    other = open_site("other", OtherHistory)
    other.grow(200)
    replace_log(site, other)
    done = run(*one)
    assert done.returncode == 1
    (fork,) = events(done.stdout)
    assert (fork["event"], fork["severity"]) == ("fork", "alarm")
    shown = run("evidence", fork["evidence"], "--key", str(site.log.key))
    assert (shown.returncode, shown.stdout.startswith("FORKED")) == (0, True)
    assert run("evidence", fork["evidence"], "--key", str(signer(ORIGIN, 9).verifier_key)).returncode == 1
    shutil.rmtree(site.directory)
    assert run(*one).returncode == 1
    unreachable = ["--source", "http://127.0.0.1:1/", "--key", str(site.log.key), "--state-dir", str(tmp_path / "cli2")]
    assert run("monitor", "--once", *unreachable).returncode == 4


def test_the_command_follows_many_logs_from_a_file_until_it_is_told_to_stop(site: Site, tmp_path: Path) -> None:
    site.grow(10)
    config = {
        "state_dir": str(tmp_path / "cli"),
        "interval_s": 0.05,
        "logs": [
            {"source": str(site.directory), "keys": [str(site.log.key)], "stall_after_s": 3600},
            {"source": str(tmp_path / "none"), "keys": [str(signer("audit.example.hk/audit/broker").verifier_key)]},
        ],
    }
    (tmp_path / "monitor.yaml").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "lionrock.cli", "audit", "monitor", "--config", str(tmp_path / "monitor.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first = {event["log"]: event["event"] for event in (json.loads(process.stdout.readline()) for _ in range(2))}
        assert first == {ORIGIN: "verified", "audit.example.hk/audit/broker": "corrupt"}
        site.grow(300)
        grown = json.loads(process.stdout.readline())
        assert (grown["event"], grown["size"], grown["new_leaves"]) == ("verified", 310, 300)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 1
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_the_service_answers_probes_whatever_the_logs_show_and_is_ready_when_it_looked(site: Site, tmp_path: Path) -> None:
    site.grow(10)
    (site.directory / "tile/0/000.p/10").unlink()
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "state_dir": str(tmp_path / "cli"),
        "interval_s": 0.05,
        "probe_listen": listen,
        "logs": [{"source": str(site.directory), "keys": [str(site.log.key)]}],
    }
    (tmp_path / "monitor.yaml").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "lionrock.audit.monitoring", "--config", str(tmp_path / "monitor.yaml")]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline())["event"] == "corrupt"
        async with asyncio.timeout(20), grpc.aio.insecure_channel(listen) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            alive = await stub.Check(health_pb2.HealthCheckRequest(service="liveness"))
            assert alive.status == health_pb2.HealthCheckResponse.SERVING
            while (await stub.Check(health_pb2.HealthCheckRequest())).status != health_pb2.HealthCheckResponse.SERVING:
                pass  # the event comes before the end of the round
        process.terminate()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_the_service_refuses_settings_and_state_that_it_cannot_use(site: Site, tmp_path: Path) -> None:
    site.grow(1)
    config = tmp_path / "monitor.yaml"
    command = [sys.executable, "-m", "lionrock.audit.monitoring", "--config", str(config)]
    for said, status, values in (
        ("logs", 2, {"state_dir": str(tmp_path / "seen")}),
        ("state_dir", 2, {"logs": []}),
        ("state", 1, {"state_dir": str(config), "logs": [{"source": str(site.directory), "keys": [str(site.log.key)]}]}),
    ):
        config.write_text(json.dumps(values), encoding="utf-8")
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (status, "")
        assert said in done.stderr or str(config) in done.stderr
        assert "Traceback" not in done.stderr


METRICS = """
import json, sys
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pathlib import Path
from lionrock.cli.audit_monitor import OneLog, run
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
status = run(None, OneLog(sys.argv[1], [sys.argv[2]], [], None, Path(sys.argv[3]), 30), once=True, everything=False)
points = {}
for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
    for point in metric.data.data_points:
        name = "/".join([metric.name, point.attributes.get("lionrock.alarm", "")])
        points[name] = [point.value, point.attributes["lionrock.log"]]
print(json.dumps([status, points]))
"""


def test_metrics_say_what_the_events_say(site: Site, tmp_path: Path) -> None:
    site.grow(300)
    arguments = [str(site.directory), str(site.log.key), str(tmp_path / "cli")]
    for broken in (False, True):
        if broken:
            site.grow(1)
            (site.directory / "tile/0/001.p/45").unlink()
        done = subprocess.run([sys.executable, "-c", METRICS, *arguments], check=True, capture_output=True, text=True, timeout=60)
        status, points = json.loads(done.stdout.splitlines()[-1])
        assert status == int(broken)
        assert points["lionrock.audit.monitor.size/"] == [300, ORIGIN]
        assert points["lionrock.audit.monitor.looked/"][0] == pytest.approx(time.time(), abs=60)
        found = {
            name.removeprefix("lionrock.audit.monitor.alarm/") for name, (value, _) in points.items() if "alarm/" in name and value
        }
        assert found == ({"corrupt"} if broken else set())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"logs": []}, "logs"),
        ({"logs": [{"source": "x", "keys": ["no key"]}]}, "keys"),
        ({"logs": [{"source": "x", "bucket": {}, "keys": ["{key}"]}]}, "bucket"),
        ({"logs": [{"keys": ["{key}"]}]}, "exactly one"),
        ({"logs": [{"source": "x", "keys": ["{key}", "{other}"]}]}, "several logs"),
        ({"logs": [{"source": "x", "keys": ["{key}"]}] * 2}, "named twice"),
        ({"logs": [{"source": "x", "keys": ["{key}"], "witnesses": {"keys": ["{key}"], "needed": 2}}]}, "more witnesses"),
        ({"logs": [{"source": "x", "keys": ["{key}"], "tls": {"cert_file": "c", "key_file": "k", "ca_file": "a"}}]}, "https"),
        ({"unheard": 1, "logs": [{"source": "x", "keys": ["{key}"]}]}, "unheard"),
    ],
)
def test_settings_of_the_monitor_die_by_name(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    from lionrock.cli.audit_monitor import OneLog
    from lionrock.cli.audit_monitor import run as run_monitor
    from lionrock.cli.errors import CommandError

    text = json.dumps({"state_dir": str(tmp_path / "seen")} | values)
    text = text.replace("{key}", str(signer().verifier_key)).replace("{other}", str(signer("another/log").verifier_key))
    (tmp_path / "monitor.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(CommandError, match=said) as refusal:
        run_monitor(tmp_path / "monitor.yaml", OneLog(None, [], [], None, None, 30), once=True, everything=False)
    assert refusal.value.exit_code == 2
