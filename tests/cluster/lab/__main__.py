"""`python -m tests.cluster.lab up|down|status|images`: the lab from a shell."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster_tools import ToolMissing
from testcluster.processes import ProgramFailed
from testcluster.waiting import NeverHappened, wait_for

from .commands import LabError, run
from .images import REPOSITORY, SERVICES, ImageStore, build_service, reference
from .lab import Lab, LabInfo, status, sweep, wait_until_gone
from .node import ASCEND, CAMBRICON
from .runtime import NAMESPACE

DIRECTORY = REPOSITORY / ".cache" / "cluster" / "lab"
IMAGES = REPOSITORY / ".cache" / "cluster" / "images"
VERSION = "0.1.0"
_UP_S = 300


def up() -> None:
    """Start a keeper in the background and wait until the lab is ready."""
    if status(DIRECTORY)["running"]:
        raise LabError("the lab is up already")
    log_file = DIRECTORY.with_name("lab-keeper.log")
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.lab", "keep"],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ready() -> bool:
        if keeper.poll() is not None:
            raise LabError(f"the lab did not come up:\n{log_file.read_text()}")
        return LabInfo.read(DIRECTORY) is not None

    wait_for(ready, "the lab is up", timeout_s=_UP_S, interval_s=0.2)
    print(json.dumps(status(DIRECTORY), indent=1))


def keep() -> None:
    """Keep the lab up until told to end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Lab(DIRECTORY, ImageStore(IMAGES), (ASCEND, CAMBRICON)):
        try:
            signal.pause()
        except KeyboardInterrupt:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def down() -> None:
    """Tell the keeper to end, wait, and remove what a killed one has left."""
    info = LabInfo.read(DIRECTORY)
    if info is not None and status(DIRECTORY)["running"]:
        os.kill(info.pid, signal.SIGTERM)
        wait_until_gone(DIRECTORY)
    sweep(DIRECTORY)


def images(services: list[str]) -> None:
    """Build images, export them, and bring them to a running lab."""
    if unknown := sorted(set(services) - set(SERVICES)):
        raise LabError(f"there is no service {', '.join(unknown)}")
    store = ImageStore(IMAGES)
    for service in services or SERVICES:
        built = build_service(store, service, VERSION)
        archive = store.export(built.name, archive_of(service))
        print(f"{built.name}  {built.size_bytes / 1e6:.0f} MB  {built.seconds:.1f} s", flush=True)
        if status(DIRECTORY)["running"]:
            started = time.monotonic()
            for socket in sorted(DIRECTORY.glob("nodes/*/containerd/containerd.sock")):
                run(["ctr", "--address", socket, "--namespace", NAMESPACE, "images", "import", archive], timeout_s=900)
            print(f"  imported in {time.monotonic() - started:.1f} s", flush=True)


def archive_of(service: str) -> Path:
    """Where the archive of a service's image lies."""
    return IMAGES / "archives" / f"{reference(service, VERSION).rsplit('/', 1)[1].replace(':', '-')}.tar"


def main() -> int:
    """Do one of them. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="bring the lab up")
    commands.add_parser("down", help="take it down, and remove everything that it left")
    commands.add_parser("status", help="say what runs")
    commands.add_parser("keep", help="keep a lab up in the foreground; what up starts")
    build = commands.add_parser("images", help="build the project's images, and bring them to the lab")
    build.add_argument("service", nargs="*", metavar="SERVICE", help=f"of {', '.join(SERVICES)}; default: all")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "up":
                up()
            case "down":
                down()
            case "keep":
                keep()
            case "images":
                images(arguments.service)
            case _:
                print(json.dumps(status(DIRECTORY), indent=1))
    except (LabError, ProgramFailed, ToolMissing, NeverHappened) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
