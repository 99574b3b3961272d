"""How long a record is kept: at least, and at most.

Knows: classes, which purpose has which, days. Does not know: holds, states, storage. Days count from the first leaf of a record, 24
hours each: of a class of the settings by the settings of today, so that a longer minimum protects what is already there; of a
class that a tenant states by the record's own leaf, `<name>/<keep days>/<expire days or "never">`, whatever it states later.
The log book of refusals is a class of its own, "log_book", which nothing can make shorter than four years (PDPO, section 27(3)).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LOG_BOOK: Final = "log_book"
LOG_BOOK_KEEP_DAYS: Final = 1461
"""Four years with their leap day."""
DAY_US: Final = 86_400 * 1_000_000
_STATED: Final = re.compile(r"[a-z][a-z0-9_]*/([0-9]{1,5})/([1-9][0-9]{0,4}|never)")
"""No class of the settings has a slash in its name."""


@dataclass(frozen=True, slots=True)
class RetentionClass:
    """Days. `keep_days`: no erasure before; `expire_days`: destroyed after; None: never by itself."""

    keep_days: int = 0
    expire_days: int | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """Classes by name and by purpose. A record whose class settings no longer name is neither erased nor expired.

    A class that a tenant states needs no entry in `classes`: its name says its days.
    """

    classes: Mapping[str, RetentionClass]
    by_purpose: Mapping[str, str]
    default: str

    def class_of(self, purpose: str) -> str:
        """Class of a new record."""
        return self.by_purpose.get(purpose, self.default)

    def kept_until_us(self, retention_class: str, recorded_at_us: int) -> int | None:
        """Until when a record must be kept, microseconds since 1970; None for a class that nobody knows: for ever."""
        found = self._found(retention_class)
        return None if found is None else recorded_at_us + found.keep_days * DAY_US

    def expires_at_us(self, retention_class: str, recorded_at_us: int) -> int | None:
        """Return when a record's time is up, None for never."""
        expire_days = self.expire_days(retention_class)
        return None if expire_days is None else recorded_at_us + expire_days * DAY_US

    def expire_days(self, retention_class: str) -> int | None:
        """Return after how many days records of a class are destroyed, None for never."""
        found = self._found(retention_class)
        return None if found is None else found.expire_days

    def must_be_kept(self, retention_class: str, recorded_at_us: int, now_us: int) -> bool:
        """Whether erasure is refused."""
        until_us = self.kept_until_us(retention_class, recorded_at_us)
        return until_us is None or now_us < until_us

    def _found(self, retention_class: str) -> RetentionClass | None:
        return self.classes.get(retention_class) or _stated_class(retention_class)


def stated_name(name: str, days: RetentionClass) -> str:
    """Name of a class that a tenant states: with its days, so that what was promised of a record stands in its leaf."""
    return f"{name}/{days.keep_days}/{'never' if days.expire_days is None else days.expire_days}"


def _stated_class(retention_class: str) -> RetentionClass | None:
    found = _STATED.fullmatch(retention_class)
    return None if found is None else RetentionClass(int(found[1]), None if found[2] == "never" else int(found[2]))
