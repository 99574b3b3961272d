"""How long a record is kept: at least, and at most.

Knows: classes, which purpose has which, days. Does not know: holds, states, storage. Days count from the first leaf of a record, 24
hours each, by the settings of today: a longer minimum protects what is already there.
The log book of refusals is a class of its own, "log_book", which nothing can make shorter than four years (PDPO, section 27(3)).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LOG_BOOK: Final = "log_book"
LOG_BOOK_KEEP_DAYS: Final = 1461
"""Four years with their leap day."""
DAY_US: Final = 86_400 * 1_000_000


@dataclass(frozen=True, slots=True)
class RetentionClass:
    """Days. `keep_days`: no erasure before; `expire_days`: destroyed after; None: never by itself."""

    keep_days: int = 0
    expire_days: int | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """Classes by name and by purpose. A record whose class settings no longer name is neither erased nor expired."""

    classes: Mapping[str, RetentionClass]
    by_purpose: Mapping[str, str]
    default: str

    def class_of(self, purpose: str) -> str:
        """Class of a new record."""
        return self.by_purpose.get(purpose, self.default)

    def kept_until_us(self, retention_class: str, recorded_at_us: int) -> int | None:
        """Until when a record must be kept, microseconds since 1970; None for a class that nobody knows: for ever."""
        found = self.classes.get(retention_class)
        return None if found is None else recorded_at_us + found.keep_days * DAY_US

    def expires_at_us(self, retention_class: str, recorded_at_us: int) -> int | None:
        """Return when a record's time is up, None for never."""
        found = self.classes.get(retention_class)
        if found is None or found.expire_days is None:
            return None
        return recorded_at_us + found.expire_days * DAY_US

    def must_be_kept(self, retention_class: str, recorded_at_us: int, now_us: int) -> bool:
        """Whether erasure is refused."""
        until_us = self.kept_until_us(retention_class, recorded_at_us)
        return until_us is None or now_us < until_us
