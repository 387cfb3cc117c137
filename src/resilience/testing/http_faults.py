"""An HTTP server before another one: it forwards, and misbehaves as it is told."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from itertools import count
from typing import Self

import aiohttp
from aiohttp import web
from attrs import define, field, frozen
from yarl import URL

from .postgres import free_port

PIECE = 1 << 16
_OWN = ("transfer-encoding", "connection", "date", "content-length", "host")


@frozen(kw_only=True)
class Fault:
    """What happens to one request, instead of being forwarded as it is.

    With a `status` it is answered with that, Azure's error `code` and `headers`, and forwarded to nobody. `delay` are
    seconds before anything else. With `sent` so many bytes of its body come through, then both connections break; with
    `answered` it is carried out, and so many bytes of the answer come through: None of 0 means that it is lost whole.
    """

    status: int = 0
    code: str = ""
    headers: Mapping[str, str] = field(factory=dict)
    delay: float = 0.0
    sent: int | None = None
    answered: int | None = None


Script = Callable[[web.BaseRequest], Fault | None]


def nothing(_: web.BaseRequest) -> None:
    """Let everything through."""


def times(number: int, fault: Fault, *, when: Callable[[web.BaseRequest], bool] = lambda _: True) -> Script:
    """Make a script that does this to the first requests that fit."""
    counted = count()

    def script(request: web.BaseRequest) -> Fault | None:
        return fault if when(request) and next(counted) < number else None

    return script


@define
class HttpProxy:
    """Forwards to the server at `to`, a URL without a path; `script` says what happens to a request.

    `asked` are the requests that came, as `METHOD path?query`, `at_once` how many there were at once at the most. It
    listens at `url`, on the loopback; over TLS with the context `tls`. The server has to have a certificate that
    `trusts` knows.
    """

    to: str
    script: Script = nothing
    port: int = field(factory=free_port, kw_only=True)
    tls: ssl.SSLContext | None = field(default=None, kw_only=True, repr=False)
    trusts: ssl.SSLContext | None = field(default=None, kw_only=True, repr=False)
    asked: list[str] = field(factory=list, init=False)
    at_once: int = field(default=0, init=False)
    _busy: int = field(default=0, init=False)
    _session: aiohttp.ClientSession | None = field(default=None, init=False, repr=False)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Listen, in a thread with a loop of its own, until leaving."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="http-proxy", daemon=True)
        thread.start()
        stack = AsyncExitStack()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(stack), loop).result()
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _listen(self, stack: AsyncExitStack) -> None:
        opened = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self.trusts or True),
            auto_decompress=False,
            skip_auto_headers=["Content-Type"],
        )
        self._session = await stack.enter_async_context(opened)
        runner = web.ServerRunner(web.Server(self._serve), handle_signals=False, shutdown_timeout=0.1)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=self.tls).start()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse | None:  # noqa: ARG002  # others look
        """Answer in the server's place; None leaves it to the server."""
        return None

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.raw_path}")
        self._busy += 1
        self.at_once = max(self.at_once, self._busy)
        try:
            return await self._told(request, self.script(request) or Fault())
        finally:
            self._busy -= 1

    async def _told(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        await asyncio.sleep(fault.delay)
        if fault.status:
            async for _ in request.content.iter_chunked(PIECE):
                continue
            return error(fault.status, fault.code, fault.headers)
        with suppress(OSError, aiohttp.ClientError):
            if (answer := await self.answer(request)) is not None:
                return answer
            return await self._forwarded(request, fault)
        return _cut(request)

    async def _forwarded(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        async with self.ask(request, fault.sent) as (status, headers, content):
            if fault.answered is None:
                return web.Response(status=status, headers=headers, body=content)
            if fault.answered > 0:
                response = web.StreamResponse(status=status, headers=headers)
                response.content_length = len(content)
                await response.prepare(request)
                await response.write(content[: fault.answered])
            return _cut(request)

    @asynccontextmanager
    async def ask(
        self, request: web.BaseRequest, sent: int | None = None
    ) -> AsyncIterator[tuple[int, dict[str, str], bytes]]:
        """Ask the server the same, and return status, headers and content of its answer."""
        if self._session is None:
            raise RuntimeError("the proxy does not run")
        headers = {name: text for name, text in request.headers.items() if name.lower() not in _OWN}
        length = {"Content-Length": str(request.content_length)} if request.content_length is not None else {}
        data = _limited(request, sent) if request.content_length else None
        url = URL(self.to + request.raw_path, encoded=True)
        async with self._session.request(request.method, url, headers=headers | length, data=data) as response:
            content = await response.read()
            kept = {name: text for name, text in response.headers.items() if name.lower() not in _OWN}
            if request.method == "HEAD":
                kept["Content-Length"] = response.headers.get("Content-Length", "0")
            yield response.status, kept, content


def error(status: int, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with an error as Azure Storage does."""
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>told to</Message></Error>'
    named = {"x-ms-error-code": code} if code else {}
    return web.Response(status=status, headers={**named, **(headers or {})}, text=body, content_type="application/xml")


async def _limited(request: web.BaseRequest, sent: int | None) -> AsyncGenerator[bytes]:
    rest = sent
    async for data in request.content.iter_chunked(PIECE):
        yield data if rest is None else data[:rest]
        if rest is not None and (rest := rest - len(data)) <= 0:
            raise ConnectionResetError("told to break")


def _cut(request: web.BaseRequest) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
