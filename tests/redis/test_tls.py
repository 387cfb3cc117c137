"""Servers that speak TLS only: backed up, restored into, and refused where they cannot be trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilience import Archive, backup, restore
from resilience.model.errors import Refused, ResilienceError, Unreachable
from resilience.redis import RedisServer, RedisTarget
from resilience.stores import MemoryStore
from resilience.testing.machine import free_port
from resilience.testing.redis import TestRedis

from .conftest import NewRedis
from .data import contents, fill


def underscored(settings: dict[str, str]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in settings.items()}


@pytest.fixture
def server(new_redis: NewRedis, tls: dict[str, str]) -> TestRedis:
    """A server with TLS; without, only the test itself may talk to it."""
    port = str(free_port())
    return new_redis(7, tls_port=port, tls_auth_clients="no", tls_replication="yes", **underscored(tls))


def url(server: TestRedis, tls: dict[str, str], host: str = "127.0.0.1", **more: str) -> str:
    options = {"ssl_ca_certs": tls["tls-ca-cert-file"], **more}
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"rediss://{host}:{server.settings['tls-port']}?{query}"


async def test_a_backup_goes_over_tls_into_a_server_that_replicates_with_tls(
    server: TestRedis, new_redis: NewRedis, tls: dict[str, str], tmp_owned: Path
) -> None:
    fill(server)
    archive = Archive(MemoryStore())
    await backup(RedisTarget("cache", url=url(server, tls)), archive)
    port = str(free_port())
    other = new_redis(7, tls_port=port, tls_auth_clients="no", tls_replication="yes", **underscored(tls))
    into = RedisServer(url=url(other, tls), program=server.binary, within=tmp_owned, settings=tls)
    with pytest.raises(ResilienceError):
        await restore(archive, "cache", into=RedisServer(url=url(other, tls), program=server.binary, within=tmp_owned))
    await restore(archive, "cache", into=into)
    async with into.live() as live:
        assert await contents(live.url) == await contents(server.url)


async def test_a_client_certificate_is_shown_where_one_is_wanted(new_redis: NewRedis, tls: dict[str, str]) -> None:
    server = new_redis(7, tls_port=str(free_port()), tls_auth_clients="yes", **underscored(tls))
    archive = Archive(MemoryStore())
    with pytest.raises(Unreachable):
        await backup(RedisTarget("cache", url=url(server, tls)), archive)
    own = {"ssl_certfile": tls["tls-cert-file"], "ssl_keyfile": tls["tls-key-file"]}
    await backup(RedisTarget("cache", url=url(server, tls, **own)), archive)


async def test_a_server_that_cannot_be_trusted_is_refused(server: TestRedis, tls: dict[str, str]) -> None:
    archive = Archive(MemoryStore())
    untrusted = f"rediss://127.0.0.1:{server.settings['tls-port']}"
    with pytest.raises(Refused, match="certificate is not trusted"):
        await backup(RedisTarget("cache", url=untrusted), archive)
    await backup(RedisTarget("cache", url=f"{untrusted}?ssl_cert_reqs=none"), archive)
    with pytest.raises(Refused, match="cannot be read"):
        await backup(RedisTarget("cache", url=f"{untrusted}?ssl_ca_certs=/no/such/file"), archive)


async def test_tls_before_1_2_is_never_spoken(new_redis: NewRedis, tls: dict[str, str]) -> None:
    server = new_redis(
        7, tls_port=str(free_port()), tls_auth_clients="no", tls_protocols='"TLSv1.1"', **underscored(tls)
    )
    with pytest.raises(Unreachable):
        await backup(RedisTarget("cache", url=url(server, tls)), Archive(MemoryStore()))
