"""A vLLM plugin that ends vLLM's engine process with the process that started it.

vLLM's ranks watch the engine process, but the engine process does not watch its parent: a replica that is killed would leave it
behind, holding the chips. Loaded by vLLM itself through the entry point `vllm.general_plugins`, in each of its processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Begin to watch the process that spawned this one; without one, do nothing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="lionrock-parent", daemon=True).start()
