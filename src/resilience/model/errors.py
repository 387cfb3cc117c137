"""The errors, sorted by what the caller should do next.

========================  =====================================================
`Refused`                 nothing was touched: change the request
`Unavailable`             the peer did not answer: try again
`Corrupt`                 bytes are not what they were: stop, look at them
`Conflict`                someone else acts on the same thing
`Interrupted`             effects happened or may have happened: look again
`Unsupported`             a version or a tool is missing
========================  =====================================================

Misuse of an argument stays `TypeError` or `ValueError`; `asyncio.CancelledError` is never wrapped.
"""

from __future__ import annotations

from typing import ClassVar


class ResilienceError(Exception):
    """One clear sentence: what happened, to what, and (as `hint`) what to do about it.

    `exit_status` is what a program that ends with this error should return; it is frozen for each of the six families.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, *, operation: str = "", subject: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.operation = operation
        self.subject = subject
        self.hint = hint

    def __str__(self) -> str:
        where = " ".join(word for word in (self.operation, self.subject) if word)
        sentence = f"{where}: {self.what}" if where else self.what
        return f"{sentence} ({self.hint})" if self.hint else sentence


class Refused(ResilienceError):
    """Nothing was touched; the request has to change first."""

    exit_status: ClassVar[int] = 10


class DestinationNotEmpty(Refused):
    """The place to restore into already holds something."""


class NoBackup(Refused):
    """The archive holds no backup that answers the request."""


class NotRecoverable(Refused):
    """The archive cannot bring back what was asked for: it lies before, beyond or between what there is."""


class WouldLeaveGap(Refused):
    """Archiving from here on would leave a stretch of the log missing for ever."""


class NotIncremental(Refused):
    """There is nothing that an incremental backup could build on; a full one is needed."""


class DiskTooSmall(Refused):
    """There is less free space than the restore needs."""


class KeyMissing(Refused):
    """What is sealed needs a key that was not given."""


class NotRehydrated(Refused):
    """An object lies in a tier that cannot be read; it has to be copied to another one first, which takes hours."""


class StalePlan(Refused):
    """What the plan rests on has moved, or it has expired: make a new one."""


class NotConfirmed(Refused):
    """The words that were typed do not confirm this plan."""


class NoCandidate(Refused):
    """There is nobody who may be promoted."""


class LossTooGreat(Refused):
    """More may be lost than the policy, or the plan that was confirmed, allows."""


class FencingUnproven(Refused):
    """Nobody could prove that a member can no longer write."""


class NotFollowing(Refused):
    """A member cannot receive from the primary as it is: their histories have parted."""


class Unavailable(ResilienceError):
    """The peer could not be reached or did not finish; trying again may help."""

    exit_status: ClassVar[int] = 11


class Unreachable(Unavailable):
    """No connection, or the connection broke."""


class TimedOut(Unavailable):
    """No answer within the deadline."""


class Throttled(Unavailable):
    """The peer answers, and wants to be asked less often."""


class StorageFailed(Unavailable):
    """The store or the disk beneath a destination failed: full, read-only, input/output error."""


class Corrupt(ResilienceError):
    """Bytes are not what they were when they were written."""

    exit_status: ClassVar[int] = 12


class ChecksumMismatch(Corrupt):
    """A digest or checksum does not agree with the bytes."""


class ObjectMissing(Corrupt):
    """An object that a manifest names is not in the store."""


class LogGap(Corrupt):
    """A stretch of the log is missing although later ones are there."""


class ManifestInvalid(Corrupt):
    """A manifest cannot be read or contradicts itself."""


class SealBroken(Corrupt):
    """What was sealed was changed, belongs elsewhere, or was written by somebody who has no key."""


class Conflict(ResilienceError):
    """Someone else acts on the same thing."""

    exit_status: ClassVar[int] = 13


class LineageBroken(Conflict):
    """Two histories that differ claim the same place in the log: another server writes under this name."""


class AlreadyExists(Conflict):
    """The store holds an object of that name; objects are never overwritten."""


class JournalConflict(Conflict):
    """Another operator acts on this group, or has taken over."""


class FencedOff(Conflict):
    """A newer epoch has begun: whoever acts in this one must stop."""


class RouteMoved(Conflict):
    """Somebody else has changed where clients go."""


class Interrupted(ResilienceError):
    """Effects happened, or may have; look at the subject again before repeating."""

    exit_status: ClassVar[int] = 14


class Unsupported(ResilienceError):
    """A version, a format or a tool that is not supported or not installed."""

    exit_status: ClassVar[int] = 15
