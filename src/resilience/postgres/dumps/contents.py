"""What a logical backup holds, as its manifest's details say. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

import msgspec
from attrs import field, frozen

from resilience.model.errors import ManifestInvalid
from resilience.model.json import Json, from_json, to_json
from resilience.model.manifests import Manifest
from resilience.model.moments import aware

GLOBALS = "globals.sql"
"""The part that holds roles and tablespaces; every other part is the dump of one database."""

_OTHER = re.compile(r"[^a-z0-9_]+")
_SLUG = 40


@frozen(kw_only=True)
class Database:
    """One database: how it compares text, the part that holds it, and when (by the server's clock) it was read."""

    oid: str
    name: str
    encoding: str
    collate: str
    ctype: str
    provider: str
    locale: str | None = None
    collation_version: str | None = None
    library_version: str | None = None
    part: str = ""
    snapshot_at: datetime | None = field(default=None, validator=aware)

    @property
    def text_rules(self) -> tuple[str, ...]:
        """What an existing database must have in common with it to be filled from its dump."""
        return (self.encoding, self.provider, self.collate, self.ctype, self.locale or "")

    def __str__(self) -> str:
        return f'database "{self.name}"'


@frozen(kw_only=True)
class Contents:
    """A logical backup: where it came from, whose pg_dump wrote it, the roles in its globals, its databases."""

    version: str
    major: int
    pg_dump_major: int
    from_standby: bool
    bootstrap_role: str
    role_passwords: bool
    roles: tuple[str, ...]
    databases: tuple[Database, ...]

    def details(self) -> Mapping[str, Json]:
        """Return it as the details of facts and manifests: exactly what a manifest that was stored says."""
        return from_json(to_json(self), dict[str, Json])

    @classmethod
    def of(cls, details: Mapping[str, Json]) -> Contents:
        """Read it back. Raises msgspec.ValidationError."""
        return msgspec.convert(details, cls)

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> Contents:
        """Read what a backup holds. Raises ValueError if it is not a logical one, ManifestInvalid if it is damaged."""
        if manifest.kind != "dump":
            raise ValueError(f"{manifest.id} is a {manifest.kind}, not a dump")
        try:
            contents = cls.of(manifest.details)
            for part in (GLOBALS, *(database.part for database in contents.databases)):
                manifest.part(part)
        except (msgspec.ValidationError, KeyError) as error:
            raise ManifestInvalid(
                f"it does not say which databases it holds: {error}", operation="read", subject=manifest.id
            ) from error
        return contents


def part_name(database: Database) -> str:
    """Name the part of a database: readable as far as a key can be, and different for every database."""
    slug = _OTHER.sub("-", database.name.lower()).strip("-")[:_SLUG] or "database"
    return f"{slug}-{database.oid}.dump"
