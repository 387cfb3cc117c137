"""A key in a vault wraps like any other, and what a vault answers is said in one sentence.

The vault is a fake (resilience.testing.fake_key_vault); the client library is the real one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256

from resilience.keys import KeyVaultKey, keyvault
from resilience.model.errors import (
    Refused,
    SealBroken,
    Throttled,
    TimedOut,
    Unavailable,
    Unreachable,
)
from resilience.primitives import KeyEncryptionKey
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.fake_key_vault import OAEP, PSS, FakeCredential, FakeKeyVault, _text
from resilience.testing.keys import CONTEXT, DATA_KEY, KeySuite


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[FakeKeyVault]:
    with FakeKeyVault.running(tmp_path) as running:
        yield running


def opened(
    vault: FakeKeyVault, key_id: str | None = None, *, credential: FakeCredential | None = None, seconds: float = 30.0
) -> KeyVaultKey:
    return KeyVaultKey(
        key_id or vault.create("backups"),
        credential or vault.credential(),
        seconds=seconds,
        ca_file=vault.ca_file,
        verify_challenge_resource=False,  # the fake is no vault of Azure's, and its address says so
    )


class TestKeyVaultKey(KeySuite):
    every_byte = 47

    @pytest.fixture
    def key(self, vault: FakeKeyVault) -> KeyEncryptionKey:
        return opened(vault)

    @pytest.fixture
    def other(self, vault: FakeKeyVault) -> KeyEncryptionKey:
        return opened(vault)

    @pytest.fixture(autouse=True)
    def _handles(self, vault: FakeKeyVault) -> None:
        self.vault = vault

    def again(self, key: KeyEncryptionKey) -> KeyEncryptionKey:
        assert isinstance(key, KeyVaultKey)
        return opened(self.vault, key.key_id)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try once more only."""
    monkeypatch.setattr(keyvault, "RETRIES", 1)
    monkeypatch.setattr(keyvault, "BACKOFF", 0.01)


async def test_who_may_only_get_and_sign_wraps_what_it_cannot_unwrap(vault: FakeKeyVault) -> None:
    key_id = vault.create("backups")
    wrapped = await opened(vault, key_id, credential=vault.credential("get", "sign")).wrap(DATA_KEY, context=CONTEXT)
    with pytest.raises(Refused, match="does not let this identity do that .ForbiddenByRbac"):
        await opened(vault, key_id, credential=vault.credential("get", "sign")).unwrap(wrapped, context=CONTEXT)
    assert await opened(vault, key_id).unwrap(wrapped, context=CONTEXT) == DATA_KEY


async def test_who_may_not_get_the_public_half_asks_the_vault_for_everything(vault: FakeKeyVault) -> None:
    credential = vault.credential("wrapKey", "unwrapKey", "sign", "verify")
    key = opened(vault, credential=credential)
    assert await key.unwrap(await key.wrap(DATA_KEY, context=CONTEXT), context=CONTEXT) == DATA_KEY
    assert vault.asked == ["wrapkey", "sign", "verify", "unwrapkey"]
    with pytest.raises(SealBroken):
        await key.unwrap(await key.wrap(DATA_KEY, context=CONTEXT), context=b"elsewhere")


async def test_a_key_that_anybody_can_wrap_is_not_unwrapped(vault: FakeKeyVault) -> None:
    key_id = vault.create("backups")
    key, private = opened(vault, key_id), vault.key(key_id).private
    theirs = rsa.generate_private_key(65537, 2048)
    inner = private.public_key().encrypt(bytes(32), OAEP)
    signature = theirs.sign(key._digest(inner, CONTEXT), PSS, Prehashed(SHA256()))
    forged = b"\x01" + len(inner).to_bytes(2) + inner + signature
    with pytest.raises(SealBroken, match="made by somebody else"):
        await key.unwrap(forged, context=CONTEXT)
    assert "unwrapkey" not in vault.asked


async def test_a_disabled_key_says_so_and_works_when_it_is_enabled_again(vault: FakeKeyVault) -> None:
    key = opened(vault)
    wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
    vault.key(key.key_id).enabled = False
    with pytest.raises(Refused, match=r"the key is disabled \(enable it"):
        await key.unwrap(wrapped, context=CONTEXT)
    with pytest.raises(Refused, match="the key is disabled"):
        await key.wrap(DATA_KEY, context=CONTEXT)
    vault.key(key.key_id).enabled = True
    assert await key.unwrap(wrapped, context=CONTEXT) == DATA_KEY


async def test_a_deleted_key_says_how_to_bring_it_back(vault: FakeKeyVault) -> None:
    key = opened(vault)
    wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
    vault.key(key.key_id).deleted = True
    for effort in (key.unwrap(wrapped, context=CONTEXT), key.wrap(DATA_KEY, context=CONTEXT)):
        with pytest.raises(Refused, match="no such key .*recover"):
            await effort


async def test_a_key_that_may_only_wrap_is_refused(vault: FakeKeyVault) -> None:
    key = opened(vault, vault.create("backups", operations=frozenset({"wrapKey", "unwrapKey"})))
    with pytest.raises(Refused, match="does not let .*KeyOperationForbidden"):
        await key.wrap(DATA_KEY, context=CONTEXT)


async def test_a_vault_that_is_busy_is_asked_again_when_it_said(vault: FakeKeyVault) -> None:
    key = opened(vault)
    vault.throttle(2, retry_after="1")
    began = time.monotonic()
    wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
    assert time.monotonic() - began >= 2
    assert await key.unwrap(wrapped, context=CONTEXT) == DATA_KEY


@pytest.mark.usefixtures("impatient")
async def test_a_vault_that_stays_busy_is_throttled(vault: FakeKeyVault) -> None:
    key = opened(vault)
    vault.throttle(100)
    with pytest.raises(Throttled, match="asked too often"):
        await key.wrap(DATA_KEY, context=CONTEXT)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [500, 503])
async def test_a_vault_that_fails_is_unavailable(vault: FakeKeyVault, status: int) -> None:
    key = opened(vault)
    vault.failing = status
    with pytest.raises(Unavailable, match=f"the vault answered {status}"):
        await key.wrap(DATA_KEY, context=CONTEXT)


async def test_a_vault_that_says_nothing_is_a_timeout(vault: FakeKeyVault) -> None:
    vault.silent = True
    async with nothing_left_running():
        with pytest.raises(TimedOut, match=r"no answer within 0\.3 s"):
            await opened(vault, seconds=0.3).wrap(DATA_KEY, context=CONTEXT)


@pytest.mark.usefixtures("impatient")
async def test_a_vault_that_is_not_there_or_cannot_prove_its_name_is_unreachable(vault: FakeKeyVault) -> None:
    nobody = KeyVaultKey(f"https://localhost:1/keys/backups/{'0' * 32}", vault.credential())
    impostor = KeyVaultKey(vault.create("backups"), vault.credential(), verify_challenge_resource=False)
    for key in (nobody, impostor):
        with pytest.raises(Unreachable, match="cannot be reached"):
            await key.wrap(DATA_KEY, context=CONTEXT)


async def test_a_token_is_not_given_to_who_is_no_vault_of_azures(vault: FakeKeyVault) -> None:
    credential = vault.credential()
    key = KeyVaultKey(vault.create("backups"), credential, ca_file=vault.ca_file)
    with pytest.raises(Refused, match="no vault of Azure's"):
        await key.wrap(DATA_KEY, context=CONTEXT)
    assert credential.tokens == []


async def test_an_identity_without_a_token_is_refused(vault: FakeKeyVault) -> None:
    class Nobody(FakeCredential):
        async def get_token(self, *_: str, **__: object) -> AccessToken:
            raise ClientAuthenticationError("AADSTS700016: a long story with a secret in it")

    with pytest.raises(Refused, match="no token that the vault accepts") as refused:
        await opened(vault, credential=Nobody()).wrap(DATA_KEY, context=CONTEXT)
    assert "secret" not in str(refused.value)


async def test_an_unknown_token_is_refused(vault: FakeKeyVault) -> None:
    with pytest.raises(Refused, match="no token that the vault accepts|does not let"):
        await opened(vault, credential=FakeCredential()).wrap(DATA_KEY, context=CONTEXT)


async def test_a_token_that_expires_is_replaced(vault: FakeKeyVault) -> None:
    credential = vault.credential()
    async with opened(vault, credential=credential) as key:
        wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
        vault.expire_tokens()
        assert await key.unwrap(wrapped, context=CONTEXT) == DATA_KEY
    assert len(credential.tokens) == 2


async def test_inside_async_with_one_connection_serves_all_uses(vault: FakeKeyVault) -> None:
    async with nothing_left_running(), opened(vault) as key:
        for _ in range(3):
            assert await key.unwrap(await key.wrap(DATA_KEY, context=CONTEXT), context=CONTEXT) == DATA_KEY
    assert vault.asked.count("get") == 1
    assert vault.asked.count("sign") == vault.asked.count("unwrapkey") == 3
    assert await key.wrap(DATA_KEY, context=CONTEXT)


async def test_many_uses_at_once_share_it(vault: FakeKeyVault) -> None:
    async with opened(vault) as key:
        wrapped = await asyncio.gather(*(key.wrap(DATA_KEY, context=CONTEXT) for _ in range(8)))
        unwrapped = await asyncio.gather(*(key.unwrap(each, context=CONTEXT) for each in wrapped))
    assert set(unwrapped) == {DATA_KEY}


async def test_a_key_that_was_restored_into_another_vault_opens_what_it_wrapped(tmp_path: Path) -> None:
    with FakeKeyVault.running(tmp_path) as lost:
        key = opened(lost)
        wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
        kept = lost.key(key.key_id)
    with FakeKeyVault.running(tmp_path) as another:
        another.keys[kept.name, kept.version] = kept
        restored = opened(another, f"{another.url}/keys/{kept.name}/{kept.version}")
        assert restored.id == key.id
        assert await restored.unwrap(wrapped, context=CONTEXT) == DATA_KEY


async def test_neither_key_nor_token_is_in_a_log_or_an_error(
    vault: FakeKeyVault, caplog: pytest.LogCaptureFixture
) -> None:
    credential = vault.credential()
    key = opened(vault, credential=credential)
    with caplog.at_level(logging.DEBUG):
        wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
        await key.unwrap(wrapped, context=CONTEXT)
        with pytest.raises(SealBroken) as broken:
            await key.unwrap(wrapped, context=b"")
    said = caplog.text + repr(key) + str(broken.value)
    assert "/keys/backups/" in said
    for secret in (*credential.tokens, DATA_KEY.hex(), _text(DATA_KEY)):
        assert secret not in said


@pytest.mark.parametrize(
    "key_id",
    [
        "https://orders.vault.azure.net/keys/backups",
        "https://orders.vault.azure.net/keys/backups/",
        "https://orders.vault.azure.net/keys/backups/latest",
        "https://orders.vault.azure.net/secrets/backups/" + "0" * 32,
        "http://orders.vault.azure.net/keys/backups/" + "0" * 32,
        "https://user:password@orders.vault.azure.net/keys/backups/" + "0" * 32,
        "backups",
    ],
)
def test_a_key_without_its_version_is_no_key(vault: FakeKeyVault, key_id: str) -> None:
    with pytest.raises(ValueError, match="in one version"):
        KeyVaultKey(key_id, vault.credential())


def test_the_id_says_which_key_it_is(vault: FakeKeyVault) -> None:
    version = "0123456789abcdef0123456789abcdef"
    key = KeyVaultKey(f"https://orders.vault.azure.net/keys/Backup-Key/{version}/", vault.credential())
    assert key.id == f"vault-backup-key-{version}"
    assert repr(key) == f"KeyVaultKey('https://orders.vault.azure.net/keys/Backup-Key/{version}')"
