"""The small file that the commands read: which archive, under which name, and where the cluster is.

    target = "orders"
    directory = "/backups"                  # or one of the two lines below
    container = "https://account.blob.core.windows.net/backups"     # of whom DefaultAzureCredential finds
    archive = "my_module:my_function"       # returns an Archiver
    key_file = "/etc/backups.key"           # seals what goes there; made by KeyFile.create
    data = "/var/lib/postgresql/16/main"    # without it: the folder that PostgreSQL runs its commands in

Everything else has a default; see `WalConfig`. It holds no secrets: keys and signatures are in files of their own or in
a vault, and a function finds them where it likes. It names code to run, so only its owner may write to it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve, field, fields_dict, frozen
from attrs.validators import deep_iterable, ge, instance_of, optional

from resilience.model.errors import Refused
from resilience.model.ids import checked_name

SPOOL = "pg_wal/resilience"
PATIENCE_SECONDS = 900.0
"""As long as a restore of ours waits: an outage of a few minutes shall stop no standby."""
VAULT = "https://"
"""How the identifier of a vault's key begins; the path of a key file does not."""
ARCHIVES = ("directory", "container", "archive")


def _seconds(value: object) -> object:
    return float(value) if isinstance(value, int) else value


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) else value


@frozen(kw_only=True)
class WalConfig:
    """What the commands have to know.

    `path` is the file and `stamp` which version of it this is. Into the `container` goes whoever azure-identity's
    DefaultAzureCredential finds, or whoever has the shared access signature in `signature_file`. What is archived is
    sealed with the key in `key_file`, or with the `vault_key` of that identifier; what was sealed with one of the
    `older` (paths and identifiers) can be read too. `spool` is a folder on pg_wal's file system, of this
    cluster alone. `lineage` is the system identifier that may write under `target`; without it, whichever wrote there
    first. `patience` is for how many seconds a file is fetched again while the archive does not answer, before recovery
    is told so and stops. `ahead` segments, and at most `ahead_bytes`, are fetched before they are asked for. A resident
    process leaves after `idle` seconds without work.
    """

    path: Path
    stamp: tuple[int, int] = (0, 0)
    target: str = field(validator=instance_of(str))
    directory: Path | None = field(default=None, converter=_path, validator=optional(instance_of(Path)))
    container: str | None = field(default=None, validator=optional(instance_of(str)))
    signature_file: Path | None = field(default=None, converter=_path, validator=optional(instance_of(Path)))
    archive: str | None = field(default=None, validator=optional(instance_of(str)))
    key_file: Path | None = field(default=None, converter=_path, validator=optional(instance_of(Path)))
    vault_key: str | None = field(default=None, validator=optional(instance_of(str)))
    older: list[str] = field(factory=list, validator=deep_iterable(instance_of(str), instance_of(list)))
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

    @property
    def key(self) -> str | None:
        """What the archive is sealed with: the path of a key file, or the identifier of a vault's key."""
        return self.vault_key if self.key_file is None else str(self.key_file)

    def wrong(self, what: str, hint: str = "") -> Refused:
        """Return what to raise for what the file says."""
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
    if "target" not in written or sum(each in written for each in ARCHIVES) != 1:
        raise _refused(path, f"it has to name target, and one of {', '.join(ARCHIVES)}")
    try:
        checked_name(str(written["target"]))
        config = WalConfig(path=path, stamp=stamped, **written)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise _refused(path, str(error.args[0] if error.args else error)) from error
    if problem := _contradiction(config):
        raise _refused(path, problem)
    files = [Path(each) for each in (config.key, *config.older) if each is not None and not each.startswith(VAULT)]
    for each in (config.directory, config.data, config.signature_file, *files):
        if each is not None and not each.is_absolute():
            raise _refused(path, f"{each} has to be a full path")
    return config


def _contradiction(config: WalConfig) -> str:
    if config.archive is not None and (config.key or config.older):
        return "key_file, vault_key and older go with directory and container; a function makes its archive with keys"
    if config.key_file is not None and config.vault_key is not None:
        return "it has to name key_file or vault_key; the other one may be among older"
    if config.vault_key is not None and not config.vault_key.startswith(VAULT):
        return f"vault_key: {config.vault_key!r} is no identifier of a vault's key"
    if config.container is not None and "?" in config.container:
        return "container: its URL ends before the question mark; a signature belongs into signature_file"
    if config.signature_file is not None and config.container is None:
        return "signature_file goes with container"
    return ""


def _refused(path: Path, what: str, hint: str = "") -> Refused:
    return Refused(what, operation="read", subject=str(path), hint=hint)
