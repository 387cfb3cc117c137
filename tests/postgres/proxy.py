"""A TCP proxy before a server: it counts, holds, spoils and cuts what the server sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from attrs import define, field

from resilience.concurrency import stop_tasks
from resilience.testing.postgres import TestServer

MIB = 1 << 20


@define
class Proxy:
    """Forwards connections to a server; `hold_after` and `spoil_at` count the bytes a connection got from the server.

    `held` is set when a connection has come to `hold_after`; it stays there until `release` or `cut`.
    """

    server: TestServer
    hold_after: int | None = None
    spoil_at: int | None = None
    port: int = 0
    held: asyncio.Event = field(factory=asyncio.Event)
    _go_on: asyncio.Event = field(factory=asyncio.Event)
    _writers: list[asyncio.StreamWriter] = field(factory=list)
    _tasks: set[asyncio.Task[None]] = field(factory=set)

    def dsn(self, user: str = "backup", **more: str) -> str:
        """Return a connection string that leads through the proxy."""
        return self.server.dsn(user, port=str(self.port), **more)

    def release(self) -> None:
        """Let everything go on."""
        self.hold_after = None
        self._go_on.set()

    def cut(self) -> None:
        """Break all connections, without a word to either side."""
        for writer in self._writers:
            if not writer.transport.is_closing():  # asyncio does not expect it of one that has ended
                writer.transport.abort()
        self._go_on.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection both ways."""
        try:
            answers, questions = await asyncio.open_connection("127.0.0.1", self.server.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers += [writer, questions]
        for task in (self._forward(reader, questions), self._forward(answers, writer, watched=True)):
            self._tasks.add(asyncio.create_task(task))

    async def close(self) -> None:
        """Break all connections and wait until nothing is forwarded any more."""
        self.cut()
        await stop_tasks(self._tasks)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, watched: bool = False) -> None:
        count = 0
        with suppress(OSError):
            while data := await reader.read(MIB // 16):
                if watched:
                    data = self._spoilt(data, count)
                count += len(data)
                if watched and self.hold_after is not None and count > self.hold_after:
                    self.held.set()
                    await self._go_on.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    def _spoilt(self, data: bytes, count: int) -> bytes:
        if self.spoil_at is None or not count <= self.spoil_at < count + len(data):
            return data
        at = self.spoil_at - count
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@asynccontextmanager
async def proxied(
    server: TestServer, *, hold_after: int | None = None, spoil_at: int | None = None
) -> AsyncIterator[Proxy]:
    """Run a proxy before a server; all its connections are broken on leaving."""
    proxy = Proxy(server, hold_after, spoil_at)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
        await proxy.close()
