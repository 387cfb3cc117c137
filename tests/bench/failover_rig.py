"""What a failover is tried on: a group of real servers, a PgBouncer, clients, a network, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import define, field, frozen

from failover_clients import TABLE, Route
from resilience.postgres import PostgresMember
from resilience.postgres.failover.server import LocalServer
from resilience.postgres.processes import postmaster, processes
from resilience.testing.machine import free_port
from resilience.testing.pgbouncer import TestPgBouncer, running_pgbouncer
from resilience.testing.postgres import TestServer
from resilience.testing.replication import TestGroup, running_group

HERE = Path(__file__).parent
POOL = "pool"
HOSTS = "hosts"
FIRST_WITHIN = 30.0
LOOK_AGAIN = 0.005


@frozen
class Mode:
    """What acknowledges a write: `sync` is the first primary's synchronous_standby_names."""

    name: str
    standbys: int
    sync: str = ""
    proxied: bool = False

    @property
    def synchronous(self) -> bool:
        """Whether a write waits for a standby."""
        return bool(self.sync)


@frozen
class Seen:
    """One line of the clients' log; see failover_clients."""

    kind: str
    route: str
    number: int
    sent: float
    answered: float
    what: str


@define
class Clients:
    """Writers and probers on some routes, in a process of their own, and what they have seen so far."""

    log: Path
    process: subprocess.Popen[str]
    seen: list[Seen] = field(factory=list)
    _read: int = 0
    _part: str = ""

    def look(self) -> list[Seen]:
        """Read what is new in the log; return all there is."""
        with self.log.open() as file:
            file.seek(self._read)
            new = file.read()
            self._read = file.tell()
        *lines, self._part = (self._part + new).split("\n")
        for line in lines:
            kind, route, number, sent, answered, what = line.split(" ")
            self.seen.append(Seen(kind, route, int(number), float(sent), float(answered), what))
        return self.seen

    def first(self, route: str, *, after: float = 0.0, by: str = "") -> Seen | None:
        """Return the first write on a route that was acknowledged after a moment, by one server or by any."""
        for each in self.look():
            if each.kind == "w" and each.route == route and each.answered > after and each.what.startswith(by):
                return each
        return None

    def acknowledged(self) -> dict[int, Seen]:
        """Return all writes that were acknowledged, by their numbers."""
        return {each.number: each for each in self.look() if each.kind == "w"}

    def two_writers(self) -> list[str]:
        """Say where a server took a write that was sent after its successor had taken one."""
        first: dict[str, float] = {}
        last: dict[str, Seen] = {}
        for each in self.look():
            if each.kind in "wp":
                first[each.what] = min(first.get(each.what, each.answered), each.answered)
                if each.what not in last or each.sent > last[each.what].sent:
                    last[each.what] = each
        order = sorted(first, key=lambda instance: first[instance])
        return [
            f"{old} took a write sent {last[old].sent - first[new]:.3f} s after {new} had taken one: {last[old]}"
            for place, old in enumerate(order)
            for new in order[place + 1 :]
            if last[old].sent > first[new]
        ]


@contextmanager
def clients_on(log: Path, routes: Sequence[Route]) -> Iterator[Clients]:
    """Run clients until leaving."""
    log.touch()
    command = [sys.executable, str(HERE / "failover_clients.py"), str(log), *map(str, routes)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    clients = Clients(log, process)
    try:
        deadline = time.monotonic() + FIRST_WITHIN
        while clients.first(routes[0].name) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing was acknowledged: {clients.seen[-1:]}")
            time.sleep(LOOK_AGAIN)
        yield clients
    finally:
        process.communicate()


@define
class Network:
    """Proxies before some ports, each with a port of its own."""

    ports: dict[int, int]
    process: subprocess.Popen[str]

    def tell(self, what: str, server: TestServer) -> None:
        """Cut or mend the way to a server."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what} {self.ports[server.port]}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()


@contextmanager
def network_before(servers: Iterable[TestServer]) -> Iterator[Network]:
    """Run proxies until leaving."""
    ports = {server.port: free_port() for server in servers}
    ways = [f"{port}:{to}" for to, port in ports.items()]
    command = [sys.executable, str(HERE / "failover_network.py"), *ways]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield Network(ports, process)
    finally:
        process.communicate()


@define
class Rig:
    """A group with everything around it."""

    mode: Mode
    folder: Path
    group: TestGroup
    pool: TestPgBouncer
    clients: Clients
    network: Network | None
    primary: str = "a"
    known_lost: set[int] = field(factory=set)

    def port(self, name: str) -> int:
        """Where clients and members find a server."""
        return self.network.ports[self.group.servers[name].port] if self.network else self.group.servers[name].port

    def members(self) -> tuple[PostgresMember, ...]:
        """The members, as they find each other."""
        return tuple(
            PostgresMember(
                name,
                dsn=f"host=127.0.0.1 port={self.port(name)} user=postgres dbname=postgres",
                server=LocalServer(server.data, bin_dir=server.bin_dir),
            )
            for name, server in self.group.servers.items()
        )

    @property
    def places(self) -> dict[str, str]:
        """The address of each member."""
        return {name: f"127.0.0.1:{self.port(name)}" for name in self.group.servers}

    def kill(self, name: str) -> None:
        """Kill a server's postmaster with SIGKILL; its processes notice and leave by themselves."""
        if (found := postmaster(self.group.servers[name].data)) is not None:
            found.send(signal.SIGKILL)

    def hang(self, name: str) -> None:
        """Stop all processes of a server."""
        data = self.group.servers[name].data
        if (found := postmaster(data)) is not None:
            found.send(signal.SIGSTOP)
        for _ in range(2):  # one may have been made meanwhile
            for each in processes(data):
                each.send(signal.SIGSTOP)

    def wake(self, name: str) -> None:
        """Let them go on, the postmaster last."""
        for each in sorted(processes(self.group.servers[name].data), key=lambda found: -found.started):
            each.send(signal.SIGCONT)

    def missing(self) -> list[Seen]:
        """Return the acknowledged writes that are not on the primary and were not missing before."""
        known = self.clients.acknowledged()
        said = self.group.servers[self.primary].psql("select id from acknowledged")
        there = set(map(int, said.split()))
        lost = [known[each] for each in sorted(known.keys() - there - self.known_lost)]
        self.known_lost.update(each.number for each in lost)
        return lost


@contextmanager
def rig(mode: Mode, folder: Path, bin_dir: Path) -> Iterator[Rig]:
    """Make a group, and have clients write to it, until leaving."""
    with ExitStack() as stack:
        # The clients' probers and writers come in anew all the time.
        settings = {"max_connections": "200", "wal_log_hints": "on"}
        group = stack.enter_context(running_group(folder / "servers", bin_dir, mode.standbys, settings=settings))
        network = stack.enter_context(network_before(group.servers.values())) if mode.proxied else None
        ports = {name: network.ports[each.port] if network else each.port for name, each in group.servers.items()}
        for name, server in group.servers.items():
            if network and name != "a":
                conninfo = f"host=127.0.0.1 port={ports['a']} user=postgres application_name={name}"
                server.psql(f"alter system set primary_conninfo = '{conninfo}'")
                server.psql("select pg_reload_conf()")
        if network:
            group.caught_up()
        primary = group.primary
        if mode.sync:
            primary.psql(f"alter system set synchronous_standby_names = '{mode.sync}'")
            primary.psql("select pg_reload_conf()")
        primary.psql(TABLE)
        databases = {"bench": f"host=127.0.0.1 port={ports['a']} dbname=postgres"}
        # As tuned as the raw way can be; ours does without.
        tuned = {"server_login_retry": "0.2", "log_connections": "0", "log_disconnections": "0"}
        pool = stack.enter_context(running_pgbouncer(databases, settings=tuned))
        routes = [
            Route(POOL, "bench", (("127.0.0.1", pool.port),)),
            Route(HOSTS, "postgres", tuple(("127.0.0.1", port) for port in ports.values())),
        ]
        clients = stack.enter_context(clients_on(folder / "clients.log", routes))
        yield Rig(mode, folder, group, pool, clients, network)
