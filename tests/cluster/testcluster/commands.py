"""kubectl, Helm and kubeconform as a person runs them, each with its output."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class CommandFailed(Exception):
    """A command said no. The message is the command with what it wrote."""


class Command:
    """One program with a kubeconfig. Keeps caches and configuration in `home`, never in the user's own directories."""

    def __init__(self, path: Path, kubeconfig: Path | None, home: Path) -> None:
        """Say which."""
        self.path = path
        home.mkdir(parents=True, exist_ok=True)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))},
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_DATA_HOME": str(home / "data"),
            "KUBECONFIG": str(kubeconfig) if kubeconfig is not None else os.devnull,
        }

    def __call__(self, *arguments: str | Path, stdin: str | None = None, timeout_s: float = 60) -> str:
        """Run it and return its standard output. Raises CommandFailed with what it wrote to both."""
        command = [str(self.path), *(str(argument) for argument in arguments)]
        done = subprocess.run(command, input=stdin or "", env=self._environment, text=True, capture_output=True, timeout=timeout_s)
        if done.returncode != 0:
            raise CommandFailed(f"{' '.join(command[1:])} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout
