"""PostgresDataDirectory: a physical backup becomes a data directory again, proven by starting a server on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import ClassVar, Literal, get_args

from attrs import define, evolve, field
from attrs.converters import optional
from attrs.validators import ge, in_

from resilience.concurrency import finish, in_thread
from resilience.folders import is_empty, write_durably
from resilience.model.capture import Restored
from resilience.model.errors import Conflict, Interrupted, Refused, ResilienceError, StorageFailed, Unsupported
from resilience.model.facts import DestinationFacts
from resilience.model.findings import Finding, blocker
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.planning.restore import plan_restore
from resilience.primitives import Log, Reached, StoredBackup

from . import stopping
from .client import Dsn, parse_dsn
from .combining import PROGRAM as COMBINE
from .ending import End, Ending
from .isolation import READY_SECONDS, Isolation, LiveServer
from .mark import MARK, Mark, unfinished
from .new_tablespaces import NewTablespaces, open_up
from .places import Places, places_for
from .recovery import Recovery
from .tools import Tools
from .unpacking import Unpacking
from .untar import PG_CONTROL, FileSystems
from .wal.names import history_name
from .wal.prefetch import Feeder, order, segments_in
from .wal.source import WalSource
from .wal.spool import Spool, interpreter

PATIENCE_SECONDS = 900.0
PROGRAMS = ("postgres", "pg_controldata", "pg_ctl")


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()


@define
class PostgresDataDirectory:
    """An empty or absent folder that a base backup is restored into, with the incremental ones that follow it.

    `bin_dir` has the programs of the backup's own major version; without it they are looked for on the PATH.
    `tablespaces` maps the location a tablespace had to the one it gets; one that is not named goes where it was. As
    root, files and server belong to `owner`, by default whoever owns the folder (or the nearest one that exists). With
    `leave="running"` the server is started with the cluster's own configuration once the restore is proven; it then
    archives as that says, its new timeline too, whose number the log does not have yet. `preload`
    names libraries that recovery needs (custom WAL resource managers); until then no other is loaded. A tablespace that
    was created after the backup would be where it was, in use or not: replaying that is refused, unless
    `new_tablespaces` says that nobody else on this machine uses such folders (`discard` leaves what is in them).

    `end` is what is left, once the target is met: `promote`: a primary on a new timeline. `pause` and `shutdown`: a
    server still in recovery, which pauses or shuts down there again whenever it is started, until it is promoted or
    given a further target; asked for everything there is, it waits for more as a standby does. `standby`: a standby,
    which goes on with `restore_command` and follows `primary` (its connection string) through `slot`. A password in it
    is written to postgresql.auto.conf, which belongs to the account alone. A store that does not answer while recovery
    runs is asked again for `patience` seconds.
    """

    system: ClassVar[str] = "postgresql"
    accepts: ClassVar[tuple[str, ...]] = ("base", "incremental")
    replays: ClassVar[tuple[str, ...]] = ("base", "incremental")

    path: Path = field(converter=_absolute)
    bin_dir: str | Path | None = field(default=None, kw_only=True)
    tablespaces: Mapping[str, str | Path] = field(factory=dict, kw_only=True)
    owner: str | None = field(default=None, kw_only=True)
    leave: Literal["stopped", "running"] = field(default="stopped", kw_only=True)
    preload: Sequence[str] = field(default=(), kw_only=True)
    end: End = field(default="promote", validator=in_(get_args(End)), kw_only=True)
    primary: Dsn | None = field(default=None, converter=optional(parse_dsn), kw_only=True)
    slot: str = field(default="", kw_only=True)
    restore_command: str = field(default="", repr=False, kw_only=True)
    new_tablespaces: bool = field(default=False, kw_only=True)
    patience: float = field(default=PATIENCE_SECONDS, validator=ge(0), kw_only=True)
    _places: Places | None = field(default=None, init=False, repr=False)
    _restored: Isolation | None = field(default=None, init=False, repr=False)
    _again: Mapping[str, str] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.end == "shutdown" and self.leave == "running":
            raise ValueError("a server that is to shut down at its target cannot be left running")
        if self.end != "standby" and (self.primary is not None or self.slot):
            raise ValueError("only a standby follows a primary: end='standby'")

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.path)

    async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts:
        """Look whether the folders are empty and large enough and the programs fit. Writes nothing."""
        room = await in_thread(self._room, self._where(chain[-1]), chain)
        return evolve(room, findings=(*room.findings, *await self._misfits(chain)))

    async def apply(
        self,
        plan: RestorePlan,
        *,
        chain: Sequence[StoredBackup],
        log: Log | None = None,
        reached: Reached | None = None,
    ) -> Restored:
        """Restore a base backup or a chain and replay the log up to the target; see `RestoreDestination.apply`.

        Raises Refused if something has appeared here since the plan was made (NotRecoverable if the log turns out not
        to hold the target), StorageFailed if the disk is full, Unavailable if the store stays away, Corrupt (LogGap) if
        the archive is damaged, Interrupted if the server cannot start or stops elsewhere than it was asked to.
        Cancelled or failed, no server runs and none can be started here, unless that was at the very end: then the
        restore is complete. `discard` removes what is here.
        """
        manifests = [backup.manifest for backup in chain]
        manifest = manifests[-1]
        if plan.chain != tuple(each.id for each in manifests):
            raise ValueError(f"the plan restores {', '.join(plan.chain)}, not {', '.join(e.id for e in manifests)}")
        places = self._where(manifest)
        plan_restore(manifests, await in_thread(self._room, places, manifests))
        if plan.replay:
            if log is None:
                raise ValueError("the plan replays a log, but none was given")
            stopping.settings_for(plan.until)
            interpreter(places.account)
        self._places = places
        mark = Mark(self.path, places.account)
        try:
            await Unpacking(places, mark, Tools.at(self.bin_dir)).unpack(chain)
            self._restored = self._isolation(manifest, places)
            restored = await self._recover(plan, manifest, log=log, mark=mark, reached=reached)
        finally:
            mark.release()
        if self.leave == "running":
            await self._start()
        return restored

    @asynccontextmanager
    async def live(self) -> AsyncIterator[LiveServer]:
        """Run an isolated server on the restored directory; see `RestoreDestination.live`."""
        if self._restored is None:
            raise Refused("nothing has been restored here yet", operation="start", subject=self.name)
        async with self._restored.run(self._again) as server:
            await server.ready("select true", seconds=READY_SECONDS)
            yield LiveServer(dsn=server.dsn.uri())

    async def discard(self) -> None:
        """Remove what a restore put here, finished by this object or interrupted.

        Raises Refused if it is anything else, Conflict if a restore or a server by somebody else still runs here.
        """
        folders = await in_thread(self._folders_to_discard)
        if self._restored is not None and await in_thread(_runs, self.path):
            await self._pg_ctl("stop", "-m", "immediate")
        try:
            for folder in folders:
                await in_thread(_empty, folder)
        except OSError as error:
            raise StorageFailed(
                f"{error.strerror}: {error.filename}", operation="discard", subject=self.name, hint="discard it again"
            ) from error
        self._restored = self._places = None

    async def _recover(
        self, plan: RestorePlan, manifest: Manifest, *, log: Log | None, mark: Mark, reached: Reached | None
    ) -> Restored:
        """Recover, then make everything durable at once and lift the mark.

        The server syncs nothing meanwhile: what a crash of the machine leaves is still behind the mark, which is
        durable. syncfs(2) reports every write that failed since the file systems were opened, the server's too.
        """
        isolation, places = self._restored, self._places
        if isolation is None or places is None:
            raise ValueError("nothing has been unpacked")
        disks = FileSystems()
        try:
            await in_thread(disks.open, places.folders)
            feeder = await self._feeder(plan, manifest, log, isolation)
            findings = await self._other_timelines(log) if feeder is None and log is not None else []
            ending = Ending(end=self.end, primary=self.primary, slot=self.slot, restore_command=self.restore_command)
            new = NewTablespaces(self.path, self.new_tablespaces)
            recovery = Recovery(
                isolation=isolation,
                manifest=manifest,
                plan=plan,
                feeder=feeder,
                ending=ending,
                new_tablespaces=new,
                reached=reached,
            )
            restored = await recovery.run()
            self._restored, self._again = recovery.isolation, recovery.again
            await in_thread(recovery.settle, mark)
            await in_thread(disks.open, await in_thread(new.folders))
            await in_thread(disks.sync)
            await in_thread(mark.lift)
        except OSError as error:
            raise StorageFailed(
                f"{error.strerror}: {error.filename or self.path}", operation="restore", subject=self.name
            ) from error
        finally:
            disks.close()
        return evolve(restored, findings=(*restored.findings, *findings))

    async def _other_timelines(self, log: Log) -> list[Finding]:
        """Put the histories of the timelines that are taken where a server that ends its recovery looks for them."""
        if self.end != "promote":
            return []
        try:
            branches = (await log.survey()).branches
        except ResilienceError as error:
            text = f"which timelines are taken cannot be read, so it may have begun one of that number again: {error}"
            return [Finding(severity="warning", subject=self.name, text=text, hint="archive it under another name")]
        account = None if self._places is None else self._places.account
        for branch in branches:
            path = self.path / "pg_wal" / history_name(branch.name)
            if branch.text and not path.exists():
                await in_thread(write_durably, path, branch.text.encode(), account, mode=0o600)
        return []

    async def _feeder(
        self, plan: RestorePlan, manifest: Manifest, log: Log | None, isolation: Isolation
    ) -> Feeder | None:
        if not plan.replay or log is None:
            return None
        size = (await isolation.control()).segment_size
        wal = self.path / "pg_wal"
        here = await in_thread(segments_in, wal)
        # A primary ends its last segment when a backup ends; a standby cannot.
        whole = here[:-1] if manifest.details.get("from_standby") else here
        ends = None if plan.until.kind == "latest" else plan.replay[-1].ends.offset
        return Feeder(
            source=WalSource(log, size),
            spool=Spool(wal / "resilience", account=isolation.account),
            planned=order(plan.replay, size),
            here=whole,
            spare=here[len(whole) :],
            ends=ends if plan.to_the_end else None,
            enough=ends,
            patience=self.patience,
        )

    async def _start(self) -> None:
        try:
            # A server that outlives us must not write into our pipes: its first words go to a file.
            await self._pg_ctl("start", "-l", str(self.path / "startup.log"))
        except BaseException:
            with suppress(Interrupted):
                await finish(self._pg_ctl("stop", "-m", "fast"))
            raise

    def _where(self, manifest: Manifest) -> Places:
        return places_for(manifest, self.path, tablespaces=self.tablespaces, owner=self.owner)

    def _room(self, places: Places, chain: Sequence[Manifest]) -> DestinationFacts:
        try:
            filled = places.filled()
            needed, free = places.tightest(*chain)
        except OSError as error:
            raise Refused(
                f"it cannot be looked at: {error.strerror}: {error.filename}", operation="restore", subject=self.name
            ) from error
        return DestinationFacts(
            destination=str(filled[0]) if filled else self.name,
            system=self.system,
            empty=not filled,
            needed=needed,
            free=free,
            findings=tuple(
                Finding(severity="note", subject=str(folder), text="not empty", hint=_hint(folder, self.path))
                for folder in filled
            ),
        )

    async def _misfits(self, chain: Sequence[Manifest]) -> list[Finding]:
        """Find what keeps the programs here from running the backup."""
        tools = Tools.at(self.bin_dir)
        blockers = []
        try:
            for program in PROGRAMS if len(chain) == 1 else (*PROGRAMS, COMBINE):
                tools.path(program)
            found, wanted = await tools.major("postgres"), chain[-1].details.get("major")
            if found != wanted:
                blockers.append((f"the backup is of PostgreSQL {wanted}, the programs are of {found}", _WRONG_MAJOR))
        except Unsupported as missing:
            blockers.append((missing.what, missing.hint))
        return [blocker(self.name, text, hint) for text, hint in blockers]

    def _isolation(self, manifest: Manifest, places: Places) -> Isolation:
        return Isolation(
            tools=Tools.at(self.bin_dir),
            data=self.path,
            account=places.account,
            role=str(manifest.details.get("login_role") or manifest.details.get("bootstrap_role") or "postgres"),
            database=_database(manifest),
            preload=self.preload,
        )

    async def _pg_ctl(self, action: str, *options: str) -> None:
        tools = Tools.at(self.bin_dir)
        account = None if self._places is None else self._places.account
        arguments = [action, "-D", str(self.path), "-w", "-s", *options]
        async with tools.start("pg_ctl", arguments, account=account) as running:
            await running.succeed(Interrupted)

    def _folders_to_discard(self) -> list[Path]:
        if folders := unfinished(self.path):
            if _runs(self.path):
                raise Conflict("a server runs on it", operation="discard", subject=self.name, hint="stop it first")
            return folders
        if self._restored is not None and self._places is not None:
            return [*self._places.locations.values(), self.path]
        if is_empty(self.path):
            return []
        raise Refused(
            "what is here was put here neither by this object nor by a restore that was interrupted",
            operation="discard",
            subject=self.name,
            hint="remove it yourself if you are sure",
        )


_WRONG_MAJOR = "name the programs of the backup's own major version with bin_dir="


def _database(manifest: Manifest) -> str:
    """Choose a database to connect to: `postgres` may have been dropped."""
    recorded = manifest.details.get("databases")
    listed = recorded if isinstance(recorded, list) else []
    names = [str(each["name"]) for each in listed if isinstance(each, dict)]
    return next((name for name in names if name == "postgres"), names[0] if names else "postgres")


def _hint(folder: Path, data: Path) -> str:
    if folder == data:
        return "choose an empty or absent folder"
    return f"map this tablespace to an empty folder: tablespaces={{{str(folder)!r}: …}}"


def _runs(data: Path) -> bool:
    """Tell whether the process that postmaster.pid names is alive."""
    try:
        os.kill(int((data / "postmaster.pid").read_text().split("\n", 1)[0]), 0)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _empty(folder: Path) -> None:
    """Remove everything in a folder: pg_control first, so that nothing half-removed can start; the mark last."""
    with suppress(FileNotFoundError, NotADirectoryError):
        (folder / PG_CONTROL).unlink()
    open_up(folder)
    with suppress(FileNotFoundError):
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == MARK):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
