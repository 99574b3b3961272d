"""A real S3-compatible server for tests: moto's, in an environment of its own, over TLS, with keys and signatures checked.

It is installed once into the cache that tests/models.py uses. What cannot be installed raises `Unavailable`.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from lionrock.chassis.settings import TlsSettings
from models import Unavailable, model_cache

MOTO = "moto[server,s3,iam]==5.2.5"
BUCKET = "models"
INSTALL_TIMEOUT_S = 900

# Run by moto's own Python, which has boto3: makes a bucket, puts a directory into it, and a user who may read it.
PREPARE = """
import json, sys
from pathlib import Path
import boto3
endpoint, ca, bucket, directory = sys.argv[1:]
def client(kind):
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    return boto3.client(kind, endpoint_url=endpoint, verify=ca, region_name="us-east-1", **keys)
s3, iam = client("s3"), client("iam")
s3.create_bucket(Bucket=bucket)
for path in sorted(Path(directory).rglob("*")):
    if path.is_file():
        s3.put_object(Bucket=bucket, Key=str(path.relative_to(directory)), Body=path.read_bytes())
iam.create_user(UserName="engine")
actions = ["s3:GetObject", "s3:ListBucket"]
resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/open/*", f"arn:aws:s3:::{bucket}/entry/*"]
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": resources}]}
iam.put_user_policy(UserName="engine", PolicyName="read", PolicyDocument=json.dumps(policy))
key = iam.create_access_key(UserName="engine")["AccessKey"]
import urllib.request, ssl
context = ssl.create_default_context(cafile=ca)
headers = {"Content-Type": "text/plain"}
request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=b"0", headers=headers)
urllib.request.urlopen(request, context=context).read()
print(json.dumps([key["AccessKeyId"], key["SecretAccessKey"]]))
"""


def _environment() -> Path:
    """Directory of the virtual environment with moto."""
    cache = model_cache().with_name("moto") if "LIONROCK_TEST_CACHE" not in os.environ else model_cache() / "moto"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "bin" / "moto_server").exists():
            for command in ([sys.executable, "-m", "venv", str(cache)], [str(cache / "bin" / "pip"), "install", "--quiet", MOTO]):
                done = subprocess.run(command, capture_output=True, timeout=INSTALL_TIMEOUT_S, check=False)
                if done.returncode != 0:
                    raise Unavailable(f"{MOTO} could not be installed (exit status {done.returncode})")
    return cache


class S3Server:
    """A running server that holds what is in a directory. `access_key_id`, `secret_access_key`: of a user who may read it.

    `prepare`: another program than PREPARE, that gives other rights; it gets the same arguments and prints the same.
    """

    def __init__(self, directory: Path, tls: TlsSettings, logs: Path, *, prepare: str = PREPARE) -> None:
        environment = _environment()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = int(listening.getsockname()[1])
        self.endpoint = f"https://localhost:{port}"
        command = [str(environment / "bin" / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
        command += ["-s", "-c", str(tls.cert_file), "-k", str(tls.key_file)]
        with logs.open("wb") as log:
            # Until the set-up is done, nobody is asked for a key.
            settings = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "1000000"}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=settings)
        try:
            self._wait(port)
            arguments = [self.endpoint, str(tls.ca_file), BUCKET, str(directory)]
            prepared = subprocess.run(
                [str(environment / "bin" / "python"), "-c", prepare, *arguments], capture_output=True, timeout=120, check=False
            )
            assert prepared.returncode == 0, prepared.stderr.decode()
            self.access_key_id, self.secret_access_key = json.loads(prepared.stdout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _wait(self, port: int) -> None:
        end_s = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end_s:
                    raise AssertionError("the server does not start") from None
                time.sleep(0.05)
            else:
                return
