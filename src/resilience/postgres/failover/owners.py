"""Who else fails a PostgreSQL group over: managers leave traces in settings, connections and slots. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen


@frozen
class _Traces:
    owner: str
    settings: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    applications: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()


KNOWN = (
    _Traces("CloudNativePG", settings=("cnpg.config_sha256",), applications=("cnpg_", "cnpg-")),
    _Traces("Patroni", applications=("patroni",)),
    _Traces("repmgr", libraries=("repmgr",), applications=("repmgr",), slots=("repmgr_slot_",)),
    _Traces("pg_auto_failover", libraries=("pgautofailover",), applications=("pgautofailover_", "pg_auto_ctl")),
    _Traces("Stolon", applications=("stolon",), slots=("stolon_",)),
    _Traces("Azure Database for PostgreSQL", settings=("azure.extensions",)),
    _Traces("Amazon RDS", settings=("rds.extensions",)),
    _Traces("Google Cloud SQL", settings=("cloudsql.iam_authentication",)),
)
SETTINGS = tuple(name for each in KNOWN for name in each.settings)


def owner(
    settings: Mapping[str, str | None], *, libraries: str, applications: Sequence[str], slots: Sequence[str]
) -> str:
    """Name the manager that owns a server; empty if none has left a trace."""
    loaded = {name.strip().strip('"').rpartition("/")[2] for name in libraries.split(",")}
    for each in KNOWN:
        if (
            any(settings.get(name) is not None for name in each.settings)
            or any(name in loaded for name in each.libraries)
            or _any_begins(applications, each.applications)
            or _any_begins(slots, each.slots)
        ):
            return each.owner
    return ""


def _any_begins(names: Sequence[str], beginnings: tuple[str, ...]) -> bool:
    return bool(beginnings) and any(name.lower().startswith(beginnings) for name in names)
