"""A network of our own between clients and a server: it forwards, and on demand it drops everything without a word.

For drills and benches on one machine, where nobody may change the real network: let the clients, the standbys or the
route reach the server through it. A cut made here is one that no firewall rule outlives: it ends with the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Self

from attrs import define, field

from resilience.concurrency import stop_tasks
from resilience.model.errors import Refused

PIECE = 1 << 16


@define
class DroppingProxy:
    """Forwards TCP connections to `host` and `port`, and listens on `listens` (0: one that is free) of the loopback.

    Cut, it passes nothing on and says nothing: what was connected hangs, and a new connection is taken and never
    answered. Mended, all goes on where it was, as TCP does that has lost a few packets: also what was sent meanwhile.
    """

    host: str
    port: int
    listens: int = 0
    _through: asyncio.Event = field(factory=asyncio.Event, init=False, repr=False)
    _tasks: set[asyncio.Task[None]] = field(factory=set, init=False, repr=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen and forward until left; all connections are broken then. Raises Refused if the port is taken."""
        self._through.set()
        try:
            server = await asyncio.start_server(self._accept, "127.0.0.1", self.listens)
        except OSError as error:
            text = f"port {self.listens} cannot be listened on: {error.strerror}"
            raise Refused(text, operation="listen", subject="proxy") from error
        self.listens = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await stop_tasks(self._tasks)

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._tasks)

    async def cut(self) -> int:
        """Drop everything from now on; return how many connections hang by that."""
        self._through.clear()
        return self.connections

    async def mend(self) -> None:
        """Forward again, what was held too."""
        self._through.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._through.wait()
            with suppress(OSError):
                answers, questions = await asyncio.open_connection(self.host, self.port)
                try:
                    await _either(self._forward(reader, questions), self._forward(answers, writer))
                finally:
                    questions.transport.abort()
        finally:
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(PIECE):
                await self._through.wait()
                writer.write(data)
                await writer.drain()


async def _either(*ways: Coroutine[object, object, None]) -> None:
    tasks = [asyncio.create_task(each) for each in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await stop_tasks(tasks)
