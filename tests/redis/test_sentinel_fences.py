"""Fences on this machine that would prove nothing: the folder, the file or the url are another server's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from resilience.model.errors import FencingUnproven
from resilience.redis.failover.server import LocalRedis
from resilience.redis.fencer import LocalFencer
from resilience.redis.members import RedisMember
from resilience.testing.machine import owned_folder
from resilience.testing.sentinels import TestSentinels, running_sentinels


@pytest.fixture
def pair(tmp_owned: Path, redis_program: Callable[[int], Path]) -> Iterator[TestSentinels]:
    """Two servers, and nobody who watches them."""
    with running_sentinels(tmp_owned / "group", redis_program(7), 1, 0) as group:
        yield group


def member_of(group: TestSentinels, *, url: str = "a", data: Path | None = None, config: str = "a") -> RedisMember:
    folder = data or group.servers["a"].folder
    server = LocalRedis(folder, group.servers[config].config, program=group.binary)
    return RedisMember("a", url=group.servers[url].url, server=server)


async def test_a_folder_that_is_not_the_servers_proves_nothing(pair: TestSentinels) -> None:
    member = member_of(pair, data=owned_folder(pair.folder / "elsewhere"))
    with pytest.raises(FencingUnproven, match="not in"):
        await LocalFencer([member]).fence("a", epoch=1)
    named_nowhere = pair.master.config.read_text().replace("dir ", "# dir ")
    pair.master.config.write_text(named_nowhere)
    with pytest.raises(FencingUnproven, match="does not work in"):
        await LocalFencer([member]).fence("a", epoch=1)
    pair.master.pause()  # it cannot say who it is
    with pytest.raises(FencingUnproven, match="takes connections and hangs"):
        await LocalFencer([member]).fence("a", epoch=1)
    pair.master.resume()
    assert pair.master.alive


@pytest.mark.parametrize(("given", "why"), [({"url": "b"}, "does not work in"), ({"config": "b"}, "work in")])
async def test_a_url_or_a_file_of_another_server_ends_nobody(
    pair: TestSentinels, given: dict[str, str], why: str
) -> None:
    member = member_of(pair, **given)  # type: ignore[arg-type]
    with pytest.raises(FencingUnproven, match=why):
        await LocalFencer([member]).fence("a", epoch=1)
    assert all(each.alive for each in pair.servers.values())


async def test_one_that_does_not_let_us_in_is_fenced_all_the_same(pair: TestSentinels) -> None:
    locked = evolve(member_of(pair), url=pair.master.url.replace("redis://", "redis://nobody:wrong@"))
    assert (await LocalFencer([locked]).fence("a", epoch=1)).kind == "proven"
    assert not pair.master.alive
