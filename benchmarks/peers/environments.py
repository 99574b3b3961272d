"""The peers' own environments, made once and kept in the cache; the versions here are what is measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.process import ROOT

CACHE = ROOT / ".cache" / "bench"
VLLM = ROOT / ".venv-vllm"
LLAMA_CPP = "llama-cpp-python==0.3.36"
_COMPILING = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF", "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
_COMPILED = ("--no-binary", "llama-cpp-python", "--config-settings", "build.targets=llama;llama-common")
_INSTALL_TIMEOUT_S = 3000


class NotInstalled(Exception):
    """A peer could not be installed on this machine; the message says why."""


def vllm() -> Path:
    """Return the interpreter of the environment that has vLLM, which `tools/install_vllm.py` makes."""
    if not any(VLLM.glob("lib/*/site-packages/vllm/__init__.py")):
        print(f"installing vLLM into {VLLM.name}", flush=True)
        _must([sys.executable, str(ROOT / "tools" / "install_vllm.py"), str(VLLM)])
    return VLLM / "bin" / "python"


def openvino() -> Path:
    """Return the interpreter of the environment that has OpenVINO GenAI."""
    return _own("openvino", ("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0", "numpy==2.4.6"))


def llama_cpp() -> Path:
    """Return the interpreter of the environment that has llama.cpp, compiled once for this very processor.

    The wheels in the package registry are compiled for processors with AVX2, which would do llama.cpp an injustice on newer ones.
    """
    if shutil.which("cmake") is None or (shutil.which("c++") is None and shutil.which("g++") is None):
        raise NotInstalled("compiling llama.cpp needs CMake and a C++ compiler")
    return _own("llama-cpp", (LLAMA_CPP,), compile_them=True)


def _own(name: str, packages: Sequence[str], *, compile_them: bool = False) -> Path:
    """Return the interpreter of an environment of its own with exactly these packages."""
    directory = CACHE / f"{name}-venv"
    python = directory / "bin" / "python"
    stamp, pins = directory / ".installed", "\n".join(packages)
    if not stamp.exists() or stamp.read_text() != pins:
        print(f"installing {' '.join(packages)} into {directory.relative_to(ROOT)}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        venv.create(directory, with_pip=True, symlinks=True)
        install = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
        begun = time.monotonic()
        if compile_them:
            print("compiling takes some minutes, once", flush=True)
            _must([*install, *_COMPILED, *packages], _COMPILING)
        else:
            _must([*install, "--only-binary", ":all:", *packages])
        print(f"installed in {time.monotonic() - begun:.0f} s", flush=True)
        stamp.write_text(pins)
    return python


def _must(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command that installs something. Raises NotInstalled."""
    log = CACHE / "logs" / "installation.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        told = {**os.environ, **(environment or {})}
        with log.open("ab") as output:
            done = subprocess.run(command, stdout=output, stderr=output, timeout=_INSTALL_TIMEOUT_S, check=False, env=told)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{type(error).__name__}: {error}") from None
    if done.returncode != 0:
        raise NotInstalled(f"exit status {done.returncode}; see {log}")
