"""Asking a storage account by its SDK: one session, one policy of patience, one door for its errors.

The SDK signs, asks for tokens, speaks the protocol and reads the answers. Its own retries are off: they know no
deadline, and do not say after a lost answer whether it was our write that succeeded. Tenacity's are used, as elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeAlias, TypeGuard, TypeVar, cast
from urllib.parse import urlsplit

import aiohttp
from attrs import define, field, frozen
from azure.core.credentials import AccessToken, AzureNamedKeyCredential
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)
from azure.core.rest import AsyncHttpResponse
from azure.storage.blob.aio import ContainerClient
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_before_delay, wait_random_exponential

from resilience.concurrency import finish, stop_tasks
from resilience.model.errors import Refused, ResilienceError, StorageFailed, TimedOut, Unavailable, Unreachable
from resilience.version import VERSION

from .azure_errors import passing, refusal
from .azure_transport import Transport, opened

T = TypeVar("T")
Call: TypeAlias = Callable[[ContainerClient], Awaitable[T]]
Credential: TypeAlias = AsyncTokenCredential | AzureNamedKeyCredential | str | None
"""Who asks; None if the URL holds a signature."""

LARGEST_WHOLE = 256 << 20
"""An object that can only be written at once is held in memory; this much at the most."""
FIRST_PATIENCE = 20.0
"""Whoever has never answered is asked for so long: a wrong name is told soon."""
SETTLE_SECONDS = 5.0
"""Once cancelled, what changes something is given so long to be answered: better to know what it did."""
LONGEST_PAUSE = 20.0
ENDING_SECONDS = 0.1
"""A TLS connection that ended by itself takes a moment to say goodbye; aiohttp's session does not wait for it."""

log = logging.getLogger(__name__)


class Answered(Exception):
    """The account answered with an error; `after` are the seconds that it asked us to wait."""

    def __init__(self, status: int, code: str, after: float) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.after = after


class _Again(Exception):
    """Asking again may help: what to raise once patience has ended, and how long the account asked us to wait."""

    def __init__(self, error: Unavailable, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


@frozen
class _Asked:
    """A credential whose errors can be told from those of the account."""

    credential: AsyncTokenCredential = field(repr=False)

    async def get_token(self, *scopes: str, **options: object) -> AccessToken:
        try:
            return await self.credential.get_token(*scopes, **options)  # type: ignore[arg-type]  # what the SDK asks
        except Exception as error:  # noqa: BLE001  # whatever a credential raises
            failed: ResilienceError = _no_token(error)
        raise _Again(failed) if isinstance(failed, Unavailable) else failed


@frozen(kw_only=True)
class Asking:
    """What is asked for, and the error codes that the caller makes something of himself."""

    operation: str
    key: str = ""
    accept: frozenset[str] = frozenset()
    settle: bool = False


@define(kw_only=True)
class Container:
    """A container at `url`. A request may take `timeout` seconds, and is repeated for `patience` seconds."""

    url: str
    signature: str = field(repr=False)
    credential: Credential = field(repr=False)
    timeout: float
    patience: float
    proxy: str | None = field(repr=False)
    context: Callable[[], ssl.SSLContext] = field(repr=False)
    _session: aiohttp.ClientSession | None = field(default=None, init=False, repr=False)
    _transport: Transport | None = field(default=None, init=False, repr=False)
    _client: ContainerClient | None = field(default=None, init=False, repr=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False, repr=False)

    async def ask(self, call: Call[T], asking: Asking) -> T:
        """Ask until there is an answer. Raises Unavailable if patience ends first, else what the answer means.

        Cancelled: what changes something (`settle`) has happened or not; it does not happen later, unless the account
        did not say so within seconds.
        """
        answered = self._transport is not None and self._transport.answered
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_before_delay(self.patience if answered else min(self.patience, FIRST_PATIENCE)),
            wait=_pause,
            sleep=_sleep,
            reraise=True,
        )
        try:
            return await retrying(self._once, call, asking)
        except _Again as again:
            failed = again.error
        raise failed

    async def aclose(self) -> None:
        """Close all connections. The next request opens new ones."""
        session, transport = self._session, self._transport
        self._session = self._transport = self._client = None
        if session is not None:
            await session.close()
            if transport is not None and transport.ending:
                await asyncio.sleep(ENDING_SECONDS)

    async def _once(self, call: Call[T], asking: Asking) -> T:
        attempt = self._attempt(call, asking)
        return await (_settled(attempt) if asking.settle else attempt)

    async def _attempt(self, call: Call[T], asking: Asking) -> T:
        client = self._opened()
        answer = await self._sent(client, call, asking)
        if isinstance(answer, Answered) and self._can_ask_again(answer):
            if self._client is client:
                self._client = None  # whoever asks next asks the credential for a new token
            answer = await self._sent(self._opened(), call, asking)
        if not isinstance(answer, Answered):
            return answer
        if answer.code in asking.accept:
            raise answer
        names = {"operation": asking.operation, "subject": asking.key}
        if error := passing(answer.status, answer.code, **names):
            raise _Again(error, answer.after)
        raise refusal(answer.status, answer.code, **names)

    def _can_ask_again(self, answer: Answered) -> bool:
        return (answer.status == 401 or answer.code == "AuthenticationFailed") and is_token(self.credential)

    async def _sent(self, client: ContainerClient, call: Call[T], asking: Asking) -> T | Answered:
        try:
            async with asyncio.timeout(self.timeout):
                return await call(client)
        except (AzureError, aiohttp.ClientError, OSError) as error:
            meaning = self._meaning(error, asking)
        if isinstance(meaning, Answered):
            return meaning
        raise meaning  # of no other: what the SDK and aiohttp say may show a URL, and a URL may hold a signature

    def _meaning(self, error: Exception, asking: Asking) -> Exception:
        names = {"operation": asking.operation, "subject": asking.key}
        where = urlsplit(self.url).netloc
        reason = (error.inner_exception if isinstance(error, AzureError) else None) or error
        answer = cast("AsyncHttpResponse | None", error.response if isinstance(error, HttpResponseError) else None)
        if answer is not None and answer.status_code >= 400:
            return Answered(answer.status_code, answer.headers.get("x-ms-error-code", ""), _after(answer.headers))
        if isinstance(error, TimeoutError | ServiceRequestTimeoutError | ServiceResponseTimeoutError):
            return _Again(TimedOut(f"{where} did not answer within {self.timeout:g} s", **names))
        if isinstance(reason, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
            hint = "a private authority is given as ssl_context="
            return Refused(f"no trusted TLS connection to {where}: {_reason(reason)}", **names, hint=hint)
        if isinstance(error, _BROKEN):
            return _Again(Unreachable(f"no connection to {where}: {_reason(reason)}", **names))
        what = "list" if asking.operation == "list" else "answer"
        return StorageFailed(f"the storage account's {what} cannot be read", **names)

    def _opened(self) -> ContainerClient:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            self._session, self._loop = opened(self.context(), self.proxy), loop
            self._transport, self._client = Transport(self._session, self.timeout), None
        if self._client is None:
            self._client = ContainerClient.from_container_url(
                f"{self.url}?{self.signature}" if self.signature else self.url,
                credential=self._asked(),
                transport=self._transport,
                retry_total=0,
                permit_redirects=False,
                user_agent=f"resilience/{VERSION}",
                user_agent_use_env=False,
                max_single_put_size=LARGEST_WHOLE,
                max_single_get_size=LARGEST_WHOLE,
                max_chunk_get_size=LARGEST_WHOLE,
            )
        return self._client

    def _asked(self) -> Credential:
        if not is_token(self.credential):
            return self.credential
        return cast("AsyncTokenCredential", _Asked(self.credential))  # of which the SDK uses no more than that


_BROKEN = (ServiceRequestError, ServiceResponseError, IncompleteReadError, aiohttp.ClientError, OSError)


def is_token(credential: Credential) -> TypeGuard[AsyncTokenCredential]:
    """Say whether it is one that gives tokens."""
    return not isinstance(credential, AzureNamedKeyCredential | str | None)


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
    moment = None if text.isdecimal() else parsedate_to_datetime(text).astimezone(UTC)
    return float(text) if moment is None else (moment - datetime.now(UTC)).total_seconds()


def _reason(error: BaseException) -> str:
    # Never str() of it all: what aiohttp says may show a URL, and a URL may hold a signature.
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _no_token(error: Exception) -> Refused | Unreachable:
    what = (str(error).splitlines() or [""])[0][:300]
    if isinstance(error, OSError | ServiceRequestError | ServiceResponseError):
        return Unreachable(f"the credential could not ask for a token: {what}", operation="authorize")
    return Refused(
        f"the credential gives no token: {what or type(error).__name__}",
        operation="authorize",
        hint="check that this identity exists here and may ask for tokens of storage.azure.com",
    )
