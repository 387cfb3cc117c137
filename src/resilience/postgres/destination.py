"""What a running server has that a logical backup is to be restored into, and what keeps the two apart."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec
from attrs import field, frozen

from resilience.model.findings import Finding, Severity

from . import survey
from .client import Dsn, sql
from .dumps import staging
from .dumps.contents import Contents, Database

_NAMES = "select datname::text as name, datallowconn as connectable, datistemplate as template from pg_database"
_CLUSTER = """
select array(select rolname::text from pg_roles) as roles, array(select spcname::text from pg_tablespace) as tablespaces
"""
_COLLATIONS = """
select distinct datlocprovider::text as provider, datcollate as collate,
       coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') as locale,
       pg_database_collation_actual_version(oid) as version
from pg_database d
"""

# What a user made, or an extension that somebody installed brought along, or nothing but the server's own? What belongs
# to an extension, or to another object as a part of it, is not counted.
_USER_OBJECTS = """
with objects (class, oid) as (
    select 'pg_class'::regclass, oid from pg_class
    where relkind in ('r', 'p', 'f', 'v', 'm', 'S') and relpersistence <> 't'
    union all select 'pg_proc'::regclass, oid from pg_proc
    union all select 'pg_type'::regclass, oid from pg_type
    union all select 'pg_namespace'::regclass, oid from pg_namespace where nspname !~ '^pg_' and nspname <> 'public'
    union all select 'pg_operator'::regclass, oid from pg_operator
    union all select 'pg_cast'::regclass, oid from pg_cast
    union all select 'pg_collation'::regclass, oid from pg_collation
    union all select 'pg_foreign_server'::regclass, oid from pg_foreign_server
    union all select 'pg_publication'::regclass, oid from pg_publication
    union all select 'pg_event_trigger'::regclass, oid from pg_event_trigger
    union all select 'pg_largeobject'::regclass, oid from pg_largeobject_metadata
)
select count(*) from objects o
where o.oid >= 16384
  and not exists (select from pg_depend d where d.classid = o.class and d.objid = o.oid and d.deptype in ('e', 'i'))
"""


@frozen(kw_only=True)
class Destination:
    """A server as it is now; `present` maps databases that exist to what a user has made in them."""

    where: str
    version: str
    version_num: int
    bootstrap_role: str
    standby: bool
    databases: Mapping[str, Database]
    unreachable: frozenset[str]
    templates: frozenset[str]
    present: Mapping[str, int]
    roles: frozenset[str]
    tablespaces: frozenset[str]
    collations: Mapping[tuple[str, str], str | None]
    left_behind: Sequence[str] = field(default=())

    @property
    def major(self) -> int:
        """The server's major version."""
        return self.version_num // 10000

    def existing(self, contents: Contents) -> list[Database]:
        """Return the databases of a backup that exist here, as they are in the backup."""
        here = {*self.databases, *self.unreachable}
        return [database for database in contents.databases if database.name in here]

    def filled(self, contents: Contents) -> list[Database]:
        """Return those of them that hold something."""
        return [database for database in self.existing(contents) if self.present.get(database.name)]


async def look(dsn: Dsn, into: Collection[str]) -> Destination:
    """Look at a server, and into the databases of these names if they are there. Writes nothing."""
    async with sql(dsn, operation="survey") as connection:
        (server,) = await connection.fetch(survey.SERVER)
        (cluster,) = await connection.fetch(_CLUSTER)
        names = await connection.fetch(_NAMES)
        databases = msgspec.convert([dict(row) for row in await connection.fetch(survey.DATABASES)], list[Database])
        collations = await connection.fetch(_COLLATIONS)
        left = await staging.left_behind(connection)
    present = {}
    for database in databases:
        if database.name in into:
            async with sql(dsn.database(database.name), operation="survey") as connection:
                present[database.name] = await connection.fetchval(_USER_OBJECTS)
    return Destination(
        where=dsn.where,
        version=server["version"],
        version_num=server["version_num"],
        bootstrap_role=server["bootstrap_role"],
        standby=server["standby"],
        databases={database.name: database for database in databases},
        unreachable=frozenset(row["name"] for row in names if not row["connectable"]),
        templates=frozenset(row["name"] for row in names if row["template"]),
        present=present,
        roles=frozenset(cluster["roles"]),
        tablespaces=frozenset(cluster["tablespaces"]),
        collations={(row["provider"], _alike(row["locale"] or row["collate"])): row["version"] for row in collations},
        left_behind=left,
    )


def findings(contents: Contents, here: Destination, *, replace: bool, pg_restore: int) -> Iterator[Finding]:
    """Compare a backup with a server, and with the pg_restore that is to bring the one into the other."""
    for severity, text, hint in (
        *_occupied(contents, here, replace=replace),
        *_versions(contents, here, pg_restore),
        *_kept(contents, here, replace=replace),
        *_collations(contents, here),
    ):
        yield Finding(severity=severity, subject=here.where, text=text, hint=hint)


Said = Iterator[tuple[Severity, str, str]]


def _occupied(contents: Contents, here: Destination, *, replace: bool) -> Said:
    if not replace:
        for database in here.filled(contents):
            text = f"{database} is there and holds {here.present[database.name]} objects"
            yield "note", text, "restore into another server, or have it replaced with replace=True"
    for database in here.existing(contents):
        if replace and database.name in here.templates:
            yield "blocker", f"{database} is a template there and is not replaced", "make it no template first"
        elif not replace and database.name in here.unreachable:
            yield "blocker", f"{database} is there and allows no connections", "let it allow them, or drop it"


def _versions(contents: Contents, here: Destination, pg_restore: int) -> Said:
    fitting = f"name programs of PostgreSQL {max(here.major, contents.pg_dump_major)} with bin_dir="
    if here.standby:
        yield "blocker", "the server is a standby, which can be written to by its primary only", "use the primary"
    if here.major < contents.major:
        yield (
            "blocker",
            f"the backup is of PostgreSQL {contents.major}, the server is {here.major}",
            "use a newer server",
        )
    if 0 < pg_restore < contents.pg_dump_major:
        text = (
            f"the backup is by pg_dump {contents.pg_dump_major}, the pg_restore here is {pg_restore} and cannot read it"
        )
        yield "blocker", text, fitting
    if pg_restore >= 17 > here.major:
        # It sets transaction_timeout, which an older server does not know, and the first error ends the restore.
        text = f"the server is PostgreSQL {here.major}, which a pg_restore of 17 or newer cannot restore into"
        yield "blocker", text, fitting


def _kept(contents: Contents, here: Destination, *, replace: bool) -> Said:
    for database in () if replace else here.existing(contents):
        found = here.databases.get(database.name)
        if found is None or here.present.get(database.name):
            continue
        if [_alike(rule) for rule in found.text_rules] != [_alike(rule) for rule in database.text_rules]:
            text = f"{database} is there with {_rules(found)}, the backup's has {_rules(database)}"
            yield "blocker", text, "drop it: the restore creates it as it was"
        else:
            text = (
                f"{database} is there and empty: it keeps its owner, settings and privileges, and is filled by one job"
            )
            yield "note", text, "drop it to have it created as it was, in parallel"
    roles = sorted(here.roles.intersection(contents.roles) - {here.bootstrap_role})
    if roles:
        yield "note", f"roles that are there are left as they are: {', '.join(roles)}", ""
    if here.left_behind:
        text = f"an interrupted restore has left {', '.join(here.left_behind)}"
        yield "note", text, "discard() drops them"


def _collations(contents: Contents, here: Destination) -> Said:
    for database in contents.databases:
        was = database.collation_version or database.library_version
        locale = database.locale or database.collate
        version = here.collations.get((database.provider, _alike(locale)))
        if was and version and was != version:
            text = f"{database} sorted text by {locale} of version {was}, this server has {version}: orders may differ"
            yield "warning", text, ""


def _alike(locale: str) -> str:
    """Make spellings of one locale equal: C.UTF-8 and C.utf8."""
    return locale.lower().replace("-", "")


def _rules(database: Database) -> str:
    return f"encoding {database.encoding} and locale {database.locale or database.collate}"
