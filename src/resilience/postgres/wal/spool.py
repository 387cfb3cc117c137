"""A folder on pg_wal's file system through which PostgreSQL gets files by a mere rename, and asks for others.

What restore_command wants is put there ahead. A hit costs PostgreSQL a shell and a rename; for anything else the shell
starts ask.py, which asks over a socket in the same folder. See PostgreSQL 26.3.4 for what the exit statuses mean: 1 to
125 say that the file is not there, so only a proven absence may end with one of them.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from attrs import define, field, frozen

from resilience.concurrency import in_thread, stop_tasks
from resilience.model.errors import ResilienceError, StorageFailed, Unsupported
from resilience.postgres.tools import Account

from . import ask
from .ask import ABSENT, SOCKET, UNKNOWN

__all__ = ["ABSENT", "UNKNOWN", "Answer", "Request", "Spool", "config_line"]

P = ParamSpec("P")
T = TypeVar("T")

ANSWER_SECONDS = 3600.0
_ASK = "ask.py"
_OWN = (SOCKET, _ASK)


@frozen
class Request:
    """What a program asks: to `fetch` the file of a name, or to `push` the file at a full path."""

    verb: str
    name: str


@frozen
class Answer:
    """An exit status, and a sentence for PostgreSQL's log.

    Of a fetch: 0 if the file is in the spool, ABSENT if it is proven not to be in the archive, UNKNOWN otherwise. With
    0 the text may be the name that the file has in the spool, if it is there under another one.
    """

    status: int
    text: str = ""


Handler = Callable[[Request], Awaitable[Answer]]


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()


@define
class Spool:
    """The folder, made when first needed. As root, everything in it belongs to `account`."""

    folder: Path = field(converter=_absolute)
    account: Account | None = field(default=None, kw_only=True)

    async def prepare(self) -> None:
        """Make the folder and what has to be in it. Raises StorageFailed."""
        await _do(self.folder, self._prepare)

    async def put(self, name: str, pieces: Iterable[bytes]) -> None:
        """Put a file there, whole or not at all; one of that name is replaced. Raises StorageFailed.

        It is not synced: PostgreSQL fetches again whatever it has not replayed when the machine goes down, and syncs
        what it keeps.
        """
        await _do(self.folder, self._put, name, pieces)

    async def names(self) -> frozenset[str]:
        """Return the names of the files that can be had."""
        return frozenset(entry for entry, _ in await _do(self.folder, self._files))

    async def size(self) -> int:
        """Return how many bytes the files have."""
        return sum(size for _, size in await _do(self.folder, self._files))

    async def drop(self, name: str) -> None:
        """Remove a file, if it is there."""
        await _do(self.folder, (self.folder / _plain(name)).unlink, missing_ok=True)

    async def remove(self) -> None:
        """Remove the folder and everything in it, if it is there."""
        await _do(self.folder, self._remove)

    @asynccontextmanager
    async def serving(self, handler: Handler) -> AsyncIterator[None]:
        """Answer those who ask, until leaving; who is waiting then gets no answer, and knows no more than before.

        An error of this library is answered with UNKNOWN and its sentence. Raises StorageFailed if there can be no
        socket. Whoever serves last is the one who is asked.
        """
        await self.prepare()
        serving: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(_serve(reader, writer, handler))
            serving.add(task)
            task.add_done_callback(serving.discard)

        listening, inode = await _do(self.folder, self._listen)
        server = await asyncio.start_unix_server(connected, sock=listening)
        try:
            yield
        finally:
            server.close()
            with suppress(FileNotFoundError):
                if (self.folder / SOCKET).stat().st_ino == inode:
                    (self.folder / SOCKET).unlink()
            await stop_tasks(list(serving))

    def is_served(self) -> bool:
        """Tell whether anybody answers there now."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{folder}/{SOCKET}")
            finally:
                os.close(folder)
            return True
        return False

    def command(
        self, *, python: str | None = None, seconds: float = ANSWER_SECONDS, fallback: Sequence[str] = ()
    ) -> str:
        """Return a restore_command that takes from here what is here and asks for the rest, waiting `seconds`.

        If nobody answers, `fallback` is run, a program by its full path; PostgreSQL's own `%f` and `%p` may stand in
        it, and it has to end with one of ask.py's statuses. `python` runs ask.py, by default one that the account can
        reach. Raises Unsupported if there is none.
        """
        program = python or interpreter(self.account)
        script = str(self.folder / _ASK)
        return fetching(str(self.folder), python=program, script=script, seconds=seconds, fallback=fallback)

    def _prepare(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._give(self.folder)
        source = Path(ask.__file__).read_bytes()
        # A copy, because the account may be unable to reach ours, and because it shall outlive us.
        if not (self.folder / _ASK).exists() or (self.folder / _ASK).read_bytes() != source:
            self._write(_ASK, [source])

    def _put(self, name: str, pieces: Iterable[bytes]) -> None:
        self._prepare()
        self._write(_plain(name), pieces)

    def _write(self, name: str, pieces: Iterable[bytes]) -> None:
        aside = self.folder / f".{name}.{os.getpid()}"
        try:
            aside.unlink(missing_ok=True)
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", 0) as file:
                for piece in pieces:
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[file.write(rest) :]
            self._give(aside)
            aside.rename(self.folder / name)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def _files(self) -> list[tuple[str, int]]:
        files = []
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name not in _OWN:
                    with suppress(FileNotFoundError):  # PostgreSQL takes them away at any time
                        files.append((entry.name, entry.stat(follow_symlinks=False).st_size))
        return files

    def _remove(self) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def _listen(self) -> tuple[socket.socket, int]:
        aside = f".{SOCKET}.{os.getpid()}"
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            (self.folder / aside).unlink(missing_ok=True)
            listening.bind(f"/proc/self/fd/{folder}/{aside}")  # the path of a socket may have 107 bytes only
            self._give(self.folder / aside)
            listening.listen()
            inode = (self.folder / aside).stat().st_ino
            (self.folder / aside).rename(self.folder / SOCKET)
        except BaseException:
            listening.close()
            raise
        finally:
            os.close(folder)
        return listening, inode

    def _give(self, path: Path) -> None:
        if self.account is not None and os.geteuid() == 0:
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)


def fetching(folder: str, *, python: str, script: str, seconds: float, fallback: Sequence[str] = ()) -> str:
    """Return a restore_command for a spool; see `Spool.command`. `script` is ask.py, or a copy of it."""
    asking = [python, "-I", "-S", script, folder, f"{seconds:g}"]
    words = " ".join([*map(quoted, asking), 'fetch %f "%p"', *(_word(word) for word in fallback)])
    return (
        f'mv -f {quoted(folder)}/%f "%p" 2>/dev/null || '
        f"{{ {words}; case $? in 0) ;; {ABSENT}) exit 1;; *) exit {UNKNOWN};; esac; }}"
    )


def quoted(word: str) -> str:
    """Quote a word for the shell, in a command whose `%` PostgreSQL looks at."""
    return shlex.quote(word).replace("%", "%%")


def config_line(name: str, value: str) -> str:
    """Return a line for postgresql.conf (PostgreSQL 20.1.1)."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"{name} = '{escaped}'"


def interpreter(account: Account | None) -> str:
    """Return a Python that an account can run: ours, or else the system's. Raises Unsupported."""
    candidates = [
        sys.executable,
        *filter(None, (shutil.which("python3", path=place) for place in ("/usr/bin", "/bin"))),
    ]
    for candidate in candidates:
        if account is None or os.geteuid() != 0 or reachable(Path(candidate)):
            return candidate
    raise Unsupported(
        f"the account {account.name if account else ''} can run no Python on this machine",
        hint="install one that everybody may run, such as /usr/bin/python3",
    )


def reachable(path: Path) -> bool:
    """Tell whether everybody may run a program (or enter a folder), also where it is only a link."""
    return all(each.stat().st_mode & 0o001 for way in (path, path.resolve()) for each in (way, *way.parents))


def _word(word: str) -> str:
    return f'"{word}"' if word in ("%f", "%p") else quoted(word)


def _plain(name: str) -> str:
    if not name or "/" in name or name.startswith(".") or name in _OWN:
        raise ValueError(f"{name!r} is no name for a file in a spool")
    return name


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
    try:
        with suppress(ConnectionError):
            verb, _, name = os.fsdecode((await reader.readline()).rstrip(b"\n")).partition(" ")
            if not name:
                return
            try:
                answer = await handler(Request(verb, name))
            except ResilienceError as error:
                answer = Answer(UNKNOWN, str(error))
            line = f"{answer.status} {' '.join(answer.text.split())}".strip().encode(errors="replace")
            writer.write(line[: ask.ANSWER_AT_MOST - 1] + b"\n")
            await writer.drain()
    finally:
        writer.close()


async def _do(folder: Path, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await in_thread(function, *args, **kwargs)
    except OSError as error:
        where = error.filename or folder
        raise StorageFailed(f"{error.strerror}: {where}", operation="spool", subject=str(folder)) from error
