"""Is whoever reviews the one who asked? One person may come by certificate, by token, by both, and by a key that they made.

Pure. What is compared are all names under which a caller is known: `Principal.known_as`.
"""

from __future__ import annotations

from lionrock.gateway.reviews.rows import Review
from lionrock.gateway.tenants import Principal


def author_for(review: Review, principal: Principal) -> str:
    """Return the author as the access policies are asked about them: the caller's own actor where it is the same person."""
    return review.author if review.known_as.isdisjoint(principal.known_as) else principal.actor
