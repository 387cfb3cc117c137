"""Asking a storage account over HTTPS: one session, one policy of patience, one door for its errors.

Not the SDK's pipeline: that copies every block, reads certificates anew for every client, and retries on its own.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeAlias, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
from attrs import define, field, frozen
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_before_delay, wait_random_exponential
from yarl import URL

from resilience.concurrency import finish, stop_tasks
from resilience.model.errors import Refused, TimedOut, Unavailable, Unreachable
from resilience.version import VERSION

from .azure_auth import Authorizer, Question
from .azure_errors import passing, refusal

T = TypeVar("T")
Body: TypeAlias = Sequence[bytes | memoryview]

API = "2023-11-03"
PIECE = 1 << 20
SENT_AT_ONCE = 256 << 10
"""What is encrypted in one go: it stays in the processor's cache, where larger pieces cost up to twice the time."""
CONNECTIONS = 64
CONNECT_SECONDS = 15.0
FIRST_PATIENCE = 20.0
"""Whoever has never answered is asked for so long: a wrong name is told soon."""
SETTLE_SECONDS = 5.0
"""Once cancelled, what changes something is given so long to be answered: better to know what it did."""
LONGEST_PAUSE = 20.0
ENDING_SECONDS = 0.1
"""A TLS connection that ended by itself takes a moment to say goodbye; aiohttp's session does not wait for it."""

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Answer:
    """What the account said: a status, headers and content, and Azure's code if it is an error."""

    status: int
    headers: Mapping[str, str]
    content: Sequence[bytes]

    @property
    def code(self) -> str:
        """Azure's name of the error, "" if it is none."""
        return self.headers.get("x-ms-error-code", "")

    @property
    def modified(self) -> datetime:
        """When the object was last changed."""
        return moment(self.headers.get("Last-Modified", ""))


def moment(text: str) -> datetime:
    """Read a time as HTTP writes it; the beginning of all time if there is none."""
    return parsedate_to_datetime(text).astimezone(UTC) if text else datetime.fromtimestamp(0, UTC)


@frozen(kw_only=True)
class Request:
    """What to ask. `accept` are the error codes that the caller makes something of himself."""

    operation: str
    key: str
    method: str
    query: Mapping[str, str] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    body: Body = ()
    accept: frozenset[str] = frozenset()
    settle: bool = False

    @property
    def length(self) -> int:
        """The bytes of the body."""
        return sum(len(piece) for piece in self.body)


class _Again(Exception):
    """Asking again may help: what to raise once patience has ended, and how long the account asked us to wait."""

    def __init__(self, error: Unavailable, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


@define(kw_only=True)
class Container:
    """A container at `url`. A request may take `timeout` seconds, and is repeated for `patience` seconds."""

    url: str
    authorizer: Authorizer
    timeout: float
    patience: float
    proxy: str | None
    context: Callable[[], ssl.SSLContext]
    _session: aiohttp.ClientSession | None = field(default=None, init=False, repr=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False, repr=False)
    _answered: bool = field(default=False, init=False)
    _ending: bool = field(default=False, init=False)

    async def ask(self, request: Request) -> Answer:
        """Ask until there is an answer. Raises Unavailable if patience ends first, else what the answer means.

        Cancelled: what changes something (`settle`) has happened or not; it does not happen later, unless the account
        did not say so within seconds.
        """
        patience = self.patience if self._answered else min(self.patience, FIRST_PATIENCE)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_before_delay(patience),
            wait=_pause,
            sleep=_sleep,
            reraise=True,
        )
        try:
            return await retrying(self._ask, request)
        except _Again as again:
            raise again.error from again.__cause__

    def url_of(self, key: str) -> str:
        """Return the URL of an object, without anything secret."""
        return f"{self.url}/{key}" if key else self.url

    async def aclose(self) -> None:
        """Close all connections. The next request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            if self._ending:
                await asyncio.sleep(ENDING_SECONDS)

    async def _ask(self, request: Request) -> Answer:
        attempt = self._attempt(request)
        answer = await (_settled(attempt) if request.settle else attempt)
        if answer.status < 400 or answer.code in request.accept:
            return answer
        names = {"operation": request.operation, "subject": request.key}
        if error := passing(answer.status, answer.code, **names):
            raise _Again(error, _after(answer.headers))
        raise refusal(answer.status, answer.code, **names)

    async def _attempt(self, request: Request) -> Answer:
        answer = await self._send(request)
        doubted = answer.status == 401 or answer.code == "AuthenticationFailed"
        if doubted and self.authorizer.rejected():
            answer = await self._send(request)
        return answer

    async def _send(self, request: Request) -> Answer:
        names = {"operation": request.operation, "subject": request.key}
        where = urlsplit(self.url).netloc
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in request.query.items())
        headers = {"x-ms-version": API, "Content-Length": str(request.length), **request.headers}
        if request.method in ("GET", "HEAD"):
            del headers["Content-Length"]
        try:
            async with asyncio.timeout(self.timeout):
                bare = self.url_of(request.key) + (f"?{query}" if query else "")
                url = await self.authorizer.authorize(Question(request.method, bare, headers))
                return await self._exchange(request, url, headers)
        except TimeoutError as error:
            what = f"{where} did not answer within {self.timeout:g} s"
            raise _Again(TimedOut(what, **names)) from error
        except Unreachable as error:
            raise _Again(error) from error
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
            hint = "a private authority is given as ssl_context="
            raise Refused(f"no trusted TLS connection to {where}: {_reason(error)}", **names, hint=hint) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Again(Unreachable(f"no connection to {where}: {_reason(error)}", **names)) from error

    async def _exchange(self, request: Request, url: str, headers: Mapping[str, str]) -> Answer:
        data = _sent(request.body) if request.body else None
        asked = self._opened().request(
            request.method, URL(url, encoded=True), headers=headers, data=data, allow_redirects=False, proxy=self.proxy
        )
        whole = False
        try:
            async with asked as response:
                self._answered = True
                content = await _received(response)
                whole = _stays(response.headers)
                return Answer(status=response.status, headers=response.headers, content=content)
        finally:
            self._ending |= not whole

    def _opened(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=self.context(), keepalive_timeout=60)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                headers={"User-Agent": f"resilience/{VERSION}"},
                skip_auto_headers=["Content-Type", "Accept-Encoding"],
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=PIECE,
            )
            self._loop = loop
        return self._session


async def _sent(body: Body) -> AsyncGenerator[memoryview]:
    for piece in body:
        view = memoryview(piece)
        for start in range(0, len(view), SENT_AT_ONCE):
            yield view[start : start + SENT_AT_ONCE]


async def _received(response: aiohttp.ClientResponse) -> Sequence[bytes]:
    """Read all content, in chunks of about 1 MiB."""
    chunks: list[bytes] = []
    held: list[bytes] = []
    size = 0
    async for data in response.content.iter_any():
        held.append(data)
        size += len(data)
        if size >= PIECE:
            chunks.append(b"".join(held))
            held, size = [], 0
    return [*chunks, b"".join(held)] if held else chunks


def _stays(headers: Mapping[str, str]) -> bool:
    """Say whether a connection can be used again; aiohttp ends it after an answer without a length, even to a HEAD."""
    return headers.get("Connection", "").lower() != "close" and (
        "Content-Length" in headers or "Transfer-Encoding" in headers
    )


async def _settled(effect: Coroutine[object, object, T]) -> T:
    """Await an effect; if cancelled, give it a few seconds to tell how it ended, and cancel it then."""
    task = asyncio.ensure_future(effect)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(asyncio.CancelledError):
            await finish(asyncio.wait([task], timeout=SETTLE_SECONDS))
        raise
    finally:
        await stop_tasks([task])


_jitter = wait_random_exponential(multiplier=0.1, max=LONGEST_PAUSE)


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    pause = max(_jitter(state), error.after if isinstance(error, _Again) else 0.0)
    log.warning("%s; asking again in %.1f s", error, pause)
    return pause


def _after(headers: Mapping[str, str]) -> float:
    """Read Retry-After (RFC 9110, 10.2.3) and Azure's x-ms-retry-after-ms: seconds to wait."""
    with suppress(ValueError):
        return float(headers["x-ms-retry-after-ms"]) / 1000 if "x-ms-retry-after-ms" in headers else _seconds(headers)
    return 0.0


def _seconds(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "0")
    return float(text) if text.isdecimal() else (moment(text) - datetime.now(UTC)).total_seconds()


def _reason(error: BaseException) -> str:
    # Never str() of it all: what aiohttp says may show a URL, and a URL may hold a signature.
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
