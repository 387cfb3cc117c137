"""Names of targets and ids of backups: what may become part of a key."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, date, datetime
from functools import lru_cache

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_ID = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})T(?:[01][0-9]|2[0-3])(?:[0-5][0-9]){2}\.[0-9]{3}Z-[0-9a-f]{6}")


def checked_name(name: str) -> str:
    """Return the name of a target or system if it can be part of a key; raises ValueError."""
    if not is_name(name):
        raise ValueError(f"{name!r} is no name: use 1 to 63 of a-z, 0-9, '_', '.' and '-', beginning with a-z or 0-9")
    return name


def is_name(name: str) -> bool:
    """Tell whether a target or system can have that name."""
    return _NAME.fullmatch(name) is not None


def checked_id(backup: str) -> str:
    """Return a backup's id if it is well-formed; raises ValueError."""
    found = _ID.fullmatch(backup)
    if found is None or not _is_day(*found.groups()):
        raise ValueError(f"{backup!r} is no backup id: one looks like 20261121T203000.000Z-3f9a1c")
    return backup


@lru_cache
def _is_day(year: str, month: str, day: str) -> bool:
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return False
    return True


def planned_at(backup: str) -> datetime:
    """Return the moment that a backup's id begins with: when it was planned, by its host's clock. Raises ValueError."""
    return datetime.strptime(checked_id(backup).partition("-")[0] + "+0000", "%Y%m%dT%H%M%S.%fZ%z")


def new_id(now: datetime) -> str:
    """Make the id of a backup begun `now`: sortable by time, and random so that two at once differ."""
    if now.utcoffset() is None:
        raise ValueError("now is a naive datetime: give it a time zone")
    moment = now.astimezone(UTC)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z-{secrets.token_hex(3)}"
