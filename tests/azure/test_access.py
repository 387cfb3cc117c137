"""Who may do what: tokens, signatures that Azure's own SDK made, and what is told when a right is missing."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from resilience import Archive, Refused, backup, restore
from resilience.model.errors import AlreadyExists, ObjectMissing, Unreachable
from resilience.stores import AzureBlobStore
from resilience.stores.azure_auth import AccessToken, Token
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
    """Gives tokens as Microsoft Entra ID's look, valid for `seconds` each, and counts them."""

    def __init__(self, seconds: float = 3600, offset: float = 0) -> None:
        self.seconds, self.offset = seconds, offset
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
        return SimpleNamespace(token=f"{parts[0]}.{parts[1]}.", expires_on=int(now + self.seconds))


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
        credential.seconds = 1  # less than the time before its end at which a new one is asked for
        yield DATA[:120_000]
        yield DATA[120_000:]

    credential.seconds = 301
    await as_identity.stat("object")
    await asyncio.sleep(1.1)
    await as_identity.put("object", chunks())
    assert await read(as_identity, "object") == DATA
    assert credential.given > 4


async def test_a_token_that_is_refused_although_it_looks_valid_is_asked_for_anew(
    as_identity: AzureBlobStore, credential: Credential
) -> None:
    credential.offset = -7200  # the machine's clock and that of the account do not agree
    held = await credential.get_token("https://storage.azure.com/.default")
    asker = as_identity._container.authorizer
    assert isinstance(asker, Token)
    asker._held = SimpleNamespace(token=held.token, expires_on=time.time() + 3600)
    credential.offset = 0
    await as_identity.put("object", [DATA])
    assert await read(as_identity, "object") == DATA
    assert credential.given == 2


async def test_a_revoked_token_is_asked_for_anew_in_the_middle_of_an_upload(
    proxy: FakeBlobAccount, behind: AzureBlobStore
) -> None:
    rejected: list[None] = []

    class Watched:
        async def authorize(self, asked: object) -> str:
            return await asker.authorize(asked)  # type: ignore[arg-type]

        def rejected(self) -> bool:
            rejected.append(None)
            return True

    asker = behind._container.authorizer
    behind._container.authorizer = Watched()
    proxy.script = times(
        2, Fault(status=401, code="InvalidAuthenticationInfo"), when=lambda asked: "&" in asked.path_qs
    )
    with pytest.raises(Refused, match="put object: the token is not accepted"):
        await behind.put("object", [DATA])
    proxy.script = times(
        1, Fault(status=401, code="InvalidAuthenticationInfo"), when=lambda asked: "&" in asked.path_qs
    )
    await behind.put("object", [DATA])
    assert await read(behind, "object") == DATA
    assert len(rejected) == 2


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
        assert not [text for text in shown if secret in text or KEY in text]
    for wrong in (f"AccountName=a;AccountKey={secret}!;", f"AccountKey={KEY}", "AccountName=a"):
        with pytest.raises(ValueError, match="the connection string") as raised:
            AzureBlobStore.from_connection_string(wrong, "backups")
        assert secret not in str(raised.value) and KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "credential", "told"),
    [
        ("https://a.blob.core.windows.net/c", None, "say who asks"),
        ("https://a.blob.core.windows.net/c?sig=x", "sig=y", "not both"),
        ("https://a.blob.core.windows.net/c", KEY, "no shared access signature"),
        ("https://a.blob.core.windows.net", "sig=x", "no container's URL"),
        ("ftp://a.blob.core.windows.net/c", "sig=x", "no container's URL"),
        ("http://a.blob.core.windows.net/c", "sig=x", "not encrypted"),
    ],
)
def test_what_cannot_be_a_store_is_refused(url: str, credential: str | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AzureBlobStore(url, credential=credential)


def test_tls_is_never_below_1_2() -> None:
    store = AzureBlobStore("https://a.blob.core.windows.net/c?sig=x")
    assert store._context().minimum_version == ssl.TLSVersion.TLSv1_2
    lax = ssl.create_default_context()
    lax.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.raises(ValueError, match="below 1.2"):
        AzureBlobStore("https://a.blob.core.windows.net/c?sig=x", ssl_context=lax)
