"""What a member keeps outside of its data directory: its WAL, and its tablespaces (PostgreSQL: 23.6, Tablespaces)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve, field, frozen

from resilience.model.errors import Refused

LOCATIONS = """
select coalesce(json_object_agg(oid::text, location), '{}')::text as places
from (select oid, pg_tablespace_location(oid) as location from pg_tablespace) as known
where location like '/%'
"""
"""Asks a server where its tablespaces are, by their oids; those inside of the data directory are left out."""
_VERSIONED = re.compile(r"PG_(\d+)_\d+")


@frozen(kw_only=True)
class Outside:
    """Where these are: `wal` if it is not inside, and the folders of the tablespaces by their oids."""

    wal: Path | None = None
    tablespaces: Mapping[str, Path] = field(factory=dict)

    @classmethod
    def of(cls, data: Path) -> Outside:
        """Read it from the links in a data directory."""
        wal, tablespaces = data / "pg_wal", data / "pg_tblspc"
        links = [each for each in tablespaces.iterdir() if each.is_symlink()] if tablespaces.is_dir() else []
        return cls(
            wal=data / wal.readlink() if wal.is_symlink() else None,
            tablespaces={each.name: tablespaces / each.readlink() for each in links},
        )

    @classmethod
    def parse(cls, text: bytes) -> Outside:
        """Read what `text` wrote."""
        found = json.loads(text)
        wal, tablespaces = found["wal"], found["tablespaces"]
        return cls(wal=Path(wal) if wal else None, tablespaces={oid: Path(place) for oid, place in tablespaces.items()})

    def text(self) -> bytes:
        """Write it down."""
        places = {oid: str(place) for oid, place in self.tablespaces.items()}
        return json.dumps({"wal": str(self.wal) if self.wal else None, "tablespaces": places}).encode()

    def joined_by(self, there: Mapping[str, str]) -> Outside:
        """Add the tablespaces that the primary has, `there` by their oids: a new one goes where it is there."""
        return evolve(self, tablespaces={**{oid: Path(place) for oid, place in there.items()}, **self.tablespaces})

    def check(self, there: Mapping[str, str], *, major: int, local: bool, subject: str) -> None:
        """Raise Refused if a folder that the primary's tablespaces are to be in holds what is not this member's own.

        `local`: the primary is on this machine, so its folders are nobody else's.
        """
        here, mine = self.joined_by(there).tablespaces, set(self.tablespaces.values())
        taken = {Path(place) for place in there.values()} if local else set()
        for oid, place in here.items():
            names = sorted(each.name for each in place.iterdir()) if place.is_dir() else []
            if place not in taken and place in mine:
                names = [name for name in names if oid in there and _version(name) != major]
            if names:
                text = f"a tablespace is to be in {place}, which holds {names[0]}: that is not {subject}'s"
                hint = "empty the folder if nobody needs it, or rebuild with pg_basebackup --tablespace-mapping"
                raise Refused(text, operation="rejoin", subject=subject, hint=hint)


def mapping(there: Mapping[str, str], here: Outside) -> list[str]:
    """Return pg_basebackup's arguments that put the primary's tablespaces where they are to be here."""
    places = [(Path(place), here.tablespaces[oid]) for oid, place in there.items()]
    return [f"--tablespace-mapping={_escaped(old)}={_escaped(new)}" for old, new in places if old != new]


def folders(outside: Outside, *, major: int) -> list[Path]:
    """Return the folders in its tablespaces that are this member's: servers of other majors may have theirs beside."""
    found = [each for place in outside.tablespaces.values() if place.is_dir() for each in place.iterdir()]
    return [each for each in found if _version(each.name) == major]


def _version(name: str) -> int | None:
    found = _VERSIONED.fullmatch(name)
    return int(found[1]) if found else None


def _escaped(place: Path) -> str:
    return str(place).replace("=", "\\=")
