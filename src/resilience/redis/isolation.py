"""An isolated Redis server on restored data: it never acts as the one that the data was taken from.

It listens on a Unix socket in a folder of its own only, follows nobody, evicts nothing and writes no file. What is in
the data cannot make it talk to anybody: a Redis's replication, cluster, users and modules are in its configuration, and
it gets none of that. Keys whose time has come expire, as they would anywhere.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from attrs import field, frozen

from resilience.concurrency import in_thread
from resilience.folders import write_durably
from resilience.model.errors import Corrupt, Interrupted, ResilienceError, Unavailable, Unsupported
from resilience.programs import Account, Running, started

from .client import Url, commands
from .conf import conf
from .survey import Info, ask_info

READY_SECONDS = 3600.0
"""Loading takes as long as there is data; a server that hangs has to end some time."""
_LOOK_SECONDS = 0.02
_VERSION = re.compile(r"(Redis|Valkey) server v=(([0-9]+)\.([0-9]+)[0-9.]*)")
_ALWAYS = ("overcommit", "Configuration loaded", "Server initialized", "Redis version=")
_BROKEN = ("rdb", "loading the db", "bad file format", "unexpected end of file", "aof manifest")


@frozen
class LiveRedis:
    """A running, isolated server: `url` is where, for the client of your choice. It may hold a password."""

    url: str = field(repr=False)

    async def info(self) -> Info:
        """Ask what it says about itself."""
        async with commands(Url.parse(self.url), operation="look") as client:
            return await ask_info(client, "everything")


@frozen
class Login:
    """What a server asks for: a user, or without a name everybody, and a password."""

    password: str = field(repr=False)
    user: str = ""

    @property
    def lines(self) -> str:
        """Return lines of redis.conf."""
        named = f"user {self.user} on ~* &* +@all #{sha256(self.password.encode()).hexdigest()}\n" if self.user else ""
        return conf({"requirepass": self.password}) + named

    @property
    def userinfo(self) -> str:
        """Return what stands before the place in a URL."""
        return f":{quote(self.password, safe='')}@"


@frozen
class Program:
    """A redis-server (or valkey-server) that is installed."""

    path: str
    product: str
    version: str
    major: int
    minor: int


async def find_program(program: str | Path | None) -> Program:
    """Look a server's program up, by default redis-server on the PATH, and ask for its version. Raises Unsupported."""
    wanted = str(program or "redis-server")
    path = shutil.which(wanted)
    if path is None:
        raise Unsupported(f"there is no program {wanted}", hint="install Redis, or name its redis-server with program=")
    async with started([path, "--version"], stdout=True) as running:
        printed = (await running.read_all()).decode(errors="replace")
        await running.succeed(Unsupported)
    match = _VERSION.search(printed)
    if match is None:
        raise Unsupported(f"{path} does not say its version: {printed.strip()!r}")
    return Program(path, match[1].lower(), match[2], int(match[3]), int(match[4]))


@frozen(kw_only=True)
class Isolation:
    """How to run an isolated server in the folder `data`, as `account`; `settings` go beyond the usual ones."""

    program: str
    data: Path
    account: Account | None
    databases: int = 16
    modules: Sequence[str] = ()
    settings: Mapping[str, str] = field(factory=dict, repr=False)

    @asynccontextmanager
    async def run(self, login: Login | None = None, **more: str) -> AsyncIterator[LiveRedis]:
        """Run it until it has loaded its data; ended on leaving, and nothing is saved.

        With a `login` nobody may do anything without it. `more` are settings of this run, `_` for `-`. Raises Corrupt
        if it cannot load the data, Interrupted if it does not start for another reason.
        """
        folder = _folder(self.account)
        login_lines, user = (login.lines, login.userinfo) if login is not None else ("", "")
        try:
            lines = self._lines(folder, more) + login_lines
            await in_thread(write_durably, folder / "conf", lines.encode(), self.account)
            async with started([self.program, str(folder / "conf")], account=self.account, cwd=self.data) as running:
                live = LiveRedis(f"unix://{user}{quote(str(folder / 'socket'))}")
                await _ready(live, running, folder / "log")
                yield live
        finally:
            await in_thread(shutil.rmtree, folder, ignore_errors=True)

    def _lines(self, folder: Path, more: Mapping[str, str]) -> str:
        settings = {
            "dir": str(self.data),
            "port": "0",
            "unixsocket": str(folder / "socket"),
            "unixsocketperm": "700",
            "logfile": str(folder / "log"),
            "daemonize": "no",
            "save": "",
            "appendonly": "no",
            "maxmemory": "0",
            "databases": str(self.databases),
            **self.settings,
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        return conf(settings) + "".join(conf({"loadmodule": module}) for module in self.modules)


def _folder(account: Account | None) -> Path:
    """Make a folder with a short path, since that of a socket has 107 bytes at most (unix(7))."""
    folder = Path(tempfile.mkdtemp(prefix="resilience-redis-", dir="/tmp"))  # made anew, for us alone
    if account is not None and os.geteuid() == 0:
        os.chown(folder, account.uid, account.gid)
    return folder


async def _ready(live: LiveRedis, running: Running, log: Path) -> None:
    """Wait until a server has loaded its data."""
    deadline = asyncio.get_running_loop().time() + READY_SECONDS
    while running.process.returncode is None and asyncio.get_running_loop().time() < deadline:
        try:
            if not (await live.info()).number("loading"):
                return
        except Unavailable:
            pass  # it does not listen yet
        await asyncio.sleep(_LOOK_SECONDS)
    raise await in_thread(_why, log, running.said)


def _why(log: Path, said: str) -> ResilienceError:
    """Say why a server did not start, with its own last words."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-200:]
    except OSError:
        lines = []
    # Every line begins with who wrote it, when, and a mark: '#' is a warning.
    warnings = [line.partition(" # ")[2] for line in lines if " # " in line]
    warnings = [line for line in warnings if not any(words in line for words in _ALWAYS)]
    text = "; ".join(warnings[-4:]) or said or "it said nothing"
    kind = Corrupt if any(word in text.lower() for word in _BROKEN) else Interrupted
    return kind(f"the server did not start on it: {text}", operation="start")
