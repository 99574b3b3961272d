"""`python -m lionrock.modelstore.objects`: a model's files from an S3-compatible store into a directory, before the engine starts.

Only kinds of files that are served are fetched; a checkpoint's code is not. Knows names and settings; how files come and
are checked is `object_fetch`, S3's protocol and its signatures (AWS Signature Version 4) are obstore's.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from lionrock.modelstore.errors import ModelFileCorrupt, ModelFileMissing, ModelStoreError, PullFailed
from lionrock.modelstore.object_fetch import Fetch, RemoteFile, failed
from lionrock.modelstore.source import MAX_WEIGHTS_FILES

log = logging.getLogger("lionrock.modelstore")

KINDS: Final = frozenset({".gguf", ".jinja", ".json", ".model", ".safetensors", ".tiktoken", ".txt"})
MAX_LISTED: Final = 16 * MAX_WEIGHTS_FILES


class Credentials(BaseSettings):
    """Key of the store, from LIONROCK_OBJECTS_ACCESS_KEY_ID and LIONROCK_OBJECTS_SECRET_ACCESS_KEY."""

    model_config = SettingsConfigDict(env_prefix="LIONROCK_OBJECTS_", frozen=True)

    access_key_id: SecretStr = Field(min_length=1)
    secret_access_key: SecretStr = Field(min_length=1)


def open_store(
    endpoint: str, bucket: str, credentials: Credentials, *, region: str = "us-east-1", ca_file: Path | None = None
) -> S3Store:
    """Return a client of a bucket. Raises PullFailed for authorities that cannot be read."""
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=10),
        "read_timeout": timedelta(seconds=60),
        "timeout": timedelta(hours=12),
    }
    if ca_file is not None:
        try:
            client["root_certificate"] = ca_file.read_bytes()
        except OSError as error:
            raise PullFailed(f"{ca_file} cannot be read: {error.strerror}") from None
    return S3Store(
        bucket,
        endpoint=endpoint,
        region=region,
        access_key_id=credentials.access_key_id.get_secret_value(),
        secret_access_key=credentials.secret_access_key.get_secret_value(),
        virtual_hosted_style_request=False,
        client_options=client,  # type: ignore[arg-type]
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=60)},
    )


def list_files(store: S3Store, prefix: str) -> list[RemoteFile]:
    """List a model's files. Raises PullFailed, ModelFileMissing, and ModelFileCorrupt for names that leave the directory."""
    found: list[RemoteFile] = []
    skipped = 0
    try:
        for batch in obstore.list(store, prefix.strip("/")):
            for each in batch:
                name = each["path"].removeprefix(prefix.strip("/")).lstrip("/") or PurePosixPath(each["path"]).name
                if PurePosixPath(name).suffix.lower() not in KINDS:
                    skipped += 1
                    continue
                parts = PurePosixPath(name).parts
                if not parts or any(part in ("..", ".", "/") or part.startswith(".") or "\0" in part for part in parts):
                    raise ModelFileCorrupt("the store has an object whose name does not stay within the model's directory")
                found.append(RemoteFile(each["path"], name, each["size"], each["e_tag"]))
                if len(found) > MAX_LISTED:
                    raise ModelFileCorrupt(f"more than {MAX_LISTED} files begin with this prefix; name the model's own")
    except (BaseError, OSError, ValueError) as error:
        raise failed("the bucket cannot be listed", error) from None
    if not found:
        raise ModelFileMissing(f"nothing that is served begins with {prefix!r} there ({skipped} other objects)")
    return sorted(found, key=lambda file: file.name)


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(
        prog="python -m lionrock.modelstore.objects", description=Credentials.__doc__, allow_abbrev=False
    )
    parser.add_argument("--endpoint", required=True, help="URL of the store")
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--prefix", required=True, help="what the objects' names begin with")
    parser.add_argument("--directory", required=True, type=Path, help="where the files go")
    parser.add_argument("--region", default="us-east-1", help="what signatures name (default: %(default)s)")
    parser.add_argument("--ca-file", type=Path, help="authorities of the store, PEM, beside those of the image")
    parser.add_argument("--without-weights", action="store_true", help="only what describes the model")
    arguments = parser.parse_args(argv)
    try:
        credentials = Credentials()  # type: ignore[call-arg]  # from the environment
    except ValidationError as error:
        for each in error.errors(include_input=False):
            print(f"lionrock objects: LIONROCK_OBJECTS_{str(each['loc'][0]).upper()}: {each['msg']}", file=sys.stderr)
        return 2
    begin_s = time.monotonic()
    try:
        store = open_store(arguments.endpoint, arguments.bucket, credentials, region=arguments.region, ca_file=arguments.ca_file)
        files = list_files(store, arguments.prefix)
        fetch = Fetch(store, arguments.directory)
        if arguments.without_weights:
            fetch.fetch_heads(files)
        else:
            fetch.fetch(files, source=f"{arguments.endpoint}/{arguments.bucket}/{arguments.prefix}")
    except ModelStoreError as error:
        print(f"lionrock objects: {error}", file=sys.stderr)
        return 1
    took_s = max(time.monotonic() - begin_s, 1e-9)
    log.info("%d files are here; %.0f MB came in %.1f s", len(files), fetch.transferred_bytes / 1e6, took_s)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
