"""Faults on real servers happen, are proven, and heal as far as they can."""

# ruff: noqa: ARG002  # a suite hands on what it is about

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import asyncpg
import pytest
from attrs import define, evolve

from resilience.concurrency import in_thread
from resilience.model.errors import Refused
from resilience.postgres.dropping import DroppingProxy
from resilience.postgres.faults import CutNetwork, HungServer, KilledPostmaster, knock
from resilience.postgres.processes import Process, look, postmaster, processes
from resilience.testing.drills import FaultSuite
from resilience.testing.postgres import TestServer, running_server

from ..conftest import FAST, NewServer

T = TypeVar("T")


@pytest.fixture(scope="module")
def broken(session_folder: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestServer]:
    """A server that every test may break."""
    with running_server(session_folder / "broken", postgres_bin(17), settings=FAST) as server:
        yield server


@pytest.fixture
def primary(broken: TestServer) -> TestServer:
    """A server to be broken, and whole again."""
    if postmaster(broken.data) is None:
        restarted(broken)
    return broken


async def answers(server: TestServer, port: int | None = None) -> bool:
    """Tell whether a new client gets an answer to a query soon."""
    try:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=port or server.port, user="postgres", database="postgres", timeout=0.5
        )
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    try:
        return bool(await connection.fetchval("select true", timeout=0.5))
    finally:
        connection.terminate()


def restarted(server: TestServer) -> None:
    """Start a server anew once everything of it has gone."""
    server.kill()
    server.start()


class TestKilledPostmaster(FaultSuite):
    heals = False
    step = 40

    @pytest.fixture
    def fault(self, primary: TestServer) -> KilledPostmaster:
        self.server = primary
        return KilledPostmaster(member="a", data=primary.data, dsn=primary.dsn())

    async def works(self, fault: KilledPostmaster) -> bool:  # type: ignore[override]
        return await answers(self.server)

    async def revive(self, fault: KilledPostmaster) -> None:  # type: ignore[override]
        if await in_thread(postmaster, self.server.data) is None:
            restarted(self.server)

    async def remove(self, fault: KilledPostmaster) -> None:  # type: ignore[override]
        self.server.stop()

    def again(self, fault: KilledPostmaster) -> KilledPostmaster:  # type: ignore[override]
        return evolve(fault)

    async def test_the_proof_names_the_process_and_what_a_client_is_told(self, fault: KilledPostmaster) -> None:
        server = postmaster(self.server.data)
        assert server is not None
        async with fault.inject() as proof:
            assert f"process {server.pid} was gone" in proof.evidence
            assert "have left by themselves" in proof.evidence
            assert "refused" in proof.evidence
            assert not server.alive
            assert processes(self.server.data) == []

    async def test_a_dsn_that_leads_to_another_server_is_refused(
        self, fault: KilledPostmaster, new_server: NewServer
    ) -> None:
        other = new_server(17)
        with pytest.raises(Refused, match="another server answers"):
            async with evolve(fault, dsn=other.dsn()).inject():
                raise AssertionError("it killed somebody")
        assert await answers(self.server) and await answers(other)


class TestHungServer(FaultSuite):
    step = 25

    @pytest.fixture
    def fault(self, primary: TestServer) -> HungServer:
        self.server = primary
        return HungServer(member="a", data=primary.data, dsn=primary.dsn())

    async def works(self, fault: HungServer) -> bool:  # type: ignore[override]
        return await answers(self.server)

    async def remove(self, fault: HungServer) -> None:  # type: ignore[override]
        self.server.stop()

    def again(self, fault: HungServer) -> HungServer:  # type: ignore[override]
        return evolve(fault)

    async def test_a_session_that_was_there_hangs_too_and_wakes_up(self, fault: HungServer) -> None:
        session = await asyncpg.connect(self.server.uri())
        try:
            async with fault.inject() as proof:
                assert "state T" in proof.evidence and "nothing for 0.3 s" in proof.evidence
                assert all(each.stopped for each in processes(self.server.data))
            assert await session.fetchval("select 1", timeout=5) == 1
        finally:
            session.terminate()

    async def test_what_outlived_its_postmaster_is_let_go_too(self, fault: HungServer) -> None:
        async with fault.inject():
            server = postmaster(self.server.data)
            assert server is not None
            os.kill(server.pid, signal.SIGKILL)
        for each in processes(self.server.data):
            assert not each.stopped
        assert not await answers(self.server)


@define
class InThread:
    """A proxy with a thread and a loop of its own: the tests count what is left running in theirs."""

    proxy: DroppingProxy
    loop: asyncio.AbstractEventLoop

    async def cut(self) -> int:
        return await self.run(self.proxy.cut())

    async def mend(self) -> None:
        await self.run(self.proxy.mend())

    async def run(self, coroutine: Coroutine[object, object, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))


@contextmanager
def proxied(server: TestServer) -> Iterator[InThread]:
    """Run a proxy before a server."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy")
    thread.start()
    stack, proxy = AsyncExitStack(), DroppingProxy("127.0.0.1", server.port)
    try:
        asyncio.run_coroutine_threadsafe(stack.enter_async_context(proxy.running()), loop).result()
        yield InThread(proxy, loop)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class TestCutNetwork(FaultSuite):
    @pytest.fixture
    def fault(self, primary: TestServer) -> Iterator[CutNetwork]:
        self.server = primary
        with proxied(primary) as network:
            self.network = network
            yield CutNetwork(member="a", network=network, dsn=primary.dsn(port=str(network.proxy.listens)))

    async def works(self, fault: CutNetwork) -> bool:  # type: ignore[override]
        return await answers(self.server, fault.dsn.addresses[0][1])

    async def remove(self, fault: CutNetwork) -> None:  # type: ignore[override]
        self.server.stop()

    def again(self, fault: CutNetwork) -> CutNetwork:  # type: ignore[override]
        return evolve(fault)

    async def test_the_server_itself_goes_on_and_its_sessions_too_once_mended(self, fault: CutNetwork) -> None:
        port = fault.dsn.addresses[0][1]
        session = await asyncpg.connect(host="127.0.0.1", port=port, user="postgres", database="postgres")
        try:
            async with fault.inject() as proof:
                assert "connections and all new ones lead nowhere" in proof.evidence
                assert await answers(self.server)
                assert await knock(fault.dsn, seconds=0.05) == "nothing for 0.05 s"
            assert await session.fetchval("select 1", timeout=5) == 1
        finally:
            session.terminate()


async def test_a_proxy_whose_port_is_taken_is_refused(primary: TestServer) -> None:
    with pytest.raises(Refused, match="cannot be listened on"):
        async with DroppingProxy("127.0.0.1", 1, primary.port).running():
            raise AssertionError("two listen on one port")


async def test_silence_is_what_a_client_is_told(primary: TestServer) -> None:
    dsn = KilledPostmaster(member="a", data=primary.data, dsn=primary.dsn()).dsn
    assert await knock(dsn, seconds=5) == ""
    beside = KilledPostmaster(member="a", data=primary.data, dsn=f"host={primary.folder} port={primary.port}").dsn
    assert await knock(beside, seconds=5) == ""
    primary.stop()
    assert "refused" in await knock(dsn)
    assert "no such file" in await knock(beside)


def test_a_process_is_known_by_more_than_its_number(primary: TestServer, tmp_path: Path) -> None:
    server = postmaster(primary.data)
    assert server is not None and server.alive and not server.stopped
    another = Process(server.pid, server.started + 1, server.parent, server.state)
    assert not another.alive
    another.send(signal.SIGKILL)
    assert server.alive
    assert look(1 << 22) is None
    Process(1 << 22, 0, 0, "S").send(signal.SIGKILL)
    assert postmaster(tmp_path) is None
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n")
    assert postmaster(tmp_path) is None, "that is our own process"
    assert processes(tmp_path) == []
