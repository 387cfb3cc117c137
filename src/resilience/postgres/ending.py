"""What a restore leaves behind: a primary, or a server that is still in recovery and how it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import field, frozen
from psycopg import conninfo

from .client import Dsn
from .stopping import UNSET
from .wal.spool import config_line

End = Literal["promote", "pause", "shutdown", "standby"]
NOTHING_MORE = "false"
"""A restore_command that has nothing: recovery demands one, and goes on with the WAL that is in pg_wal."""


@frozen(kw_only=True)
class Ending:
    """How a restore ends, and what a server that is still in recovery is told; `primary` may hold a password."""

    end: End = "promote"
    primary: Dsn | None = None
    slot: str = ""
    restore_command: str = field(default="", repr=False)

    def settings(self, asked: Mapping[str, str], timeline: str) -> dict[str, str]:
        """Return what belongs into postgresql.auto.conf; `asked` is the target that was met, if there was one."""
        if self.end == "promote":
            return {}
        # PostgreSQL complains of a second target even where it is empty, so the one that counts comes last.
        unset = {name: value for name, value in UNSET.items() if name not in asked}
        if self.end == "standby":
            return {
                **UNSET,
                "restore_command": self.restore_command,
                "recovery_target_timeline": "latest",
                "primary_conninfo": conninfo.make_conninfo("", **self.primary.parameters) if self.primary else "",
                "primary_slot_name": self.slot,
            }
        return {
            **unset,
            "restore_command": self.restore_command or NOTHING_MORE,
            "primary_conninfo": "",
            "hot_standby": "on",
            **asked,
            "recovery_target_timeline": timeline,
            "recovery_target_action": self.end,
        }


def lines(settings: Mapping[str, str]) -> bytes:
    """Write settings as postgresql.auto.conf has them (20.1.2); the last one of a name counts."""
    return "".join(config_line(name, value).replace("\n", "\\n") + "\n" for name, value in settings.items()).encode()
