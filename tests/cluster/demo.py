"""`make cluster-demo`: the mesh on a real Kubernetes of this machine, from an empty cluster to an empty cluster.

Two nodes advertise chips that CPUs play, KubeRay starts real Ray pods, charts and images are the project's own. Each step prints
what it saw and how long it took; the first that does not come true ends the demonstration with what the cluster says about it.
Needs root, Go, and Debian's packages that tests/cluster/lab names.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tests.cluster.lab  # noqa: F401  # isort: skip  # its import lets the next ones be found
import cluster_tools
from testcluster import components
from testcluster.commands import Command, CommandFailed
from testcluster.objects import Refused
from testcluster.waiting import NeverHappened, wait_for

from lionrock.cli.errors import EXIT_UNAVAILABLE

from . import demo_objects as wanted
from . import guide
from .lab.collector import Collector
from .lab.commands import LabError, run
from .lab.images import PREFIX, REPOSITORY, SERVICES, ImageStore, build_service, reference
from .lab.lab import Lab
from .lab.node import ASCEND, CAMBRICON

VERSION = "0.1.0"
CACHE = REPOSITORY / ".cache" / "cluster"
PROGRAMS = (
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet", "kube-proxy", "coredns",
    "kube-network-policies", "ray-operator", "helm",
)  # fmt: skip
CHARTS = ("lionrock-crds", "lionrock")
COLLECTOR_PORT = 4317
GUIDE_PORT = 7450
MEMORY = Path("/sys/fs/cgroup/memory/lionrock-lab")
LEFTOVER_KINDS = (
    ("v1", ("Pod", "Service", "Secret", "ConfigMap", "ServiceAccount", "PersistentVolumeClaim")),
    ("apps/v1", ("Deployment", "StatefulSet", "ReplicaSet")),
    ("batch/v1", ("Job", "CronJob")),
    ("networking.k8s.io/v1", ("NetworkPolicy",)),
    ("policy/v1", ("PodDisruptionBudget",)),
    ("rbac.authorization.k8s.io/v1", ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")),
    ("admissionregistration.k8s.io/v1", ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")),
    ("ray.io/v1", ("RayService", "RayCluster")),
    ("coordination.k8s.io/v1", ("Lease",)),
)


class Demonstration:
    """The story. Its steps share a lab and what earlier steps made."""

    def __init__(self, directory: Path, archives: Path) -> None:
        """Remember where files go."""
        self.directory = directory
        self.archives = archives
        self.bundle = directory / "bundle"
        self.state = directory / "state"
        self.timings: list[tuple[str, float]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Print a step with what it says and its time. Yields what prints a line of it."""
        print(f"\n▶ {name}", flush=True)
        started = time.monotonic()
        yield lambda text: print("\n".join(f"    {line}" for line in text.splitlines()), flush=True)
        seconds = time.monotonic() - started
        self.timings.append((name, seconds))
        print(f"  ✓ {seconds:.1f} s", flush=True)

    def pack(self) -> None:
        """Put images, charts and the model into a bundle, as for a site without a network, and check it there."""
        with self.step("pack images, charts and the model into a bundle, and verify it") as say:
            charts = self.directory / "charts"
            charts.mkdir(parents=True)
            helm = Command(cluster_tools.find("helm"), None, self.directory / "helm-pack")
            helm("package", REPOSITORY / "charts" / "lionrock-crds", "--destination", charts)
            run([sys.executable, REPOSITORY / "tools" / "package_chart.py", "--directory", charts], timeout_s=60)
            images = [option for service in SERVICES for option in ("--image", str(self.archive(service)))]
            packed = [option for chart in sorted(charts.glob("*.tgz")) for option in ("--chart", str(chart))]
            pulled = [*_CLI, "models", "pull", wanted.MODEL_ENTRY, "--state-dir", str(self.state)]
            run(pulled, timeout_s=600, environment=_environment())
            model = ["--model", wanted.MODEL_ENTRY, "--state-dir", str(self.state)]
            run([*_CLI, "bundle", "create", str(self.bundle), *images, *packed, *model], timeout_s=900, environment=_environment())
            say(run([*_CLI, "bundle", "verify", str(self.bundle)], timeout_s=600, environment=_environment()))

    def archive(self, service: str) -> Path:
        """Where the archive of a service's image lies."""
        return self.archives / f"{service}-{VERSION}.tar"

    def prepare(self, lab: Lab) -> None:
        """Give the cluster what a platform has: images, storage, KubeRay."""
        self.lab = lab
        self.objects = lab.objects
        self.helm = Command(cluster_tools.find("helm"), lab.control_plane.kubeconfig, self.directory / "helm")
        self.kubectl = Command(cluster_tools.find("kubectl"), lab.control_plane.kubeconfig, self.directory / "kubectl")
        with self.step("bring the bundle's images to both nodes") as say:
            for service in SERVICES:
                file = next((self.bundle / "images").glob(f"*_{service}_{VERSION}.tar"))
                lab.load(reference(service, VERSION), file)
            say("\n".join(sorted(lab.containerds[0].images())))
        with self.step("start KubeRay, and make volumes") as say:
            self.kubectl("create", "--filename", cluster_tools.shared_files("ray-operator"), timeout_s=60)
            lab.start(components.start_kuberay(lab.control_plane))
            models = self.directory / "models"
            shutil.copytree(self.bundle / "models", models)
            nodes = [ASCEND.name, CAMBRICON.name]
            self.objects.apply(wanted.namespace())
            self.objects.apply(wanted.storage_class())
            self.objects.apply(wanted.volume("models", models, "10Gi", nodes=nodes, modes=["ReadOnlyMany"], claim="models"))
            self.objects.apply(wanted.model_claim("models", "10Gi"))
            for name in ("store", "keys"):
                path = self.directory / name
                path.mkdir()
                # The second node keeps running pods when the first is cordoned.
                self.objects.apply(wanted.volume(name, path, "1Gi", nodes=[CAMBRICON.name], modes=["ReadWriteOnce"]))
            say(self.kubectl("get", "nodes", "--output=wide"))

    def install(self) -> None:
        """Install both charts; describe the chips."""
        charts = self.bundle / "charts"
        with self.step("helm install lionrock-crds, and two pools of chips") as say:
            self.helm("install", "lionrock-crds", charts / f"lionrock-crds-{VERSION}.tgz", "--namespace", wanted.NAMESPACE)
            image = reference("inference", VERSION)
            pools = (
                wanted.pool("ascend", "Ascend 910B, played by CPUs", ASCEND.resource, "NPU", image),
                wanted.pool("cambricon", "MLU590, played by CPUs", CAMBRICON.resource, "MLU", image),
            )
            for pool in pools:
                wait_for(lambda pool=pool: self._applied(pool), f"pool {pool['metadata']['name']} is accepted")
            say(wait_for(self._pools_shown, "kubectl knows the new resources") or "")
        with self.step("helm install lionrock") as say:
            self.values = self.directory / "values.json"
            api_port = int(self.lab.control_plane.api_url.rsplit(":", 1)[1])
            address = self.lab.network.control_plane
            content = wanted.values(
                collector=f"{address}:{COLLECTOR_PORT}",
                api_address=address,
                api_port=api_port,
                version=VERSION,
                registry=PREFIX,
            )
            self.values.write_text(json.dumps(content, indent=1))
            self._helm_install("install")
            say(self.kubectl("get", "pods", "--namespace", wanted.NAMESPACE))
            say(self.kubectl("get", "chippools"))

    def serve(self) -> None:
        """Apply one model and wait until it answers."""
        with self.step("apply a ModelDeployment: SmolLM2 over two chips") as say:
            self.objects.apply(wanted.model_deployment(["ascend", "cambricon"]))
            self.wait_ready("ascend", timeout_s=420)
            say(self.kubectl("get", "modeldeployments", "--namespace", wanted.NAMESPACE, "--output=wide"))
            say(self.kubectl("get", "rayservices,pods", "--namespace", wanted.NAMESPACE, "--output=wide"))
            say(json.dumps(self.model()["status"]["placement"]))

    def chat(self, question: str) -> dict[str, Any]:
        """Ask through the gateway's Service, as a caller with a certificate; the receipt is verified."""
        certificates = self.directory / "caller"
        secret = self.objects.read("v1", "Secret", f"{wanted.RELEASE}-caller-{wanted.TENANT}-{wanted.USER}-tls", wanted.NAMESPACE)
        assert secret is not None, "the chart issued no certificate for the caller"
        certificates.mkdir(exist_ok=True)
        for name, content in secret["data"].items():
            (certificates / name).write_bytes(base64.b64decode(content))
        service = self.objects.read("v1", "Service", f"{wanted.RELEASE}-gateway", wanted.NAMESPACE)
        assert service is not None
        address = f"{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"
        options = ["--gateway", address, "--certificates", str(certificates), "--state-dir", str(self.state), "--json"]
        command = [*_CLI, "chat", *options, "--model", wanted.MODEL, "--max-tokens", "24", question]

        def answer() -> str | None:
            """What the command prints; None while gateways have not read where the model's engines are now."""
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180, env=_environment())
            if done.returncode == EXIT_UNAVAILABLE:
                unavailable.append(done.stdout.strip())
                return None
            if done.returncode != 0:
                raise LabError(f"lionrock chat ended with {done.returncode}: {done.stdout}{done.stderr}")
            return done.stdout

        unavailable: list[str] = []
        said = wait_for(answer, "the gateway answers", timeout_s=120, interval_s=1, seen=lambda: unavailable[-1:])
        events = [json.loads(line) for line in (said or "").splitlines()]
        finished: dict[str, Any] = next(event for event in events if event["event"] == "finished")
        assert finished["verified"], "the receipt is not good"
        return {**finished, **{key: value for key, value in events[0].items() if key != "event"}}

    def ask(self) -> None:
        """Chat; show the trace and the receipt."""
        with self.step("chat through the gateway") as say:
            answered = self.chat("Name three rivers.")
            say(f"{answered['answer']!r}\nfirst text after {answered['time_to_first_token_ms']} ms, receipt verified")
        with self.step("its receipt, offline") as say:
            say(
                run(
                    [*_CLI, "verify", answered["receipt"], "--state-dir", str(self.state)], timeout_s=30, environment=_environment()
                )
            )
        with self.step("its trace, down to each shard") as say:
            trace = [*_CLI, "trace", answered["trace_id"], "--state-dir", str(self.state)]

            def whole() -> str | None:
                with contextlib.suppress(LabError):
                    shown = run(trace, timeout_s=30, environment=_environment())
                    return shown if "shard" in shown else None
                return None

            say(wait_for(whole, "the shards' spans have arrived", timeout_s=60, interval_s=2) or "")

    def follow_the_guide(self) -> None:
        """Do what docs/kubernetes.md says, where that needs a kubelet."""
        with self.step("the chat and the test of the release, as the guide says them") as say:
            forwarding = self.begin("port-forward")
            try:
                wait_for(lambda: _listens(GUIDE_PORT), "the port is forwarded", seen=forwarding.poll)
                say(self.follow("chat"))
            finally:
                os.killpg(forwarding.pid, signal.SIGTERM)
                forwarding.wait(10)
            say(self.follow("helm-test"))

    def follow(self, name: str) -> str:
        """Run commands of the guide to their end. Returns what they print. Raises LabError."""
        return run(["bash", "-euc", guide.in_demo()[name]], timeout_s=400, environment=self._reader(), directory=self.directory)

    def begin(self, name: str) -> subprocess.Popen[bytes]:
        """Start commands of the guide that go on until they are ended."""
        command = ["bash", "-euc", guide.in_demo()[name]]
        return subprocess.Popen(command, env=self._reader(), cwd=self.directory, start_new_session=True)

    def _reader(self) -> dict[str, str]:
        """Environment of somebody who reads the guide: programs on the path, a cluster, a state directory of their own."""
        programs = self.directory / "bin"
        programs.mkdir(exist_ok=True)
        for name in ("kubectl", "helm"):
            (programs / name).unlink(missing_ok=True)
            (programs / name).symlink_to(cluster_tools.find(name))
        lionrock = programs / "lionrock"
        lionrock.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lionrock.cli "$@"\n')
        lionrock.chmod(0o755)
        own = {"HOME": str(self.directory), "KUBECONFIG": str(self.lab.control_plane.kubeconfig)}
        return {**_environment(), **own, "PATH": f"{programs}:{os.environ['PATH']}", "XDG_STATE_HOME": str(self.directory)}

    def stay(self) -> None:
        """Try to leave the territory: with a pod that does not belong to the mesh, and from a pod that does."""
        with self.step("nothing leaves: a forged pod, and a pod that dials out") as say:
            try:
                self.objects.create(wanted.forged_pod(reference("gateway", VERSION)), dry_run=True)
            except Refused as refused:
                say(f"forged pod refused: {refused}")
            else:
                raise AssertionError("a pod that is bound to no territory was let in")
            address = self.lab.network.control_plane
            with socket.create_server((address, 0)) as listening:
                port = listening.getsockname()[1]
                inside, outside = self.dial(address, COLLECTOR_PORT), self.dial(address, port)
            say(f"from the gateway's pod: the collector {inside}, the port beside it {outside}")
            assert (inside, outside) == ("answers", "times out"), "the network policies are not enforced"

    def dial(self, address: str, port: int) -> str:
        """Open a connection from the gateway's pod; "answers", "times out" or what else became of it."""
        program = (
            "import socket, sys\n"
            "try:\n    socket.create_connection((sys.argv[1], int(sys.argv[2])), 4).close(); print('answers')\n"
            "except TimeoutError: print('times out')\n"
            "except OSError as error: print(error)"
        )
        deployment = f"deployment/{wanted.RELEASE}-gateway"
        command = ("exec", deployment, "--namespace", wanted.NAMESPACE, "--", "python", "-c", program, address, str(port))
        return self.kubectl(*command).strip()

    def upgrade(self) -> None:
        """Upgrade the release with another value; what was there before still answers, and its log goes on."""
        with self.step("helm upgrade: two gateways, then a chat") as say:
            content = json.loads(self.values.read_text())
            content["gateway"]["replicas"] = 2
            self.values.write_text(json.dumps(content, indent=1))
            self._helm_install("upgrade")
            answered = self.chat("Name two mountains.")
            say(f"{answered['answer']!r}, receipt verified with the key of before")
            say(self.helm("history", wanted.RELEASE, "--namespace", wanted.NAMESPACE))

    def fall_back(self) -> None:
        """Cordon the preferred pool's node and take its pods; the model moves to the second pool."""
        with self.step("cordon and drain the first pool's node: the model moves to the second") as say:
            self.kubectl("cordon", ASCEND.name)
            drain = ("drain", ASCEND.name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--disable-eviction")
            self.kubectl(*drain, "--timeout=120s", timeout_s=150)
            for service in ("gateway", "guardrails", "operator"):
                deployment = f"deployment/{wanted.RELEASE}-{service}"
                status = ("rollout", "status", deployment, "--namespace", wanted.NAMESPACE, "--timeout=180s")
                self.kubectl(*status, timeout_s=190)
            self.wait_ready("cambricon", timeout_s=420)
            answered = self.chat("Name one ocean.")
            say(f"{answered['answer']!r}")
            say(self.kubectl("get", "modeldeployments", "--namespace", wanted.NAMESPACE, "--output=wide"))

    def uninstall(self) -> None:
        """Take everything away; nothing of the mesh may be left."""
        with self.step("helm uninstall: nothing is left") as say:
            self.kubectl("delete", "modeldeployments", "--all", "--namespace", wanted.NAMESPACE, "--timeout=120s", timeout_s=150)
            self.helm("uninstall", wanted.RELEASE, "--namespace", wanted.NAMESPACE, "--wait", timeout_s=180)
            # While the operator is there it proposes pools for chips that have none.
            self.kubectl("delete", "chippools", "--all", "--timeout=60s", timeout_s=90)
            self.helm("uninstall", "lionrock-crds", "--namespace", wanted.NAMESPACE, timeout_s=60)
            # The chart keeps its definitions, so that nobody loses models by removing a chart.
            self.kubectl(
                "delete", "crds", "chippools.lionrock.io", "modeldeployments.lionrock.io", "tenants.lionrock.io", timeout_s=60
            )
            wait_for(lambda: not self.leftovers(), "nothing of the mesh is left", timeout_s=90, interval_s=1, seen=self.leftovers)
            say("no object of the mesh is left in the cluster")

    def leftovers(self) -> list[str]:
        """Objects of the mesh that are there: those of its namespace, and those of the cluster that carry its label."""
        own = {"default", "kube-root-ca.crt", "models"}
        found = []
        for version, kinds in LEFTOVER_KINDS:
            for kind in kinds:
                for each in self.objects.list(version, kind):
                    metadata = each["metadata"]
                    ours = metadata.get("labels", {}).get("app.kubernetes.io/part-of") == "lionrock"
                    if ours or (metadata.get("namespace") == wanted.NAMESPACE and metadata["name"] not in own):
                        found.append(f"{kind} {metadata['name']}")
        return found

    def model(self) -> dict[str, Any]:
        """Return the model as the cluster has it."""
        found = self.objects.read("lionrock.io/v1alpha1", "ModelDeployment", wanted.MODEL, wanted.NAMESPACE)
        assert found is not None
        return found

    def wait_ready(self, pool: str, *, timeout_s: float) -> None:
        """Wait until the model is ready on a pool, printing each new reason. Raises NeverHappened with its conditions."""
        said: set[str] = set()

        def ready() -> bool:
            status = self.model().get("status", {})
            conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
            for kind, condition in conditions.items():
                line = f"{kind}={condition['status']} {condition['reason']}: {condition['message']}"
                if line not in said:
                    said.add(line)
                    print(f"    {line[:200]}", flush=True)
            good = conditions.get("Ready", {}).get("status") == "True"
            return good and status.get("placement", {}).get("pool") == pool

        wait_for(ready, f"the model is ready on {pool}", timeout_s=timeout_s, interval_s=0.5, seen=self._troubles)

    def _troubles(self) -> str:
        parts = [json.dumps(self.model().get("status", {}).get("conditions"), indent=1)]
        for command in (("get", "pods", "-o", "wide"), ("get", "events", "--sort-by=.lastTimestamp")):
            with contextlib.suppress(CommandFailed):
                parts.append("\n".join(self.kubectl(*command, "--namespace", wanted.NAMESPACE).splitlines()[-25:]))
        return "\n".join(parts)

    def _applied(self, manifest: wanted.Manifest) -> bool:
        with contextlib.suppress(Exception):
            self.objects.apply(manifest)
            return True
        return False

    def _pools_shown(self) -> str | None:
        """Pools as kubectl prints them; None while what it finds in the cluster is older than they are."""
        with contextlib.suppress(CommandFailed):
            return self.kubectl("get", "chippools")
        return None

    def _helm_install(self, verb: str) -> None:
        chart = self.bundle / "charts" / f"lionrock-{VERSION}.tgz"
        options = ("--namespace", wanted.NAMESPACE, "--values", self.values, "--wait", "--timeout=5m")
        try:
            self.helm(verb, wanted.RELEASE, chart, *options, timeout_s=330)
        except CommandFailed as failed:
            pods = self.kubectl("get", "pods", "--namespace", wanted.NAMESPACE, "--output=wide")
            events = self.kubectl("get", "events", "--namespace", wanted.NAMESPACE, "--sort-by=.lastTimestamp")
            raise NeverHappened(f"{failed}\n{pods}\n{events[-3000:]}") from None

    def report(self, lab: Lab) -> None:
        """Say how long it took and how much memory it used."""
        print("\nTime")
        for name, seconds in self.timings:
            print(f"  {seconds:8.1f} s  {name}")
        print(f"  {sum(seconds for _, seconds in self.timings):8.1f} s  together")
        print("\nMemory")
        if (MEMORY / "memory.max_usage_in_bytes").exists():
            peak, now = (int((MEMORY / name).read_text()) for name in ("memory.max_usage_in_bytes", "memory.usage_in_bytes"))
            print(f"  pods, with their files in cache: {peak / 1e6:.0f} MB at most, {now / 1e6:.0f} MB now")
        for program in lab.programs:
            if program.running:
                print(f"  {program.memory_bytes / 1e6:8.0f} MB  {program.name}")


_CLI = (sys.executable, "-m", "lionrock.cli")


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'services'}:{REPOSITORY / 'operators'}", "COLUMNS": "150"}


def main() -> int:
    """Tell the story. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.demo", description=__doc__)
    parser.add_argument(
        "--stop-after", metavar="STEP", help="of: pack prepare install stay serve ask follow_the_guide upgrade fall_back uninstall"
    )
    parser.add_argument("--hold", action="store_true", help="wait before the lab is taken down, so that one can look around")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    subprocess.run([sys.executable, REPOSITORY / "tools" / "cluster_tools.py", *PROGRAMS], check=True)
    store = ImageStore(CACHE / "images")
    directory = CACHE / "demo"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    story = Demonstration(directory, store.directory / "archives")
    try:
        with story.step("build the images") as say:
            for service in SERVICES:
                built = build_service(store, service, VERSION)
                store.export(built.name, story.archive(service))
                say(f"{built.name}  {built.size_bytes / 1e6:.0f} MB  {built.seconds:.1f} s")
        story.pack()
        lab = Lab(CACHE / "lab", store, (ASCEND, CAMBRICON))
        started = time.monotonic()
        with lab:
            story.timings.append(("control plane and two nodes", time.monotonic() - started))
            print(f"\n▶ control plane and two nodes\n  ✓ {story.timings[-1][1]:.1f} s")
            collector = Collector(f"{lab.network.control_plane}:{COLLECTOR_PORT}", story.state / "traces" / "cluster.jsonl")
            try:
                story.prepare(lab)
                for step in (
                    story.install,
                    story.stay,
                    story.serve,
                    story.ask,
                    story.follow_the_guide,
                    story.upgrade,
                    story.fall_back,
                    story.uninstall,
                ):
                    if arguments.stop_after == "prepare":
                        break
                    step()
                    if step.__name__ == arguments.stop_after:
                        break
            except (NeverHappened, CommandFailed, LabError, AssertionError) as error:
                print(f"\n✗ {error}", file=sys.stderr, flush=True)
                _hold(arguments.hold)
                return 1
            finally:
                collector.stop()
            story.report(lab)
            _hold(arguments.hold)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def _hold(wanted_: bool) -> None:
    if wanted_:
        print(f"\nKUBECONFIG={CACHE / 'lab' / 'control' / 'pki' / 'admin.kubeconfig'}; Ctrl-C ends the lab", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    sys.exit(main())
