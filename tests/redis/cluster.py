"""A real Redis Cluster of three masters on the loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import redis

from resilience.testing.machine import free_port
from resilience.testing.redis import TestRedis


class NewRedis(Protocol):
    """Makes a server; see the fixture `new_redis`."""

    def __call__(self, major: int = 7, /, **settings: str) -> TestRedis: ...


RANGES = ("0-5460", "5461-10922", "10923-16383")
KEYS = 600
SETTINGS = {"cluster_enabled": "yes", "cluster_node_timeout": "2000", "cluster_require_full_coverage": "yes"}


def filled(nodes: list[TestRedis]) -> list[TestRedis]:
    """Put some keys into a cluster, on every shard."""
    with client(nodes) as writing:
        for number in range(KEYS):
            writing.set(f"key:{number}", number)
    return nodes


def small_port() -> int:
    """Return a free port whose cluster bus, 10000 above it, is a port too."""
    while True:
        port = free_port()
        if port < 55_000:
            return port


def new_cluster(new_redis: NewRedis, major: int = 7, **settings: str) -> list[TestRedis]:
    """Start three masters that hold all slots between them."""
    nodes = [new_redis(major, cluster_port=str(free_port()), **SETTINGS, **settings) for _ in RANGES]
    for node, slots in zip(nodes, RANGES, strict=True):
        first, last = slots.split("-")
        node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
    for number, node in enumerate(nodes):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for node in nodes[1:]:
        nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.settings["cluster-port"])
    ready(nodes)
    return nodes


def ready(nodes: Sequence[TestRedis]) -> None:
    """Wait until every node finds the cluster whole."""
    deadline = time.monotonic() + 30
    while not all(_whole(node) for node in nodes):
        assert time.monotonic() < deadline, [node.ask("CLUSTER", "INFO") for node in nodes]
        time.sleep(0.05)


def _whole(node: TestRedis) -> bool:
    said = node.ask("CLUSTER", "INFO")
    assert isinstance(said, bytes)
    return {b"cluster_state:ok", b"cluster_known_nodes:%d" % len(RANGES)} <= set(said.split())


@contextmanager
def client(nodes: Sequence[TestRedis]) -> Iterator[redis.RedisCluster]:
    """A client that knows the whole cluster."""
    opened = redis.RedisCluster(host="127.0.0.1", port=nodes[0].port)
    try:
        yield opened
    finally:
        opened.close()
