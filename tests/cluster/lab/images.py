"""The project's own images, built from services/Dockerfile on a base that debootstrap makes: no daemon, no image registry.

    base         Debian's minimal system with Python: what every service runs on
    build-base   the same with venv and a C++ compiler: what images are built on
    <service>    services/Dockerfile, one each

Needs root, buildah and debootstrap. Everything lies in one directory, layers are kept from one build to the next, and what pip is
told on this machine (its configuration, its certificates) is handed to the build as secrets.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.lab.commands import LabError, require, run

REPOSITORY = Path(__file__).resolve().parents[3]
SERVICES = ("gateway", "tokenization", "guardrails", "audit", "operator", "cli", "inference")
RELEASE = "bookworm"
PREFIX = "lionrock.internal"
"""What the images' names begin with: no registry has them, so none is ever asked."""
_BASE_PACKAGES = "python3,ca-certificates,wget"  # wget: KubeRay's own probes call it
_BUILD_S = 3600.0


@dataclass(frozen=True, slots=True)
class Built:
    """One image. seconds: what building took; layers that were there take none."""

    name: str
    image_id: str
    size_bytes: int
    seconds: float


class ImageStore:
    """buildah's storage in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        """Use `directory`. Raises LabError where a program is missing or this is not root."""
        require("buildah", "debootstrap")
        if os.geteuid() != 0:
            raise LabError("building images needs root")
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def buildah(self, *arguments: str | Path, timeout_s: float = 300, stdin: str | None = None) -> str:
        """Run buildah on this storage. Raises LabError."""
        storage = ("--root", self.directory / "storage", "--runroot", self.directory / "run", "--storage-driver", "overlay")
        return run(["buildah", *storage, *arguments], timeout_s=timeout_s, stdin=stdin)

    def has(self, name: str) -> bool:
        """Whether an image of that name is there."""
        return bool(self.buildah("images", "--quiet", "--filter", f"reference={name}").strip())

    def inspect(self, name: str, seconds: float) -> Built:
        """Describe an image. size_bytes: of its layers, unpacked."""
        line = self.buildah("images", "--format", "{{.ID}} {{.Size}}", "--no-trunc", name).split("\n")[0]
        image_id, size = line.split(" ", 1)
        return Built(name, image_id, _bytes(size), seconds)

    def export(self, name: str, archive: Path) -> Path:
        """Write an image as a docker-archive, which containerd imports under its name."""
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.unlink(missing_ok=True)
        self.buildah("push", "--quiet", name, f"docker-archive:{archive}:{name}", timeout_s=900)
        return archive


def reference(service: str, version: str) -> str:
    """Name of a service's image."""
    return f"{PREFIX}/lionrock/{service}:{version}"


def build_bases(store: ImageStore) -> tuple[str, str]:
    """Make base and build-base unless they are there; return their names."""
    base, build_base = f"{PREFIX}/base:{RELEASE}", f"{PREFIX}/build-base:{RELEASE}"
    if not store.has(base):
        with tempfile.TemporaryDirectory(dir=store.directory, prefix="debootstrap-") as scratch:
            root = Path(scratch) / "root"
            run(["debootstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", RELEASE, root], timeout_s=900)
            for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
                for path in (root / leftover).glob("*"):
                    if path.is_file():
                        path.unlink()
            container = store.buildah("from", "scratch").strip()
            try:
                store.buildah("add", "--quiet", container, root, "/")
                store.buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
                store.buildah("commit", "--quiet", container, base)
            finally:
                store.buildah("rm", container)
    if not store.has(build_base):
        with tempfile.TemporaryDirectory() as context:
            file = Path(context) / "Dockerfile"
            install = (
                "apt-get update && apt-get install --yes --no-install-recommends g++ python3-venv && rm -rf /var/lib/apt/lists/*"
            )
            file.write_text(f"FROM {base}\nRUN {install}\n")
            store.buildah("build", *_ISOLATION, "--file", file, "--tag", build_base, context, timeout_s=900)
    return base, build_base


def build_service(store: ImageStore, service: str, version: str, *, extra_arguments: Sequence[str] = ()) -> Built:
    """Build one service's image from the working tree. Raises LabError."""
    base, build_base = build_bases(store)
    started = time.monotonic()
    name = reference(service, version)
    arguments = {"SERVICE": service, "BASE": base, "BUILD_BASE": build_base, "VERSION": version, "REVISION": _revision()}
    with _pip_secrets() as secrets:
        store.buildah(
            "build", *_ISOLATION, "--layers", "--pull=never",
            *(part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")), *secrets, *extra_arguments,
            "--file", REPOSITORY / "services" / "Dockerfile", "--ignorefile", REPOSITORY / ".dockerignore",
            "--tag", name, REPOSITORY,
            timeout_s=_BUILD_S,
        )  # fmt: skip
    return store.inspect(name, time.monotonic() - started)


_ISOLATION = ("--isolation", "chroot", "--network", "host")


@contextmanager
def _pip_secrets() -> Iterator[list[str]]:
    """Options that hand this machine's pip configuration and certificates to a build."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    settings = dict(re.findall(r"^(?:global|:env:)\.(?:global\.)?([a-z-]+)='(.*)'$", listed, re.MULTILINE))
    certificates = settings.pop("cert", None)
    kept = {
        key: value for key, value in settings.items() if key in ("index-url", "extra-index-url", "timeout", "trusted-host", "proxy")
    }
    with tempfile.TemporaryDirectory() as directory:
        options = []
        if certificates is not None:
            kept["cert"] = "/run/secrets/ca"
            options += ["--secret", f"id=ca,src={certificates}"]
        file = Path(directory) / "pip.conf"
        file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in sorted(kept.items())))
        file.chmod(0o600)
        yield [*options, "--secret", f"id=pip,src={file}"]


def _revision() -> str:
    return run(["git", "-C", REPOSITORY, "rev-parse", "HEAD"], timeout_s=30).strip()


def _bytes(text: str) -> int:
    """Read buildah's "278 MB" (decimal units)."""
    number, unit = text.split()
    return int(float(number) * {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}[unit.upper()])
