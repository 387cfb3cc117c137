"""The mark of a fence on a PostgreSQL data directory; see `fencers.mark`.

A last line in postgresql.auto.conf names a library that does not exist, so every start fails and says why.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from resilience.fencers.mark import FENCE, FenceMark
from resilience.model.errors import FencingUnproven
from resilience.postgres.mark import AUTO
from resilience.postgres.tools import Account

__all__ = ["FENCE", "GUARD", "mark_on", "refuse_overridden"]

GUARD = b"shared_preload_libraries = 'resilience_fenced'\n"
OVERRIDES = "shared_preload_libraries"


def mark_on(data: Path, account: Account | None) -> FenceMark:
    """Return the mark on a data directory."""
    return FenceMark(data, account, data / AUTO, GUARD)


def refuse_overridden(data: Path) -> None:
    """Raise FencingUnproven if a start as the last one was would not care for the mark."""
    with suppress(FileNotFoundError):
        if OVERRIDES in (data / "postmaster.opts").read_text(errors="replace"):
            text = f"its command line sets {OVERRIDES}, so nothing keeps it from starting again"
            hint = "set that in its configuration file instead"
            raise FencingUnproven(text, operation="fence", subject=str(data), hint=hint)
