"""synchronous_standby_names (PostgreSQL 20.6.2): read and written. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

_LIST = re.compile(
    r"\s*(?:(?P<method>any|first)\s+)?(?P<needed>[0-9]+)\s*\((?P<names>.*)\)\s*", re.IGNORECASE | re.DOTALL
)
_NAME = re.compile(r'"(?:[^"]|"")*"|[^\s,"]+')
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
ANYBODY = "*"


@frozen
class SyncNames:
    """How many of which standbys must have a write before it is acknowledged; `method` is ANY or FIRST."""

    names: tuple[str, ...] = ()
    needed: int = 0
    method: str = "FIRST"

    @classmethod
    def parse(cls, setting: str) -> SyncNames:
        """Read a setting as the server wrote it."""
        found = _LIST.fullmatch(setting)
        listed = setting if found is None else found["names"]
        names = tuple(_unquoted(match[0]) for match in _NAME.finditer(listed))
        if not names:
            return cls()
        if found is None:
            return cls(names, 1)
        return cls(names, int(found["needed"]), (found["method"] or "FIRST").upper())

    def __str__(self) -> str:
        if not self.needed or not self.names:
            return ""
        return f"{self.method} {self.needed} ({', '.join(map(_quoted, self.names))})"

    def names_anybody(self) -> bool:
        """Tell whether any standby at all counts."""
        return ANYBODY in self.names


def sync_names(members: Sequence[str], needed: int, *, method: str = "ANY") -> SyncNames:
    """Return the setting that waits for `needed` of `members`. Raises ValueError if there are not so many."""
    if needed > len(members):
        raise ValueError(f"{needed} of {len(members)} members cannot have a write")
    return SyncNames(tuple(members), needed, method) if needed else SyncNames()


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _quoted(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name not in ("any", "first") else '"' + name.replace('"', '""') + '"'
