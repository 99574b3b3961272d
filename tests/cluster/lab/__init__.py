"""A real Kubernetes node on this machine, joined to the test cluster's control plane: containerd, kubelet, kube-proxy, DNS, images.

`python -m tests.cluster.lab up` brings it up, `down` leaves nothing of it. It needs root and the Debian packages of
commands.PACKAGES; everything else is built from this repository or comes from tools/.
"""

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
for _directory in (_TESTS, _TESTS.parents[1] / "tools"):
    if str(_directory) not in sys.path:
        sys.path.insert(0, str(_directory))
