"""Loads files that lie, in a process with little memory: `python load_hostile.py DIRECTORY`, one checkpoint a subdirectory or file.

Prints the name of each with what came out, as JSON lines. Memory is limited by RLIMIT_DATA to 192 MiB more than the process has.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from load_within import private_bytes
from small_models import plan_for

from lionrock.inference.model.errors import ModelError
from lionrock.inference.model.weights import open_weights
from lionrock.inference.model.worker import ShardWorker

_LIMIT_BYTES = 192 << 20


def outcome(path: Path) -> str:
    """Load; "loaded", or the name of what was raised."""
    try:
        plan = plan_for(open_weights(path).config, dtype="bfloat16")
        ShardWorker(path, plan, 0).load()
    except ModelError as error:
        return type(error).__name__
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        return f"unnamed: {type(error).__name__}: {error}"
    return "loaded"


if __name__ == "__main__":
    torch.set_num_threads(1)
    limit = private_bytes() + _LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for path in sorted(Path(sys.argv[1]).iterdir()):
        print(json.dumps([path.name, outcome(path)]), flush=True)
