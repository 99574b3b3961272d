"""Compiles the kernels ahead, for images whose machines have no compiler: `python -m lionrock.inference.model.native --help`."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from lionrock.inference.model.native.build import LEVELS, KernelsUnavailable, default_directory, find_or_compile


def main() -> int:
    """Compile for the named levels and print where the libraries are. Returns the exit status."""
    here = [level for level in LEVELS if level.machine == platform.machine()]
    parser = argparse.ArgumentParser(description="Compile the CPU kernels ahead of their first use.")
    parser.add_argument("--directory", type=Path, help="where they go, the service's `native_directory`; default: the user's cache")
    parser.add_argument(
        "--level",
        action="append",
        choices=[level.name for level in here],
        help="instructions to use; default: all of this machine's kind",
    )
    arguments = parser.parse_args()
    try:
        for level in here:
            if arguments.level is None or level.name in arguments.level:
                print(find_or_compile(arguments.directory or default_directory(), level))
    except KernelsUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
