"""A store in a container of Azure Blob Storage: create-only, in few and bounded requests, over one session.

docs/azure.md says which identity, role and network it takes. It stands on azure-storage-blob, which signs, asks for
tokens, speaks the protocol and reads lists. Not used are its retries (`azure_client` says why) and, for what is larger
than a block, its `upload_blob`: from a stream it copies what it holds again with every chunk that comes, leaves tasks
running when it is cancelled, and names blocks so that two writers of one object mix. `azure_upload` stages them.
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64decode
from binascii import Error as NotBase64
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from attrs import define, field, frozen
from attrs.validators import ge, gt
from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential
from azure.storage.blob import BlobProperties, RehydratePriority, StandardBlobTier
from azure.storage.blob.aio import ContainerClient

from resilience.concurrency import closing, stop_tasks
from resilience.model.errors import NotRehydrated, ObjectMissing, Refused, StorageFailed
from resilience.model.retention import Tier
from resilience.primitives import Chunks, ObjectInfo

from .azure_client import Answered, Asking, Container, Credential, is_token
from .azure_errors import EXISTS, FROZEN, MISSING, NOT_PERMITTED, refusal
from .azure_pages import HOLDS, UNKNOWN, Page, asked, described, page
from .azure_upload import Permission, Upload, cut
from .keys import checked, checked_offset, each, is_prefix

BLOCK_SIZE = 8 << 20
"""The SDK takes more than a millisecond for each block, in which nothing else happens."""
RANGE = 5 << 20
"""More than 4 MiB: up to that a service may digest what it sends, and Azurite always does."""
CHUNK = 1 << 20
RANGES_AHEAD = 1
"""A restore reads two objects at once, so four ranges."""
FIRST_LISTED = 20
LISTED_AT_ONCE = 1000
"""Azure gives up to 5000; the SDK needs about 0.2 ms for each, in which nothing else happens."""
REHYDRATED = ".rehydrated/"
"""Where readable copies of archived objects lie; no key begins like this."""
SECONDARY = "-secondary"


def _without_query(url: str) -> str:
    return url.partition("?")[0].rstrip("/")


@frozen(kw_only=True)
class Range:
    """A piece of an object, of what content, and the size of the whole."""

    content: bytes
    etag: str
    size: int


@define
class AzureBlobStore:
    """Keeps objects as block blobs in the container at `container_url`, which has to exist.

    `credential` is any asynchronous credential of azure-identity, or a shared access signature, which may also stand in
    the URL; the caller closes it. `tiers` chooses the access tier of new objects by the longest prefix of their keys;
    without one it is the account's default, and `ObjectInfo.tier` is None until somebody changes it. A request may take
    `timeout` seconds; one that fails in passing is repeated for `patience` seconds. `ssl_context` trusts a private
    authority, `proxy` is the URL of a proxy. Close it, or use `async with`. A container of an account's read-only
    secondary (`https://<account>-secondary.…`) can be read.

    Holds up to four blocks (of 8 MiB) a put and two ranges (of 5 MiB) a get in memory.
    """

    container_url: str
    credential: Credential = field(default=None, kw_only=True, repr=False)
    tiers: Mapping[str, Tier] = field(factory=dict, kw_only=True)
    patience: float = field(default=300.0, kw_only=True, validator=ge(0))
    timeout: float = field(default=60.0, kw_only=True, validator=gt(0))
    block_size: int = field(default=BLOCK_SIZE, kw_only=True, validator=ge(1))
    ssl_context: ssl.SSLContext | None = field(default=None, kw_only=True, repr=False)
    proxy: str | None = field(default=None, kw_only=True, repr=False)
    _container: Container = field(init=False, repr=False)
    _permission: Permission = field(factory=Permission, init=False, repr=False)
    _holds: tuple[str, ...] = field(default=HOLDS, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        signature = urlsplit(self.container_url).query
        self.container_url = _without_query(self.container_url)
        self._container = Container(
            url=self.container_url,
            signature=_signature(self.credential, signature),
            credential=None if isinstance(self.credential, str) else self.credential,
            timeout=self.timeout,
            patience=self.patience,
            proxy=self.proxy,
            context=self._context,
        )
        _check_url(self.container_url, self.credential)
        if self.ssl_context is not None and self.ssl_context.minimum_version < ssl.TLSVersion.TLSv1_2:
            raise ValueError("the ssl_context allows TLS below 1.2: raise its minimum_version")

    @classmethod
    def from_connection_string(
        cls,
        connection_string: str,
        container: str,
        *,
        tiers: Mapping[str, Tier] | None = None,
        patience: float = 300.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> Self:
        """Make one for development: the account's key may do everything. Raises ValueError, which tells no secret."""
        url, credential = _connection(connection_string, container)
        return cls(url, credential=credential, tiers=tiers or {}, patience=patience, ssl_context=ssl_context)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; they are opened again if the store is used once more."""
        await self._container.aclose()

    async def put(self, key: str, chunks: Chunks) -> ObjectInfo:
        """Create an object; see `ObjectStore.put`. Cancelled: it exists whole, or not at all."""
        checked(key)
        async with closing(each(chunks)) as pieces:
            self._writable("put", key)
            upload = Upload(container=self._container, key=key, tier=self._tier(key), permission=self._permission)
            async with aclosing(cut(pieces, self.block_size)) as blocks:
                return await upload.write(blocks)

    @asynccontextmanager
    async def get(self, key: str, *, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read an object from `offset`, ahead of whoever iterates; see `ObjectStore.get`.

        Of an archived object its rehydrated copy is read. Raises NotRehydrated when entered if there is none yet.
        """
        checked(key)
        checked_offset(offset)
        name = key
        try:
            first = await self._first(key, offset)
        except Answered:
            name = f"{REHYDRATED}{key}"
            first = await self._copy_of(key, name, offset)
        async with aclosing(self._ranges(name, offset, first)) as chunks:
            del first  # or it would stay in memory to the end
            yield chunks

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Yield the objects under a prefix in the order of their keys; see `ObjectStore.list`."""
        if not is_prefix(prefix):
            return
        coming: asyncio.Task[Page] | None = None
        found = await self._page(prefix, "", FIRST_LISTED)  # whoever wants the first only shall not wait for all
        try:
            while True:
                for info in found.infos:
                    yield info
                if not found.marker:
                    return
                found = await (coming or self._page(prefix, found.marker, LISTED_AT_ONCE))
                following = self._page(prefix, found.marker, LISTED_AT_ONCE) if found.marker else None
                coming = asyncio.create_task(following) if following else None
        finally:
            await stop_tasks([coming] if coming else [])

    async def stat(self, key: str) -> ObjectInfo | None:
        """Look at one object; None if it is not there."""
        try:
            return described(key, await self._head(checked(key), "stat"))
        except ObjectMissing:
            return None

    async def delete(self, key: str) -> None:
        """Remove one object, if it is there. Raises Refused if a legal hold or a retention policy forbids it."""
        checked(key)
        self._writable("delete", key)
        await self._delete(key)

    async def rehydrate(self, key: str, *, to: Tier = "hot", urgent: bool = False) -> bool:
        """Have an archived object become readable; True once it is, so that it may be asked again.

        Starts a copy in the tier `to`, which takes up to 15 hours, or about one if `urgent`; the object itself stays
        where it is. `get` reads the copy. It stays until `forget_rehydrated`, or a lifecycle rule, removes it.
        """
        checked(key)
        self._writable("rehydrate", key)
        if described(key, await self._head(key, "rehydrate")).tier != "archive":
            return True
        copy = f"{REHYDRATED}{key}"
        try:
            return _is_ready(await self._head(copy, "rehydrate"), key)
        except ObjectMissing:
            await self._copy(key, copy, to, RehydratePriority.HIGH if urgent else RehydratePriority.STANDARD)
            return _is_ready(await self._head(copy, "rehydrate"), key)

    async def forget_rehydrated(self, key: str) -> None:
        """Remove the readable copy of an archived object, if there is one."""
        checked(key)
        self._writable("delete", key)
        await self._delete(f"{REHYDRATED}{key}")

    async def _delete(self, name: str) -> None:
        asking = Asking(operation="delete", key=name, accept=MISSING, settle=True)
        with suppress(Answered):
            await self._container.ask(lambda container: container.get_blob_client(name).delete_blob(), asking)

    async def _head(self, name: str, operation: str) -> BlobProperties:
        return await self._container.ask(
            lambda container: container.get_blob_client(name).get_blob_properties(),
            Asking(operation=operation, key=name),
        )

    async def _copy(self, key: str, copy: str, to: Tier, priority: RehydratePriority) -> None:
        async def start(container: ContainerClient) -> object:
            return await container.get_blob_client(copy).start_copy_from_url(
                container.get_blob_client(key).url,
                standard_blob_tier=StandardBlobTier(to.capitalize()),
                rehydrate_priority=priority,
                match_condition=MatchConditions.IfMissing,
            )

        with suppress(Answered):
            await self._container.ask(start, Asking(operation="rehydrate", key=copy, accept=EXISTS, settle=True))

    async def _copy_of(self, key: str, copy: str, offset: int) -> Range:
        try:
            return await self._range(copy, offset)
        except ObjectMissing:
            raise refusal(409, "BlobArchived", operation="get", subject=key) from None
        except Answered:
            what = "it lies in the Archive tier; a readable copy was asked for and is not ready yet"
            hint = "ask again with AzureBlobStore.rehydrate()"
            raise NotRehydrated(what, operation="get", subject=key, hint=hint) from None

    async def _first(self, key: str, offset: int) -> Range:
        try:
            return await self._range(key, offset)
        except ObjectMissing as error:
            if not self._is_secondary:
                raise
            error.hint = "the account's secondary lags behind: it has not arrived yet, or was never there"
            raise

    async def _range(self, name: str, begin: int, *, etag: str | None = None) -> Range:
        """Read up to RANGE bytes. Raises Answered of what is frozen."""
        same: dict[str, Any] = {"etag": etag, "match_condition": MatchConditions.IfNotModified} if etag else {}

        async def download(container: ContainerClient) -> Range:
            found = await container.get_blob_client(name).download_blob(begin, RANGE, max_concurrency=1, **same)
            _, _, size = (found.properties.content_range or "").rpartition("/")
            content = b"".join([chunk async for chunk in found.chunks()])
            return Range(content=content, etag=found.properties.etag or "", size=int(size))

        asking = Asking(operation="get", key=name, accept=FROZEN | {"InvalidRange"})
        try:
            return await self._container.ask(download, asking)
        except Answered as answer:
            if answer.code in FROZEN:
                raise
            return Range(content=b"", etag="", size=0)  # the object ends before the offset

    async def _ranges(self, name: str, offset: int, found: Range) -> AsyncGenerator[bytes]:
        begins, etag = deque(range(offset + RANGE, found.size, RANGE)), found.etag
        coming: deque[asyncio.Task[Range]] = deque()
        try:
            while True:
                while begins and len(coming) < RANGES_AHEAD:
                    coming.append(asyncio.create_task(self._range(name, begins.popleft(), etag=etag)))
                for start in range(0, len(found.content), CHUNK):
                    yield found.content[start : start + CHUNK]
                if not coming:
                    return
                del found
                found = await coming[0]
                coming.popleft()
        finally:
            await stop_tasks(coming)

    async def _page(self, prefix: str, marker: str, most: int, *, holds: Sequence[str] | None = None) -> Page:
        holds = self._holds if holds is None else holds
        asking = Asking(operation="list", accept=UNKNOWN | NOT_PERMITTED if holds else frozenset())
        try:
            found = await self._container.ask(lambda container: asked(container, prefix, marker, most, holds), asking)
            return page(*found, prefix)
        except Answered:
            listed = await self._page(prefix, marker, most, holds=())
            self._holds = ()  # the account does not say what is held, or not to us
            return listed
        except StorageFailed as error:
            error.subject = prefix
            raise

    def _tier(self, key: str) -> Tier | None:
        prefix = max((prefix for prefix in self.tiers if key.startswith(prefix)), key=len, default=None)
        return None if prefix is None else self.tiers[prefix]

    @property
    def _is_secondary(self) -> bool:
        return _account(self.container_url).endswith(SECONDARY)

    def _writable(self, operation: str, key: str) -> None:
        if self._is_secondary:
            hint = "use the account's primary, or fail it over first"
            raise Refused("this is the account's read-only secondary", operation=operation, subject=key, hint=hint)

    def _context(self) -> ssl.SSLContext:
        if self.ssl_context is None:
            self.ssl_context = ssl.create_default_context()
            self.ssl_context.minimum_version = ssl.TLSVersion.TLSv1_2
        return self.ssl_context


def _is_ready(copy: BlobProperties, key: str) -> bool:
    status = copy.copy.status or "success"
    if status in ("failed", "aborted"):
        what = f"the readable copy could not be made: {copy.copy.status_description or status}"
        hint = "AzureBlobStore.forget_rehydrated() clears it away, then ask again"
        raise StorageFailed(what, operation="rehydrate", subject=key, hint=hint)
    return status == "success" and not copy.archive_status and copy.blob_tier != "Archive"


def _is_signature(query: str) -> bool:
    return bool(dict(parse_qsl(query)).get("sig"))


def _signature(credential: Credential, query: str) -> str:
    """Return the shared access signature that asks, "" if it is the credential that does. Raises ValueError."""
    if _is_signature(query):
        if credential is not None:
            raise ValueError("the URL holds a shared access signature: give that or a credential, not both")
        return query
    if credential is None:
        raise ValueError("say who asks: give a credential= or a shared access signature")
    if not isinstance(credential, str):
        return ""
    signature = credential.strip().lstrip("?")
    if not _is_signature(signature):
        raise ValueError("this is no shared access signature: it has no sig=")
    return signature


def _connection(text: str, container: str) -> tuple[str, Credential]:
    """Have the SDK read a connection string: a URL, and who asks. Raises ValueError, which tells no secret."""
    try:
        client = ContainerClient.from_connection_string(text, container)
        key = client.credential
        if key is not None:
            b64decode(key.account_key, validate=True)
    except (ValueError, NotBase64) as error:
        what = "a key that is none" if isinstance(error, NotBase64) else str(error)
        raise ValueError(f"the connection string cannot be used: {what}") from None
    if key is None and not _is_signature(urlsplit(client.url).query):
        raise ValueError("the connection string has neither an AccountKey nor a SharedAccessSignature")
    return client.url, None if key is None else AzureNamedKeyCredential(key.account_name, key.account_key)


def _check_url(url: str, credential: Credential) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or not parts.path.strip("/"):
        raise ValueError(
            f"{url!r} is no container's URL: one looks like https://<account>.blob.core.windows.net/<name>"
        )
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    secret = is_token(credential) or not (local or isinstance(credential, AzureNamedKeyCredential))
    if parts.scheme == "http" and secret:
        raise ValueError(f"{url!r} is not encrypted: use https")


def _account(url: str) -> str:
    parts = urlsplit(url)
    path = parts.path.strip("/").split("/")
    # An emulator's URL has the account in its path.
    return path[0] if len(path) > 1 else (parts.hostname or "").partition(".")[0]
