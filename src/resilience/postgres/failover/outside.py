"""What a member keeps outside of its data directory: its WAL, and its tablespaces (PostgreSQL: 23.6, Tablespaces)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from attrs import evolve, field, frozen

from resilience.model.errors import Refused, StorageFailed

LOCATIONS = """
select coalesce(json_object_agg(oid::text, location), '{}')::text as places
from (select oid, pg_tablespace_location(oid) as location from pg_tablespace) as known
where location like '/%'
"""
"""Asks a server where its tablespaces are, by their oids; those inside of the data directory are left out."""
_VERSIONED = re.compile(r"PG_(\d+)_\d+")
_WAL = re.compile(
    r"[0-9A-F]{24}(\..+)?|[0-9A-F]{8}\.history|archive_status|summaries|xlogtemp\.\d+|RECOVERY(XLOG|HISTORY)"
)


@frozen(kw_only=True)
class Outside:
    """Where these are: `wal` if it is not inside, and the folders of the tablespaces by their oids."""

    wal: Path | None = None
    tablespaces: Mapping[str, Path] = field(factory=dict)

    @classmethod
    def of(cls, data: Path) -> Outside:
        """Read it from the links in a data directory. Raises StorageFailed."""
        wal, tablespaces = data / "pg_wal", data / "pg_tblspc"
        try:
            links = [each for each in tablespaces.iterdir() if each.is_symlink()] if tablespaces.is_dir() else []
            return cls(
                wal=data / wal.readlink() if wal.is_symlink() else None,
                tablespaces={each.name: tablespaces / each.readlink() for each in links},
            )
        except OSError as error:
            what = f"where it keeps its tablespaces cannot be read: {error.strerror}: {error.filename}"
            raise StorageFailed(what, operation="rejoin", subject=str(data)) from error

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

    @property
    def folders(self) -> frozenset[Path]:
        """All of these folders, by the names that they have in the end."""
        return frozenset(each.resolve() for each in (self.wal, *self.tablespaces.values()) if each is not None)

    def joined_by(self, there: Mapping[str, str], *, major: int, taken: Collection[Path], subject: str) -> Outside:
        """Return where all is to be once the primary's tablespaces, `there` by their oids, are here too.

        One that is new goes where it is there. `taken` are the folders of other servers. Raises Refused if a folder
        holds what is not this member's own: some of it would be removed, or pg_basebackup would stop half-way.
        """
        here = {**{oid: Path(place) for oid, place in there.items()}, **self.tablespaces}
        mine = set(self.tablespaces.values())
        for oid, place in here.items():
            names = _names(place)
            if place in mine and place.resolve() not in taken:
                names = [name for name in names if oid in there and _version(name) != major]
            _refuse(names, f"a tablespace is to be in {place}", subject)
        if self.wal is not None:
            names = [name for name in _names(self.wal) if self.wal.resolve() in taken or not _WAL.fullmatch(name)]
            _refuse(names, f"its WAL is to be in {self.wal}", subject)
        return evolve(self, tablespaces=here)

    def own(self, *, major: int) -> list[Path]:
        """Return what is in them: all WAL, and of tablespaces what is of this major, for others may use them too."""
        wal = [self.wal / name for name in _names(self.wal)] if self.wal is not None else []
        places = [place / name for place in self.tablespaces.values() for name in _names(place)]
        return [*wal, *(each for each in places if _version(each.name) == major)]


def mapping(there: Mapping[str, str], here: Outside) -> list[str]:
    """Return pg_basebackup's arguments that put the primary's tablespaces where they are to be here."""
    places = [(Path(place), here.tablespaces[oid]) for oid, place in there.items()]
    return [f"--tablespace-mapping={_escaped(old)}={_escaped(new)}" for old, new in places if old != new]


def _names(place: Path) -> list[str]:
    return sorted(each.name for each in place.iterdir()) if place.is_dir() else []


def _refuse(names: Sequence[str], text: str, subject: str) -> None:
    if names:
        hint = "take it away if nobody needs it, or rebuild with pg_basebackup --tablespace-mapping or --waldir"
        what = f"{text}, which holds {names[0]}: that is not {subject}'s"
        raise Refused(what, operation="rejoin", subject=subject, hint=hint)


def _version(name: str) -> int | None:
    found = _VERSIONED.fullmatch(name)
    return int(found[1]) if found else None


def _escaped(place: Path) -> str:
    return str(place).replace("=", "\\=")
