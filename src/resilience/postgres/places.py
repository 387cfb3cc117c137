"""Where a restore may write: which folders, whose, with how much room."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from attrs import frozen

from resilience.folders import account_for, existing, is_empty
from resilience.model.errors import Refused
from resilience.model.manifests import Manifest

from .server_manifest import MAIN
from .tools import Account

COMBINING = "resilience.combining"
"""Where the backups of a chain lie until they are combined, inside every folder that is restored."""
OUTPUT = "output"
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
        status = os.statvfs(existing(self.data))
        return status.f_bavail * status.f_frsize

    @property
    def apart(self) -> list[Path]:
        """Every folder that does not lie in another; the data directory first."""
        return [self.data, *(path for path in self.locations.values() if self.data not in path.parents)]

    def own(self, path: Path) -> None:
        """Give a file, folder or link to the account, if we are root."""
        if self.account is not None and os.geteuid() == 0:
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)

    def staged(self, manifest: Manifest, number: int) -> Places:
        """Return where one backup of a chain is unpacked before it is combined with the others."""
        data = self.data / COMBINING / str(number)
        locations = {}
        for oid, recorded in recorded_tablespaces(manifest).items():
            if not Path(recorded).is_absolute():
                locations[oid] = data / recorded  # inside the data directory
            elif oid in self.locations:
                locations[oid] = self.locations[oid] / COMBINING / str(number)
            else:
                locations[oid] = self.data / COMBINING / f"{number}-{oid}"  # dropped since
        return Places(data=data, locations=locations, account=self.account)

    def staged_output(self, oid: str = "") -> Path:
        """Return where a tablespace, or without an oid the data directory, is combined."""
        return (self.locations[oid] if oid else self.data) / COMBINING / OUTPUT

    def tightest(self, *chain: Manifest) -> tuple[int, int]:
        """Return needed and free bytes of the file system with the least room left after a restore.

        The backups of a chain lie there beside what they are combined to.
        """
        needed: dict[int, int] = {}
        free: dict[int, int] = {}
        for root, size in self._written(chain):
            above = existing(root)
            device = above.stat().st_dev
            needed[device] = needed.get(device, 0) + size
            status = os.statvfs(above)
            free[device] = status.f_bavail * status.f_frsize
        return min(((needed[device], free[device]) for device in needed), key=lambda pair: pair[1] - pair[0])

    def _written(self, chain: Sequence[Manifest]) -> Iterator[tuple[Path, int]]:
        """Yield what is written where."""
        for number, manifest in enumerate(chain):
            places = self if len(chain) == 1 else self.staged(manifest, number)
            for part in manifest.parts:
                if part.name.endswith(".tar"):
                    yield places.root(part.name), part.size
        if len(chain) > 1:
            for part in chain[-1].parts:
                if part.name.endswith(".tar"):
                    yield self.root(part.name), _combined(part.name, chain)


def _combined(part: str, chain: Sequence[Manifest]) -> int:
    """Return how large a part is when the chain is combined: as the server said, but at most all of it together."""
    sizes = [each.size for manifest in chain for each in manifest.parts if each.name == part]
    said = chain[-1].details.get("sizes")
    size = said.get("" if part == MAIN else part.removesuffix(".tar")) if isinstance(said, dict) else None
    # WAL and the headers of a tar are not in what the server says; the last backup's are at most as large as it is.
    return min(size + sizes[-1], sum(sizes)) if isinstance(size, int) else sum(sizes)


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


def recorded_tablespaces(manifest: Manifest) -> dict[str, str]:
    """Return the tablespaces of a backup: their oids, and where they were."""
    recorded = manifest.details.get("tablespaces")
    if not isinstance(recorded, dict):
        return {}
    return {oid: location for oid, location in recorded.items() if isinstance(location, str)}
