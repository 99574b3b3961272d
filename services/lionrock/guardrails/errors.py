"""What the guardrails service says when it cannot judge. A caller that gets any of these must not release the text.

MeshError
 ├─ ProfileNotFound     NOT_FOUND            PROFILE_NOT_FOUND
 ├─ TextTooLong         INVALID_ARGUMENT     TEXT_TOO_LONG
 └─ StreamNotOpened     FAILED_PRECONDITION  STREAM_NOT_OPENED
"""

import grpc

from lionrock.chassis.errors import MeshError


class ProfileNotFound(MeshError):
    """No policy has the name of the requested profile."""

    status, reason = grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND"


class TextTooLong(MeshError):
    """The texts of a request have more than 1,000,000 code points together."""

    status, reason = grpc.StatusCode.INVALID_ARGUMENT, "TEXT_TOO_LONG"


class StreamNotOpened(MeshError):
    """The first message of a stream must open it, and no other may."""

    status, reason = grpc.StatusCode.FAILED_PRECONDITION, "STREAM_NOT_OPENED"
