"""Who may do what: tokens, signatures that Azure's own SDK made, and what is told when a right is missing."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self
from urllib.parse import unquote

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from resilience import Archive, Refused, backup, restore
from resilience.model.errors import AlreadyExists, ObjectMissing, ResilienceError, Unreachable
from resilience.stores import AzureBlobStore
from resilience.testing import MemoryDestination, MemoryTarget
from resilience.testing.azurite import ACCOUNT, KEY, Azurite
from resilience.testing.fake_blob_account import FakeBlobAccount
from resilience.testing.http_faults import Fault, times
from resilience.testing.stores import content, listed, read

DATA = content(200_000)


def signature(container: str, permission: str, *, begins: float = -60, ends: float = 3600) -> str:
    """Have the SDK sign that whoever has this may do so for a while, given in seconds from now."""
    now = datetime.now(UTC)
    return generate_container_sas(
        ACCOUNT,
        container,
        account_key=KEY,
        permission=ContainerSasPermissions.from_string(permission),
        start=now + timedelta(seconds=begins),
        expiry=now + timedelta(seconds=ends),
    )


def store_with(azurite: Azurite, container: str, permission: str, **times: float) -> AzureBlobStore:
    sas = signature(container, permission, **times)
    store = AzureBlobStore(f"{azurite.url}/{container}", credential=sas, ssl_context=azurite.trusted(), patience=5)
    store.block_size = 50_000
    return store


class Credential:
    """Gives tokens as Microsoft Entra ID's look, valid for `seconds` each, and counts them.

    It takes them for valid for `believed` seconds, if that is not the same.
    """

    def __init__(self, seconds: float = 3600, offset: float = 0) -> None:
        self.seconds, self.offset = seconds, offset
        self.believed: float | None = None
        self.given = 0
        self.fails: Exception | None = None

    async def get_token(self, *scopes: str, **_: object) -> AccessToken:
        assert scopes == ("https://storage.azure.com/.default",)
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        self.given += 1
        now = time.time() + self.offset
        claims = {
            "aud": "https://storage.azure.com",
            "iss": "https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/",
            "iat": int(now - 60),
            "nbf": int(now - 60),
            "exp": int(now + self.seconds),
            "number": self.given,
        }
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
            for part in ({"alg": "none"}, claims)
        ]
        expires = now + self.seconds if self.believed is None else time.time() + self.believed
        return AccessToken(f"{parts[0]}.{parts[1]}.", int(expires))

    async def close(self) -> None:
        """Nothing is open."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self.close()


@pytest.fixture
def credential() -> Credential:
    return Credential()


@pytest.fixture
async def as_identity(azurite: Azurite, container: str, credential: Credential) -> AsyncIterator[AzureBlobStore]:
    url = f"{azurite.url}/{container}"
    async with AzureBlobStore(url, credential=credential, ssl_context=azurite.trusted(), patience=2) as store:
        store.block_size = 50_000
        yield store


async def test_an_identity_is_asked_once_for_many_requests(as_identity: AzureBlobStore, credential: Credential) -> None:
    await as_identity.put("object", [DATA])
    assert await read(as_identity, "object") == DATA
    assert credential.given == 1


async def test_a_token_that_expires_on_the_way_is_asked_for_anew(
    as_identity: AzureBlobStore, credential: Credential
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        credential.seconds = 2  # so that every request is within the last minutes, when a new one is asked for
        yield DATA[:120_000]
        yield DATA[120_000:]

    credential.seconds = 200
    await as_identity.put("object", chunks())
    assert await read(as_identity, "object") == DATA
    assert credential.given > 4


async def test_a_token_that_is_refused_although_it_looks_valid_is_asked_for_anew(
    as_identity: AzureBlobStore, credential: Credential
) -> None:
    credential.offset, credential.believed = -7200, 3600  # the machine's clock and that of the account do not agree

    async def chunks() -> AsyncIterator[bytes]:
        credential.offset = 0
        yield DATA

    with pytest.raises(Refused, match="stat object: the credential is not accepted"):
        await as_identity.stat("object")
    assert credential.given == 2
    await as_identity.put("object", chunks())
    assert await read(as_identity, "object") == DATA
    assert credential.given == 3


@pytest.fixture
def tls_proxy(azurite: Azurite) -> Iterator[FakeBlobAccount]:
    """A storage account over TLS that misbehaves as it is told: no token is ever sent without."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(azurite.certificate, azurite.folder / "key.pem")
    account = FakeBlobAccount(f"https://127.0.0.1:{azurite.port}", tls=serving, trusts=azurite.trusted())
    with account.running() as running:
        yield running


async def test_a_revoked_token_is_asked_for_anew_in_the_middle_of_an_upload(
    azurite: Azurite, container: str, tls_proxy: FakeBlobAccount, credential: Credential
) -> None:
    url = f"{azurite.url}/{container}".replace(f":{azurite.port}/", f":{tls_proxy.port}/")
    revoked = Fault(status=401, code="InvalidAuthenticationInfo")
    async with AzureBlobStore(url, credential=credential, ssl_context=azurite.trusted(), patience=5) as store:
        store.block_size = 50_000
        tls_proxy.script = times(2, revoked, when=lambda asked: "comp=block&" in asked.path_qs)
        with pytest.raises(Refused, match="put object: the token is not accepted"):
            await store.put("object", [DATA])
        assert credential.given == 2
        for of in ("comp=block&", "comp=blocklist"):
            await store.stat("object")
            given = credential.given
            tls_proxy.script = times(1, revoked, when=lambda asked, of=of: of in asked.path_qs)  # type: ignore[misc]
            await store.put(of.strip("&"), [DATA])
            assert await read(store, of.strip("&")) == DATA
            assert credential.given == given + 1


async def test_a_clock_that_is_far_off_is_told(as_identity: AzureBlobStore, credential: Credential) -> None:
    credential.offset = -7200
    with pytest.raises(Refused, match="put object: the credential is not accepted .*compare this machine's clock"):
        await as_identity.put("object", [DATA])


async def test_a_credential_without_a_token_is_told(as_identity: AzureBlobStore, credential: Credential) -> None:
    credential.fails = ClientAuthenticationError("this identity is unknown\nand more")
    with pytest.raises(Refused, match=r"authorize: the credential gives no token: this identity is unknown \("):
        await as_identity.stat("object")
    credential.fails = ServiceRequestError("no route to the token's issuer")
    as_identity._container.patience = 0.1
    with pytest.raises(Unreachable, match="authorize: the credential could not ask for a token: no route"):
        await as_identity.stat("object")


@pytest.mark.parametrize("permission", ["rcl", "racl"])
async def test_a_signature_that_may_only_add_and_read_is_enough_to_back_up_and_restore(
    azurite: Azurite, container: str, permission: str
) -> None:
    async with store_with(azurite, container, permission) as store:
        archive = Archive(store, object_size=1 << 20)
        target = MemoryTarget("orders", {"large": content(5 << 20), "small": b"data"})
        await backup(target, archive)
        destination = MemoryDestination()
        await restore(archive, "orders", into=destination)
        assert destination.values == target.values

        await store.put("object", [DATA])
        for data in (b"", b"small", DATA[::-1]):
            with pytest.raises(AlreadyExists, match="put object: the object exists"):
                await store.put("object", [data])
        assert await read(store, "object") == DATA
        with pytest.raises(Refused, match=r"delete object: not permitted .*blobs/delete, or d in a signature's sp="):
            await store.delete("object")


async def test_an_object_that_may_only_be_written_at_once_has_to_fit_into_memory(
    azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resilience.stores.azure_upload.LARGEST_WHOLE", 100_000)
    async with store_with(azurite, container, "rcl") as store:
        with pytest.raises(Refused, match="put object: .* written at once, .*smaller object_size"):
            await store.put("object", [DATA])
        assert await listed(store) == []


@pytest.mark.parametrize(
    ("permission", "operation", "told"),
    [
        ("rl", "put", r"put new: not permitted .*blobs/write, or blobs/add/action .*c \(and w "),
        ("cwl", "get", "get object: not permitted .*Storage Blob Data Reader, or r in "),
        ("cwl", "stat", "stat object: not permitted .*Storage Blob Data Reader, or r in "),
        ("rcw", "list", "list: not permitted .*Storage Blob Data Reader, or l in "),
        ("rcwl", "delete", "delete object: not permitted .*blobs/delete, or d in "),
    ],
)
async def test_what_is_not_permitted_is_told_with_what_it_takes(
    azurite: Azurite, container: str, store: AzureBlobStore, permission: str, operation: str, told: str
) -> None:
    await store.put("object", [DATA])
    async with store_with(azurite, container, permission) as limited:
        asking: Callable[[], Awaitable[object]] = {
            "put": lambda: limited.put("new", [DATA]),
            "get": lambda: read(limited, "object"),
            "stat": lambda: limited.stat("object"),
            "list": lambda: listed(limited),
            "delete": lambda: limited.delete("object"),
        }[operation]
        with pytest.raises(Refused, match=told):
            await asking()
    assert [info.key for info in await listed(store)] == ["object"]


@pytest.mark.parametrize("window", [{"begins": -7200, "ends": -3600}, {"begins": 3600, "ends": 7200}])
async def test_a_signature_out_of_its_time_is_told(azurite: Azurite, container: str, window: dict[str, float]) -> None:
    async with store_with(azurite, container, "rcwdl", **window) as store:
        with pytest.raises(Refused, match="stat object: .*(accepted|permitted)"):
            await store.stat("object")


async def test_a_connection_string_may_hold_a_signature_instead_of_a_key(azurite: Azurite, container: str) -> None:
    connection = f"BlobEndpoint={azurite.url};SharedAccessSignature={signature(container, 'rcwl')}"
    async with AzureBlobStore.from_connection_string(connection, container, ssl_context=azurite.trusted()) as store:
        await store.put("object", [DATA])
        assert await read(store, "object") == DATA


async def test_a_container_that_is_missing_is_told_by_every_operation(azurite: Azurite) -> None:
    connection = azurite.connection_string()
    async with AzureBlobStore.from_connection_string(connection, "nowhere", ssl_context=azurite.trusted()) as store:
        for asking in (store.put("a", [b"data"]), store.stat("a"), store.delete("a"), read(store, "a"), listed(store)):
            with pytest.raises(Refused, match="the container does not exist .create it"):
                await asking


async def test_a_server_that_nobody_trusts_is_refused_at_once(azurite: Azurite, container: str) -> None:
    async with AzureBlobStore.from_connection_string(azurite.connection_string(), container) as store:
        with pytest.raises(Refused, match="stat a: no trusted TLS connection to .*ssl_context="):
            await store.stat("a")


async def test_no_secret_is_ever_shown(azurite: Azurite, container: str, proxy: FakeBlobAccount) -> None:
    sas = signature(container, "l")
    secret = sas.partition("sig=")[2]
    stores = [
        AzureBlobStore(f"{azurite.url}/{container}?{sas}", ssl_context=azurite.trusted()),
        AzureBlobStore(f"{azurite.url}/{container}", credential=f"?{sas}", ssl_context=azurite.trusted()),
        AzureBlobStore(f"http://127.0.0.1:1/account/{container}?{sas}", patience=0),
        AzureBlobStore.from_connection_string(azurite.connection_string(), container, ssl_context=azurite.trusted()),
    ]
    for store in stores:
        async with store:
            with pytest.raises((Refused, Unreachable, ObjectMissing)) as caught:
                await read(store, "object")
        errors = [caught.value, caught.value.__cause__, caught.value.__context__]
        shown = [repr(store), repr(store._container), *map(str, errors), *map(repr, errors)]
        shown += traceback.format_exception(caught.value)
        assert not [text for text in shown if secret in text or KEY in text]
    for wrong in (f"AccountName=a;AccountKey={secret}!;", f"AccountKey={KEY}", "AccountName=a"):
        with pytest.raises(ValueError, match="the connection string") as raised:
            AzureBlobStore.from_connection_string(wrong, "backups")
        assert secret not in str(raised.value) and KEY not in str(raised.value)


async def test_no_secret_is_ever_logged(
    azurite: Azurite, container: str, proxy: FakeBlobAccount, credential: Credential, caplog: pytest.LogCaptureFixture
) -> None:
    sas = signature(container, "rcwdl")
    secrets = [sas.partition("sig=")[2], unquote(sas.partition("sig=")[2]), KEY]
    where, context = f"{azurite.url}/{container}", azurite.trusted()
    stores = [
        AzureBlobStore(where, credential=sas, ssl_context=context, tiers={"": "archive"}),
        AzureBlobStore.from_connection_string(azurite.connection_string(), container, ssl_context=context),
        AzureBlobStore(where, credential=credential, ssl_context=context, tiers={"": "archive"}),
        AzureBlobStore(f"http://127.0.0.1:1/account/{container}?{sas}", patience=0.1),
        AzureBlobStore(f"http://127.0.0.1:{proxy.port}/devstoreaccount1/nowhere?{sas}", patience=0.1),
    ]
    proxy.script = times(2, Fault(answered=3))
    with caplog.at_level(logging.DEBUG):
        for number, store in enumerate(stores):
            store.block_size, store._container.patience = 50_000, 0.1
            key = f"object{number}"
            async with store:
                for asking in (store.put(key, [DATA]), store.rehydrate(key), read(store, key), store.delete(key)):
                    with suppress(ResilienceError):
                        await asking
    secrets.append((await credential.get_token("https://storage.azure.com/.default")).token.rpartition(".")[0][:40])
    assert "azure" in {record.name.partition(".")[0] for record in caplog.records}
    ours = [record for record in caplog.records if record.name != "aiohttp.access"]  # that is the server's, the proxy's
    assert not [record.name for record in ours for secret in secrets if secret in record.getMessage()]


async def test_what_an_answer_that_is_none_is_told_as_shows_no_secret(container: str) -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is no HTTP\r\n\r\n")
        await writer.drain()
        writer.close()

    sas = signature(container, "rcwdl")
    async with await asyncio.start_server(babble, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        async with AzureBlobStore(f"http://127.0.0.1:{port}/account/{container}?{sas}", patience=0.1) as store:
            with pytest.raises(Unreachable, match="stat object: no connection to 127.0.0.1") as caught:
                await store.stat("object")
    assert sas.partition("sig=")[2] not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "credential", "told"),
    [
        ("https://a.blob.core.windows.net/c", None, "say who asks"),
        ("https://a.blob.core.windows.net/c?sig=x", "sig=y", "not both"),
        ("https://a.blob.core.windows.net/c", KEY, "no shared access signature"),
        ("https://a.blob.core.windows.net", "sig=x", "no container's URL"),
        ("ftp://a.blob.core.windows.net/c", "sig=x", "no container's URL"),
        ("http://a.blob.core.windows.net/c", "sig=x", "not encrypted"),
        ("http://127.0.0.1/account/c", Credential(), "not encrypted"),
    ],
)
def test_what_cannot_be_a_store_is_refused(url: str, credential: str | Credential | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AzureBlobStore(url, credential=credential)


def test_tls_is_never_below_1_2() -> None:
    store = AzureBlobStore("https://a.blob.core.windows.net/c?sig=x")
    assert store._context().minimum_version == ssl.TLSVersion.TLSv1_2
    lax = ssl.create_default_context()
    lax.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.raises(ValueError, match="below 1.2"):
        AzureBlobStore("https://a.blob.core.windows.net/c?sig=x", ssl_context=lax)
