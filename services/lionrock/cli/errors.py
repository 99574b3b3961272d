"""What a command says when it cannot do its work: one sentence, and the fix.

CommandError
 ├─ MeshLocked          another `lionrock up` holds the state directory
 ├─ MeshNotRunning      a command needs a mesh and finds none
 ├─ ServiceNotReady     a service of the mesh did not start
 └─ MissingExtra        a package that the command needs is not installed

`report` prints them; nothing else of this package prints an error.
"""

from __future__ import annotations

import sys
import traceback

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_UNAVAILABLE = 4
EXIT_PENDING = 5
EXIT_CANCELLED = 130


class CommandError(Exception):
    """A command failed. `fix` says what the user can do about it."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, fix: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.fix = fix
        if exit_code is not None:
            self.exit_code = exit_code


class MeshLocked(CommandError):
    """Another `lionrock up` holds the state directory."""


class MeshNotRunning(CommandError):
    """No mesh runs on the state directory."""

    exit_code = EXIT_UNAVAILABLE


class ServiceNotReady(CommandError):
    """A service of the mesh did not become ready in time, or ended before it was."""


class MissingExtra(CommandError):
    """A package that the command needs is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"this needs the Python package {module}, which is not installed", fix=f"pip install 'lionrock[{extra}]'")


def report(error: BaseException, *, debug: bool = False) -> int:
    """Print an error with its fix; return the exit status. An unexpected one shows where it arose only for `debug`."""
    match error:
        case KeyboardInterrupt():
            return EXIT_CANCELLED
        case BrokenPipeError():  # `lionrock … | head`
            sys.stderr.close()
            return EXIT_FAILED
        case CommandError():
            known = error
        case ModuleNotFoundError():
            known = MissingExtra(error.name or "?", "all")
        case _:
            if debug:
                traceback.print_exception(error)
            fix = "run it again as `lionrock --debug …` and report what it prints"
            known = CommandError(f"unexpected {type(error).__name__}", fix=fix)
    print(f"lionrock: {known}", file=sys.stderr)
    if known.fix is not None:
        print(f"  fix: {known.fix}", file=sys.stderr)
    return known.exit_code
