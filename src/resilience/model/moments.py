"""Moments always know their offset from UTC, and spans are not negative: others are refused at the door."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import attrs


def utc_now() -> datetime:
    """Tell the time in UTC; the default `clock` wherever one can be given."""
    return datetime.now(UTC)


def aware(_instance: object, attribute: attrs.Attribute[datetime], moment: datetime | None) -> None:
    """Refuse a moment without a UTC offset (attrs validator): nobody could say when it was."""
    if moment is not None and moment.utcoffset() is None:
        raise ValueError(f"{attribute.name} is a naive datetime: give it a time zone")


def positive(_instance: object, attribute: attrs.Attribute[timedelta], span: timedelta | None) -> None:
    """Refuse a span of time that is nothing or less (attrs validator)."""
    if span is not None and span <= timedelta(0):
        raise ValueError(f"{attribute.name} must be longer than nothing")


def not_negative(_instance: object, attribute: attrs.Attribute[timedelta], span: timedelta) -> None:
    """Refuse a negative span of time (attrs validator)."""
    if span < timedelta(0):
        raise ValueError(f"{attribute.name} cannot be negative")
