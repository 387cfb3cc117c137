"""The small file that the commands read: which archive, under which name, and where the cluster is.

    target = "orders"
    directory = "/backups"                  # or: archive = "my_module:my_function", which returns an Archiver
    key_file = "/etc/backups.key"           # seals what goes into that directory; made by KeyFile.create
    data = "/var/lib/postgresql/16/main"    # without it: the folder that PostgreSQL runs its commands in

Everything else has a default; see `WalConfig`. It holds no secrets: the key is in a file of its own, and a function
finds those where it likes. It names code to run, so only its owner may write to it.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from attrs import evolve, field, fields_dict, frozen
from attrs.validators import ge, instance_of, optional

from resilience.archive import Archive
from resilience.model.errors import Refused
from resilience.model.ids import checked_name
from resilience.primitives import Archiver
from resilience.stores import LocalStore

if TYPE_CHECKING:
    from resilience.keys import KeyFile

SPOOL = "pg_wal/resilience"
PATIENCE_SECONDS = 900.0
"""As long as a restore of ours waits: an outage of a few minutes shall stop no standby."""
T = TypeVar("T")


def _seconds(value: object) -> object:
    return float(value) if isinstance(value, int) else value


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) else value


@frozen(kw_only=True)
class WalConfig:
    """What the commands have to know.

    `path` is the file and `stamp` which version of it this is. `spool` is a folder on pg_wal's file system, of this
    cluster alone. `lineage` is the system identifier that may write under `target`; without it, whichever wrote there
    first. `patience` is for how many seconds a file is fetched again while the archive does not answer, before recovery
    is told so and stops. `ahead` segments, and at most `ahead_bytes`, are fetched before they are asked for. A resident
    process leaves after `idle` seconds without work.
    """

    path: Path
    stamp: tuple[int, int] = (0, 0)
    target: str = field(validator=instance_of(str))
    directory: Path | None = field(default=None, converter=_path, validator=optional(instance_of(Path)))
    archive: str | None = field(default=None, validator=optional(instance_of(str)))
    key_file: Path | None = field(default=None, converter=_path, validator=optional(instance_of(Path)))
    data: Path | None = field(default=None, converter=_path, validator=optional(instance_of(Path)))
    spool: Path = field(default=Path(SPOOL), converter=_path, validator=instance_of(Path))
    lineage: str | None = field(default=None, validator=optional(instance_of(str)))
    patience: float = field(default=PATIENCE_SECONDS, converter=_seconds, validator=[instance_of(float), ge(0)])
    idle: float = field(default=300.0, converter=_seconds, validator=[instance_of(float), ge(0)])
    ahead: int = field(default=8, validator=[instance_of(int), ge(0)])
    ahead_bytes: int = field(default=256 << 20, validator=[instance_of(int), ge(0)])

    @property
    def folder(self) -> Path:
        """The spool, as PostgreSQL's commands find it: relative to the data directory, unless either is named."""
        return self.spool if self.data is None else self.data / self.spool

    def located(self, data: Path | None = None) -> WalConfig:
        """Return the same with the data directory found: the one named, `data`, or the current folder.

        Raises Refused if there is no cluster.
        """
        found = Path(self.data or data or Path.cwd()).absolute()
        if not (found / "global/pg_control").is_file():
            raise Refused(
                "there is no PostgreSQL cluster",
                operation="look into",
                subject=str(found),
                hint=f'run this in the data directory, or write data = "…" in {self.path}',
            )
        return evolve(self, data=found)

    def archiver(self) -> Archiver:
        """Return the archive. Raises Refused if there is none where the file says, or its key cannot be read."""
        if self.directory is not None:
            if not self.directory.is_dir():
                raise self._wrong(f"directory: {self.directory} is no folder", "make it, or mount what belongs there")
            return Archive(LocalStore(self.directory), key=self._key())
        module, _, function = (self.archive or "").partition(":")
        beside = self.path.parent  # the function may stand beside the file, where nobody else can put anything
        if str(beside) not in sys.path and not beside.stat().st_mode & 0o022:
            sys.path.append(str(beside))
        try:
            make = cast("Callable[[], Archiver]", getattr(import_module(module), function))
        except (ImportError, AttributeError, ValueError) as error:
            raise self._wrong(f"archive: {self.archive!r} cannot be had: {error}", "name it module:function") from error
        return make()

    def _key(self) -> KeyFile | None:
        if self.key_file is None:
            return None
        try:
            from resilience.keys import KeyFile  # not to be waited for where nothing is sealed
        except ImportError as error:
            text = "key_file: sealing needs the package cryptography"
            raise self._wrong(text, "install resilience[sealing] into the Python that runs this") from error
        return KeyFile(self.key_file)

    def _wrong(self, what: str, hint: str = "") -> Refused:
        return Refused(what, operation="read", subject=str(self.path), hint=hint)


def load(path: str | Path) -> WalConfig:
    """Read a configuration file. Raises Refused, in one sentence, if it cannot be used."""
    path = Path(path).absolute()
    try:
        status = path.stat()
        written = tomllib.loads(path.read_text())
    except OSError as error:
        raise _refused(path, f"it cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _refused(path, f"it is no TOML: {error}") from error
    if status.st_mode & 0o022:
        raise _refused(path, "others than its owner may write to it", "chmod go-w")
    if status.st_uid not in (0, os.geteuid()):
        raise _refused(path, "it belongs to another account", "chown it to root, or to who runs the server")
    return _checked(path, stamp(status), written)


def stamp(status: os.stat_result) -> tuple[int, int]:
    """Return what changes whenever a file is written anew."""
    return status.st_ino, status.st_mtime_ns


def _checked(path: Path, stamped: tuple[int, int], written: Mapping[str, object]) -> WalConfig:
    known = set(fields_dict(WalConfig)) - {"path", "stamp"}
    if unknown := sorted(set(written) - known):
        raise _refused(path, f"nothing is called {', '.join(unknown)}", f"there are: {', '.join(sorted(known))}")
    if "target" not in written or ("directory" in written) == ("archive" in written):
        raise _refused(path, "it has to name target, and either directory or archive")
    try:
        checked_name(str(written["target"]))
        config = WalConfig(path=path, stamp=stamped, **written)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise _refused(path, str(error.args[0] if error.args else error)) from error
    if config.key_file is not None and config.directory is None:
        raise _refused(path, "key_file goes with directory; a function makes its archive with a key itself")
    for each in (config.directory, config.data, config.key_file):
        if each is not None and not each.is_absolute():
            raise _refused(path, f"{each} has to be a full path")
    return config


def _refused(path: Path, what: str, hint: str = "") -> Refused:
    return Refused(what, operation="read", subject=str(path), hint=hint)
