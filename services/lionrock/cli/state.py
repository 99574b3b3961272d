"""The state directory of a mesh on one machine: where everything lies, who holds it, and what runs.

    lock            held by `lionrock up`; contains its pid
    mesh.json       endpoints and pids, written when the mesh is ready, removed when it ends
    ca/  certs/     development CA, one certificate a service, and certs/client/ for the user's own calls
    config/         one YAML file a service, written by `up`
    logs/ traces/   JSON lines; logs are bounded, see logs.py
    tenants/        Tenant files, followed by the services that need them
    audit/ models/ ray/ receipts/ keys/

Knows paths and the formats of `lock` and `mesh.json`. Does not know how services are configured or started.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lionrock.cli.errors import CommandError, MeshLocked, MeshNotRunning

_PRIVATE = 0o700


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/lionrock` (XDG Base Directory Specification 0.8), an empty or relative value counting as unset."""
    base = Path(environ.get("XDG_STATE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "state") / "lionrock"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one service of the mesh listens, and as which process."""

    target: str
    pid: int


@dataclass(frozen=True, slots=True)
class MeshInfo:
    """Content of mesh.json."""

    pid: int
    started_at: str
    trust_domain: str
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    http: str | None = None
    """Where the gateway's HTTP API listens."""

    def to_json(self) -> str:
        """As stored: one JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> MeshInfo:
        """Read it back. Raises ValueError, KeyError or TypeError when the text is not what `to_json` writes."""
        fields = json.loads(text)
        fields["endpoints"] = {name: Endpoint(**endpoint) for name, endpoint in fields["endpoints"].items()}
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class StateDir:
    """Paths below one state directory. Making a StateDir touches no disk."""

    root: Path

    @classmethod
    def at(cls, given: Path | None) -> StateDir:
        """Open the directory that the user gave, or the default one."""
        return cls((given or default_state_dir(os.environ)).expanduser().absolute())

    @property
    def lock_file(self) -> Path:
        """Locked by the running `up`."""
        return self.root / "lock"

    @property
    def mesh_file(self) -> Path:
        """What runs where."""
        return self.root / "mesh.json"

    @property
    def ca(self) -> Path:
        """The development CA with its key."""
        return self.root / "ca"

    @property
    def client_certs(self) -> Path:
        """The user's own certificate for calls to the gateway."""
        return self.certs("client")

    def certs(self, name: str) -> Path:
        """tls.crt, tls.key and ca.crt of one service."""
        return self.root / "certs" / name

    def config(self, service: str) -> Path:
        """YAML settings of one service."""
        return self.root / "config" / f"{service}.yaml"

    def log(self, service: str) -> Path:
        """Bounded log of one service."""
        return self.root / "logs" / f"{service}.jsonl"

    @property
    def traces(self) -> Path:
        """Span files, OTLP/JSON lines."""
        return self.root / "traces"

    @property
    def audit(self) -> Path:
        """Store of the audit service."""
        return self.root / "audit"

    @property
    def models(self) -> Path:
        """The model store."""
        return self.root / "models"

    @property
    def ray_token(self) -> Path:
        """Authentication token of the local Ray cluster, a new one a run."""
        return self.root / "ray" / "token"

    @property
    def api_key_secret(self) -> Path:
        """Secret that the gateway recognises API keys with; it stays for as long as the keys do."""
        return self.root / "gateway" / "api-keys.secret"

    @property
    def consent_secret(self) -> Path:
        """Secret under which the gateway hashes data subjects; it stays for as long as their consents do."""
        return self.root / "gateway" / "consents.secret"

    @property
    def tenants(self) -> Path:
        """Tenant files."""
        return self.root / "tenants"

    @property
    def receipts(self) -> Path:
        """Receipts of the user's own chats, with the salts that open them."""
        return self.root / "receipts"

    @property
    def keys(self) -> Path:
        """Verifier keys of audit logs, one file an origin, kept from first contact."""
        return self.root / "keys"

    def create(self) -> None:
        """Make the directories, readable by the user alone. Raises CommandError."""
        try:
            self.root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            for name in ("ca", "certs", "config", "logs", "traces", "audit", "models", "ray", "receipts", "keys", "tenants"):
                (self.root / name).mkdir(mode=_PRIVATE, exist_ok=True)
        except OSError as error:
            raise CommandError(
                f"cannot create the state directory {self.root}: {error.strerror}",
                fix="give a directory that you can write with --state-dir",
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process and say so in `lock`. Raises MeshLocked with the holder's pid.

        The kernel drops the lock with the process, so a crash leaves nothing to clean up.
        """
        with self.lock_file.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                pid = lock.read(32).strip() or "unknown"
                raise MeshLocked(
                    f"a mesh already runs on {self.root} (pid {pid})",
                    fix=f"stop it (kill {pid}), or give another directory with --state-dir",
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def is_locked(self) -> bool:
        """Whether a running process holds the directory."""
        try:
            with self.lock_file.open("a+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def write_mesh(self, info: MeshInfo) -> None:
        """Replace mesh.json in one step: a reader sees the old mesh or the new one."""
        write_atomically(self.mesh_file, info.to_json())

    def read_mesh(self) -> MeshInfo:
        """Say what runs. Raises MeshNotRunning when nothing does, CommandError when mesh.json is not ours."""
        fix = f"start one: lionrock up --state-dir {self.root}"
        if not self.is_locked():
            raise MeshNotRunning(f"no mesh runs on {self.root}", fix=fix)
        try:
            return MeshInfo.from_json(self.mesh_file.read_text())
        except FileNotFoundError:
            raise MeshNotRunning(f"the mesh on {self.root} is still starting", fix="wait until `lionrock up` says ready") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(
                f"{self.mesh_file} is not readable as a mesh description", fix="stop the mesh and start it again"
            ) from error


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write beside `path`, sync, rename over it."""
    path.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
