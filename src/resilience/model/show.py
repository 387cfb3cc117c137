"""How values show themselves: to a person in a notebook, to a program as JSON."""

from __future__ import annotations

from datetime import datetime, timedelta
from html import escape

import attrs

from .json import to_json


class Shown:
    """Gives an attrs value `to_json()` and a table in notebooks; `str()` and `repr()` stay the value's own."""

    __slots__ = ()

    def to_json(self) -> str:
        """Return the value as JSON text; offsets are strings, moments are ISO 8601 with their offset from UTC."""
        return to_json(self).decode()

    def _repr_html_(self) -> str:
        fields = attrs.fields(type(self))  # type: ignore[arg-type]  # every Shown class is an attrs class
        rows = "".join(
            f"<tr><th style='text-align:left'>{field.name}</th><td>{escape(str(getattr(self, field.name)))}</td></tr>"
            for field in fields
            if field.repr
        )
        return f"<table><caption>{escape(type(self).__name__)}</caption>{rows}</table>"


def as_bytes(count: int | None) -> str:
    """Write a number of bytes for a person: `1.5 GiB`; `unknown` for None."""
    if count is None:
        return "unknown"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def as_span(span: timedelta | float | None) -> str:
    """Write a length of time (seconds, if a number) for a person: `2 h 15 min`, `0.4 s`; `unknown` for None."""
    if span is None:
        return "unknown"
    seconds = span.total_seconds() if isinstance(span, timedelta) else float(span)
    if seconds < 0:
        return f"-{as_span(-seconds)}"
    if seconds < 10:
        return f"{seconds:.3g} s"
    whole, words = round(seconds), []
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, whole = divmod(whole, length)
        if count:
            words.append(f"{count} {unit}")
    return " ".join(words[:2])


def as_times(count: int) -> str:
    """Write how often for a person: `once`, `twice`, `3 times`."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def when(moment: datetime | None) -> str:
    """Write a moment for a person: to the second if it is a whole one, with its zone; `unknown` for None."""
    if moment is None:
        return "unknown"
    fraction = f".{moment:%f}".rstrip("0") if moment.microsecond else ""
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction} {moment:%Z}"
