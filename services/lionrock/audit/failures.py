"""What can go wrong in the domain. servicer.py maps each to a status and a reason (errors.py).

AuditError
├── LogNotFound          no log for this tenant
├── LeafNotFound         no such leaf
├── LeafNotCovered       the leaf is not yet under a checkpoint that the platform's log attests
├── WitnessPolicyUnmet   too long ago that enough witnesses cosigned; nothing is appended until they do
├── LeafTooLarge         the event does not fit a leaf
├── EventAlreadyRecorded the event id is taken by another content
├── IntentNotFound       an outcome names an intent that is not there
├── IntentClosed         an outcome names an intent that has one
├── TreeSizeOutOfRange   no tree of that size has been signed
├── QueueFull            more appends wait than settings allow
├── LogReadOnly          the log refuses to sign; the message says why and what to do
│   └── LogSealed          the tenant was off-boarded: nothing is ever added to its log again
├── TenantLeaving        the tenant is being off-boarded: no request begins any more
├── StoreFailed          a write or read did not succeed; nothing more is written until restart
│   └── StoreConflict    another sequencer moved the log
├── StoreHeld            another process holds the store
├── MoveRefused          logs cannot be moved: an end is not what it must be, or a leaf is not what was signed
├── SinkFailed           tiles could not be read or written
│   └── TileConflict     what is published is not what would be published now
├── RecordsFailure       about payloads that are kept
│   ├── VaultDisabled      payloads of this tenant are not kept
│   ├── RecordNotFound     no such record, or none that the caller may know of
│   ├── HoldNotFound       no such hold
│   ├── RecordErased       its keys and salts are destroyed, or about to be
│   ├── RetentionApplies   a record must be kept still
│   ├── LegalHoldApplies   a hold keeps a record
│   ├── RequestOpen        a record's request has no outcome yet
│   ├── RecordTooLarge     a record that does not fit one answer
│   ├── TooManyRecords     more records than one call may destroy
│   ├── OffboardingNotBegun an erasure of a tenant that has not begun to leave
│   ├── ErasureDecided     an off-boarding that cannot be cancelled any more
│   ├── SecondPersonNeeded who began an off-boarding may not decide on it
│   ├── NotThisTenant      the tenant that was written out is not the caller's own
│   ├── RoleNotPermitted   none of the caller's roles permits this
│   └── KeysUnavailable    key management or the key store does not answer
└── KeyUnusable          a signing key is not readable, not private or not a key
"""


class AuditError(Exception):
    """Root of the tree."""


class LogNotFound(AuditError):
    """No log for this tenant."""


class LeafNotFound(AuditError):
    """No such leaf."""


class LeafNotCovered(AuditError):
    """The leaf is not yet under a checkpoint that the platform's log attests; a later try succeeds."""


class WitnessPolicyUnmet(AuditError):
    """It is too long ago that enough witnesses cosigned; nothing is appended until they do."""


class LeafTooLarge(AuditError):
    """The event does not fit a leaf."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"the leaf would have {size_bytes} bytes; it must have fewer than {limit_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class EventAlreadyRecorded(AuditError):
    """The event id is taken by another content, or by one whose retry window has passed."""


class IntentNotFound(AuditError):
    """An outcome names an intent that is not in the log, or one of another request."""


class IntentClosed(AuditError):
    """An outcome names an intent that has one already."""


class TreeSizeOutOfRange(AuditError):
    """No tree of that size has been signed."""


class QueueFull(AuditError):
    """More appends wait than settings allow."""


class LogReadOnly(AuditError):
    """The log refuses to sign; the message says why and what to do."""


class LogSealed(LogReadOnly):
    """The tenant was off-boarded: nothing is ever added to its log again."""


class TenantLeaving(AuditError):
    """The tenant is being off-boarded: no request of it begins any more."""


class StoreFailed(AuditError):
    """A write or read did not succeed; nothing more is written until restart."""


class StoreConflict(StoreFailed):
    """Another sequencer moved the log or took the store over."""


class StoreHeld(AuditError):
    """Another process holds the store; the message names it."""


class MoveRefused(AuditError):
    """A move cannot begin, or what was read is not what was signed; the message says why. Nothing in the source was changed."""


class KeyUnusable(AuditError):
    """A signing key cannot be used; the message says which file and why."""


class SinkFailed(AuditError):
    """Tiles could not be read or written; the message says which and why."""


class TileConflict(SinkFailed):
    """What is published is not what would be published now; nothing more of that log is published until somebody has looked."""


class RecordsFailure(AuditError):
    """About payloads that are kept."""


class VaultDisabled(RecordsFailure):
    """Payloads of this tenant are not kept."""


class RecordNotFound(RecordsFailure):
    """No such record, or none that the caller may know of."""


class HoldNotFound(RecordsFailure):
    """No such hold, or none that the caller may know of."""


class RecordErased(RecordsFailure):
    """Keys and salts of the record are destroyed, or about to be."""


class RetentionApplies(RecordsFailure):
    """Records must be kept still. `until_us`: the latest of their dates, microseconds since 1970."""

    def __init__(self, records: int, until_us: int) -> None:
        super().__init__(f"{records} of the records must be kept still")
        self.records = records
        self.until_us = until_us


class LegalHoldApplies(RecordsFailure):
    """A hold keeps records."""

    def __init__(self, records: int) -> None:
        super().__init__(f"a hold keeps {records} of the records")
        self.records = records


class RequestOpen(RecordsFailure):
    """Requests of records have no outcome yet."""

    def __init__(self, records: int) -> None:
        super().__init__(f"the requests of {records} of the records have not ended")
        self.records = records


class RecordTooLarge(RecordsFailure):
    """A record that does not fit one answer."""


class TooManyRecords(RecordsFailure):
    """More records than one call may destroy."""


class OffboardingNotBegun(RecordsFailure):
    """A tenant is erased only after its off-boarding was begun."""


class ErasureDecided(RecordsFailure):
    """The erasure of the tenant is decided: its off-boarding cannot be cancelled any more."""


class SecondPersonNeeded(RecordsFailure):
    """Who began an off-boarding may not decide on the erasure."""


class NotThisTenant(RecordsFailure):
    """The tenant that was written out is not the caller's own."""


class RoleNotPermitted(RecordsFailure):
    """None of the caller's roles permits this."""


class KeysUnavailable(RecordsFailure):
    """Key management or the key store does not answer; the message says what failed and never quotes a key."""
