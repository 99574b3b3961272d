"""Checks the protos with buf: style (STANDARD), and that nothing a released client relies on has changed (FILE).

buf works on an image, a descriptor set with its imports, that protoc makes with what the build hook uses: so nothing is downloaded.
The comparison is with the newest release tag that this history holds; where there is none, that is said.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hatch_build import protoc_inputs, run_protoc  # noqa: E402 - the build hook lies in the root, outside of any package


def build_image(root: Path, image: Path) -> None:
    """Write the descriptor set of `root`/protos, comments included."""
    with tempfile.TemporaryDirectory() as workdir:
        protos = sorted(str(path) for path in (root / "protos").rglob("*.proto"))
        inputs = protoc_inputs(root, Path(workdir))
        run_protoc([*inputs, "--include_imports", "--include_source_info", f"--descriptor_set_out={image}", *protos])


def buf(*arguments: str) -> int:
    """Run buf from beside the interpreter or the PATH. Returns its exit status."""
    program = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf") or "buf"
    return subprocess.run([program, *arguments, "--config", str(ROOT / "protos" / "buf.yaml")], check=False).returncode


def last_release() -> str | None:
    """Name of the newest tag `v*` that is an ancestor; None without one, or without git."""
    command = ["git", "-C", str(ROOT), "describe", "--tags", "--abbrev=0", "--match", "v*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def unpack_protos(tag: str, directory: Path) -> None:
    """Put the protos of a release under `directory`."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", tag, "protos"], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(directory, filter="data")


def main() -> int:
    """Lint, then compare. Returns the exit status."""
    with tempfile.TemporaryDirectory() as workdir:
        image = Path(workdir) / "now.binpb"
        build_image(ROOT, image)
        status = buf("lint", str(image))
        tag = last_release()
        if tag is None:
            print("buf breaking: skipped, this history holds no release tag to compare with")
            return status
        released = Path(workdir) / "released"
        unpack_protos(tag, released)
        against = Path(workdir) / "then.binpb"
        build_image(released, against)
        return status or buf("breaking", str(image), "--against", str(against))


if __name__ == "__main__":
    sys.exit(main())
