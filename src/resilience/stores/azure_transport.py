"""What carries the SDK's requests: its own aiohttp transport, over one session that every client shares.

A client with a transport of its own would read certificates anew, for every request if they are a private authority's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import aiohttp
from attrs import frozen
from azure.core.pipeline.transport import AioHttpTransport

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from azure.core.pipeline.transport import AsyncHttpResponse, HttpRequest
    from azure.core.rest import AsyncHttpResponse as RestResponse
    from azure.core.rest import HttpRequest as RestRequest

Body: TypeAlias = Sequence[bytes | memoryview]

SENT_AT_ONCE = 256 << 10
"""What is encrypted in one go: it stays in the processor's cache, where larger pieces cost up to twice the time."""
READ_AT_ONCE = 1 << 20
CONNECTIONS = 64
CONNECT_SECONDS = 15.0


@frozen
class Sent(AsyncIterable[memoryview]):
    """The body of a request, sent in small pieces without copying; between them others have their turns.

    It can be sent again, as after a challenge.
    """

    body: Body

    async def __aiter__(self) -> AsyncGenerator[memoryview]:
        for piece in self.body:
            view = memoryview(piece)
            for start in range(0, len(view), SENT_AT_ONCE):
                yield view[start : start + SENT_AT_ONCE]
                await asyncio.sleep(0)


def opened(context: ssl.SSLContext, proxy: str | None) -> aiohttp.ClientSession:
    """Open a session. Nothing of it comes from the environment."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context, keepalive_timeout=60),
        skip_auto_headers=["Content-Type", "Accept-Encoding"],
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=READ_AT_ONCE,
        proxy=proxy,
    )


class Transport(AioHttpTransport):  # type: ignore[misc]  # azure-core loads it when it is first named
    """Sends what the SDK asks, and reads every answer to its end.

    So a download that breaks off fails like everything else, and our policy asks again; the SDK's own would not know of
    any deadline. `answered` says whether there was any answer, `ending` whether a connection has ended by itself.
    """

    def __init__(self, session: aiohttp.ClientSession, seconds: float) -> None:
        super().__init__(
            session=session, session_owner=False, connection_timeout=min(CONNECT_SECONDS, seconds), read_timeout=seconds
        )
        self.answered = False
        self.ending = False

    async def send(
        self,
        request: HttpRequest | RestRequest,
        *,
        stream: bool = False,  # noqa: ARG002
        proxies: MutableMapping[str, str] | None = None,
        **config: object,
    ) -> AsyncHttpResponse | RestResponse:
        """See `AioHttpTransport.send`."""
        if isinstance(request.data, bytes) and len(request.data) > SENT_AT_ONCE:
            request.data = Sent([request.data])
        whole = False
        try:
            response: AsyncHttpResponse | RestResponse = await super().send(
                request, stream=False, proxies=proxies, **config
            )
            whole = _stays(response.headers)
        finally:
            self.ending |= not whole
        self.answered = True
        return response


def _stays(headers: Mapping[str, str]) -> bool:
    """Say whether a connection can be used again; aiohttp ends it after an answer without a length, even to a HEAD."""
    return headers.get("Connection", "").lower() != "close" and (
        "Content-Length" in headers or "Transfer-Encoding" in headers
    )
