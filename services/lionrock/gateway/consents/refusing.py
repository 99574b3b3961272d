"""What a caller hears when the choices of data subjects stop a request, or nobody can tell.

Knows the gate's exceptions and the errors at our border. A subject is named by its place in the request, never by its pseudonym.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from lionrock.gateway import errors
from lionrock.gateway.consents.gate import ConsentMissingError, OptedOutError, SubjectsMissingError
from lionrock.gateway.state.store import StateConflict, StateUnavailable

_RETRY_AFTER_S: Final = 1.0


@contextmanager
def state_needed() -> Iterator[None]:
    """Turn a state that cannot be reached, or not be changed just now, into SharedStateUnavailable."""
    try:
        yield
    except (StateUnavailable, StateConflict) as unavailable:
        message = "the choices of data subjects cannot be looked up or changed"
        raise errors.SharedStateUnavailable(message, retry_after_s=_RETRY_AFTER_S) from unavailable


@contextmanager
def consent_refusals() -> Iterator[None]:
    """Turn what the gate raises into ConsentSubjectMissing, OptedOut, ConsentMissing and SharedStateUnavailable."""
    try:
        with state_needed():
            yield
    except SubjectsMissingError as missing:
        where = [("subject_ids", "required: this purpose needs the consent of each data subject")]
        raise errors.ConsentSubjectMissing("whom does the request concern?", field_violations=where) from missing
    except OptedOutError as out:
        where = _places(out.places, "opted out of answers by AI")
        raise errors.OptedOut("a data subject opted out", field_violations=where) from out
    except ConsentMissingError as missing:
        where = _places(missing.places, "no consent to this purpose holds")
        raise errors.ConsentMissing("a data subject has not consented to this purpose", field_violations=where) from missing


def _places(places: Sequence[int], what: str) -> list[tuple[str, str]]:
    return [(f"subject_ids[{place}]", what) for place in places]
