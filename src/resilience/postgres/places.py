"""Where a restore may write: which folders, whose, with how much room."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

from attrs import frozen

from resilience.model.errors import Refused
from resilience.model.manifests import Manifest

from .server_manifest import MAIN
from .tools import Account

_APART = "give the data directory and every tablespace a folder of its own"


@frozen(kw_only=True)
class Places:
    """The folders of one restore: the data directory, and the tablespaces by oid; all belong to `account`."""

    data: Path
    locations: Mapping[str, Path]
    account: Account | None

    @property
    def folders(self) -> list[Path]:
        """Every folder that is written to; the data directory first."""
        return [self.data, *self.locations.values()]

    def root(self, part: str) -> Path:
        """Return where a part's tar is unpacked."""
        return self.data if part == MAIN else self.locations[part.removesuffix(".tar")]

    def filled(self) -> list[Path]:
        """Return the folders that are not empty, or no folders."""
        return [folder for folder in self.folders if not is_empty(folder)]

    def free(self) -> int:
        """Return the bytes that are free where the data directory is, or will be."""
        status = os.statvfs(_existing(self.data))
        return status.f_bavail * status.f_frsize

    def tightest(self, manifest: Manifest) -> tuple[int, int]:
        """Return needed and free bytes of the file system with the least room left after a restore."""
        needed: dict[int, int] = {}
        free: dict[int, int] = {}
        for part in manifest.parts:
            if part.name.endswith(".tar"):
                existing = _existing(self.root(part.name))
                device = existing.stat().st_dev
                needed[device] = needed.get(device, 0) + part.size
                status = os.statvfs(existing)
                free[device] = status.f_bavail * status.f_frsize
        return min(((needed[device], free[device]) for device in needed), key=lambda pair: pair[1] - pair[0])


def places_for(manifest: Manifest, data: Path, *, tablespaces: Mapping[str, str | Path], owner: str | None) -> Places:
    """Decide where a backup goes. Raises Refused if a named tablespace is not in it or nobody may own the files."""
    recorded = recorded_tablespaces(manifest)
    wanted = {str(location): path for location, path in tablespaces.items()}
    unknown = set(wanted) - set(recorded.values())
    if unknown:
        known = ", ".join(sorted(recorded.values())) or "none"
        raise Refused(
            f"the backup has no tablespace at {', '.join(sorted(unknown))}",
            operation="restore",
            subject=manifest.target,
            hint=f"it has: {known}",
        )
    locations = {
        # A tablespace inside the data directory is recorded relative to it.
        oid: Path(wanted[location]).absolute() if location in wanted else data / location
        for oid, location in recorded.items()
    }
    for one, other in combinations([data, *locations.values()], 2):
        if one == other or (one in other.parents and other.parent != data / "pg_tblspc") or other in one.parents:
            raise Refused(
                f"{one} and {other} lie in one another", operation="restore", subject=manifest.target, hint=_APART
            )
    return Places(data=data, locations=locations, account=account_for(data, owner))


def account_for(data: Path, owner: str | None) -> Account | None:
    """Return whom files and server shall belong to: `owner`, or as root whoever owns the folder; None is ourselves."""
    if os.geteuid() == 0:
        return Account.named(owner) if owner else Account.numbered(_existing(data).stat().st_uid)
    if owner is not None and Account.named(owner).uid != os.geteuid():
        raise Refused(f"only root can restore for another account, {owner}", operation="restore", subject=str(data))
    return None


def is_empty(folder: Path) -> bool:
    """Tell whether a folder is empty or absent."""
    try:
        return not any(_entries(folder))
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def _entries(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries)


def _existing(path: Path) -> Path:
    return next(up for up in (path, *path.parents) if up.exists())


def recorded_tablespaces(manifest: Manifest) -> dict[str, str]:
    """Return the tablespaces of a backup: their oids, and where they were."""
    recorded = manifest.details.get("tablespaces")
    if not isinstance(recorded, dict):
        return {}
    return {oid: location for oid, location in recorded.items() if isinstance(location, str)}
