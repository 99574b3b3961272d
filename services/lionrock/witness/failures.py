"""What a witness refuses, and what it cannot do.

WitnessError
├── MalformedRequest   400  the body is not an add-checkpoint request, or its old size exceeds the checkpoint's
├── UnknownLog         404  the settings name no log with this origin
├── UntrustedLog       403  no trusted key signed, or the signature of one is wrong
├── OtherSize          409  the old size is not that of the last cosigned checkpoint
├── Inconsistent       422  the checkpoint does not extend the last cosigned one
├── StateFailed        500  the state could not be written or read; nothing more is cosigned until restart
└── CannotStart             key and state do not belong together; the message says what to do
"""


class WitnessError(Exception):
    """Root of the tree."""

    status = 500


class MalformedRequest(WitnessError):
    """The body is not an add-checkpoint request, or its old size exceeds the checkpoint's."""

    status = 400


class UnknownLog(WitnessError):
    """The settings name no log with this origin."""

    status = 404


class UntrustedLog(WitnessError):
    """No trusted key signed, or the signature of one is wrong."""

    status = 403


class OtherSize(WitnessError):
    """The old size is not that of the last cosigned checkpoint, which is `size`."""

    status = 409

    def __init__(self, size: int) -> None:
        super().__init__(f"the last cosigned checkpoint has {size} leaves")
        self.size = size


class Inconsistent(WitnessError):
    """The checkpoint does not extend the last cosigned one."""

    status = 422


class StateFailed(WitnessError):
    """The state could not be written or read; nothing more is cosigned until restart."""

    status = 500


class CannotStart(WitnessError):
    """Key and state do not belong together; the message says what to do."""
