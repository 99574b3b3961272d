"""Build hook: generates the protobuf, gRPC and type stubs of `protos/` into `services/lionrock/<service>/v1/`.

Runs at every install and wheel build; `python hatch_build.py` runs it alone after a change of a proto. protovalidate ships its
proto only as a descriptor, which is handed to protoc as a descriptor set; the module that our stubs import
(`buf.validate.validate_pb2`) is generated from it too.
"""

from __future__ import annotations

import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def protoc_inputs(root: Path, workdir: Path) -> list[str]:
    """Arguments that tell protoc where our protos and those that they import are."""
    from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
    from protovalidate._gen.buf.validate import validate_pb

    descriptors = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(descriptors.file.add())
    descriptors.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    descriptor_file = workdir / "imports.binpb"
    descriptor_file.write_bytes(descriptors.SerializeToString())
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    return [f"--proto_path={root / 'protos'}", f"--proto_path={well_known}", f"--descriptor_set_in={descriptor_file}"]


def plugin(name: str) -> str:
    """Argument to protoc for a plugin: from the PATH of an isolated build, else from beside the interpreter."""
    return f"--plugin={name}={shutil.which(name) or Path(sys.executable).parent / name}"


def run_protoc(arguments: list[str]) -> None:
    """Run protoc in this process. Raises RuntimeError with protoc's own message on standard error above it."""
    from grpc_tools import protoc

    if protoc.main(["protoc", *arguments]) != 0:
        raise RuntimeError("protoc refused the protos; its message stands above")


def generate(root: Path) -> list[Path]:
    """Generate all stubs and return their directories. Stale stubs are removed first."""
    protos = sorted((root / "protos").rglob("*.proto"))
    out = root / "services"
    directories = [out / "buf", *sorted({out / proto.parent.relative_to(root / "protos") for proto in protos})]
    out.mkdir(exist_ok=True)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
    with tempfile.TemporaryDirectory() as workdir:
        run_protoc(
            [
                *protoc_inputs(root, Path(workdir)),
                plugin("protoc-gen-mypy"),
                plugin("protoc-gen-mypy_grpc"),
                f"--python_out={out}",
                f"--mypy_out=quiet:{out}",
                f"--grpc_python_out={out}",
                f"--mypy_grpc_out=quiet:{out}",
                *(str(proto) for proto in protos),
                "buf/validate/validate.proto",
            ]
        )
    return directories


class StubBuildHook(BuildHookInterface[Any]):
    """hatchling's entry point."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling calls it by name
        """Generate the stubs before files are collected."""
        directories = generate(Path(self.root))
        build_data["artifacts"] += [f"/{directory.relative_to(self.root)}/**" for directory in directories]


if __name__ == "__main__":
    for generated in generate(ROOT):
        print(generated.relative_to(ROOT))
    sys.exit(0)
