"""A key in Azure Key Vault: it never leaves the vault, and every use of it is in the vault's own log.

Anybody can encrypt with the public half of an RSA key, so what is wrapped by RSA-OAEP-256 (RFC 8017, 7.1) is signed
too, by PS256 (RFC 7518, 3.5) with the same key: over the sha256 of a label, the context with its length (8 bytes), the
`id` with its length, and the wrapped bytes. The signature is verified before anything is unwrapped.

Stored are one byte 1, the length of what RSA wrapped (2 bytes, big-endian), that, and the signature. Of the vault it
needs `sign` to wrap, `unwrapKey` to unwrap, and `get` for the public half (or else `wrapKey` and `verify`): see
https://learn.microsoft.com/azure/key-vault/keys/about-keys-details.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, final

from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.keyvault.keys.crypto import KeyWrapAlgorithm, SignatureAlgorithm
from azure.keyvault.keys.crypto.aio import CryptographyClient

from resilience.concurrency import finish
from resilience.model.errors import Refused, ResilienceError, SealBroken, Throttled, TimedOut, Unavailable, Unreachable

WRAP, SIGN = KeyWrapAlgorithm.rsa_oaep_256, SignatureAlgorithm.ps256
LABEL = b"resilience: wrapped in a vault 1"
SECONDS = 60.0
RETRIES, BACKOFF = 5, 0.4
_KEY_ID = re.compile(r"https://[^/\s?#@]+/keys/([0-9a-zA-Z-]{1,127})/([0-9a-f]{32})/?")


@final
class KeyVaultKey:
    """The RSA key `key_id` of a vault, in one version: `https://<vault>.vault.azure.net/keys/<name>/<version>`.

    `credential` is any AsyncTokenCredential; it is not closed. Each use connects anew, unless it is inside
    `async with` of the key. An answer that takes more than `seconds`, retries included, is a TimedOut. `ca_file` and
    `verify_challenge_resource` are for a vault that is not one of Azure's own domains.

    Its `id` is made of the key's name and version. A key that was backed up and restored into another vault keeps both,
    and opens what it has wrapped from there as well.

    Raises ValueError if `key_id` names no version: another one is another key.
    """

    def __init__(
        self,
        key_id: str,
        credential: AsyncTokenCredential,
        *,
        seconds: float = SECONDS,
        ca_file: str | Path | None = None,
        verify_challenge_resource: bool = True,
    ) -> None:
        found = _KEY_ID.fullmatch(key_id)
        if found is None:
            raise ValueError(
                f"{key_id!r} is no key of a vault in one version: it looks like "
                "https://<vault>.vault.azure.net/keys/<name>/<version>, and az keyvault key show prints it"
            )
        self.key_id = key_id.rstrip("/")
        self.id = f"vault-{found[1].lower()[:60]}-{found[2]}"
        self._seconds = seconds
        self._credential = credential
        self._ca_file = ca_file
        self._verify_challenge_resource = verify_challenge_resource
        self._held: CryptographyClient | None = None
        self._open = AsyncExitStack()

    def __repr__(self) -> str:
        return f"KeyVaultKey({self.key_id!r})"

    async def __aenter__(self) -> Self:
        """Keep one connection for all uses until leaving."""
        self._held = await self._open.enter_async_context(self._client())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = None
        await self._open.aclose()

    async def wrap(self, key: bytes, *, context: bytes) -> bytes:
        """Return `key` wrapped and signed by the vault's key. Cancelled: nothing has changed.

        Raises Refused (the vault does not let this credential, or the key is disabled or gone) and Unavailable.
        """
        async with self._asking("wrap key") as vault:
            wrapped = (await vault.wrap_key(WRAP, key)).encrypted_key
            signature = (await vault.sign(SIGN, self._digest(wrapped, context))).signature
        return b"\x01" + len(wrapped).to_bytes(2) + wrapped + signature

    async def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
        """Return what was wrapped. Raises SealBroken unless this key signed it, for this context; else as `wrap`."""
        inner, signature = self._parsed(wrapped)
        try:
            async with self._asking("unwrap key") as vault:
                if not (await vault.verify(SIGN, self._digest(inner, context), signature)).is_valid:
                    raise self._broken()
                return (await vault.unwrap_key(WRAP, inner)).key
        except Refused as error:
            if isinstance(error.__cause__, HttpResponseError) and error.__cause__.status_code == 400:
                raise self._broken() from error  # the vault cannot make anything of these bytes
            raise

    def _digest(self, wrapped: bytes, context: bytes) -> bytes:
        named = self.id.encode()
        lengths = len(context).to_bytes(8), len(named).to_bytes(8)
        return hashlib.sha256(LABEL + lengths[0] + context + lengths[1] + named + wrapped).digest()

    def _parsed(self, wrapped: bytes) -> tuple[bytes, bytes]:
        ends = 3 + int.from_bytes(wrapped[1:3])
        if wrapped[:1] != b"\x01" or not 3 < ends < len(wrapped):
            raise self._broken()
        return wrapped[3:ends], wrapped[ends:]

    def _broken(self) -> SealBroken:
        return SealBroken(
            "this key did not wrap these bytes for this place: they were changed, moved, or made by somebody else",
            operation="unwrap key",
            subject=self.id,
        )

    @asynccontextmanager
    async def _asking(self, operation: str) -> AsyncIterator[CryptographyClient]:
        """Turn what the vault and the way to it answer into our errors, at this one door."""
        try:
            async with asyncio.timeout(self._seconds), AsyncExitStack() as opened:
                yield self._held if self._held is not None else await opened.enter_async_context(self._client())
        except TimeoutError as error:
            raise TimedOut(
                f"the vault gave no answer within {self._seconds:g} s", operation=operation, subject=self.key_id
            ) from error
        except ValueError as error:
            raise Refused(
                "what asks for a token is no vault of Azure's",
                operation=operation,
                subject=self.key_id,
                hint="if it is meant to be one of another domain, verify_challenge_resource=False",
            ) from error
        except AzureError as error:
            raise _ours(error, operation, self.key_id) from error

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[CryptographyClient]:
        client = CryptographyClient(
            self.key_id,
            self._credential,
            verify_challenge_resource=self._verify_challenge_resource,
            connection_verify=str(self._ca_file) if self._ca_file is not None else True,
            connection_timeout=10,
            read_timeout=30,
            retry_total=RETRIES,
            retry_backoff_factor=BACKOFF,
            retry_backoff_max=10,
        )
        try:
            yield client
        finally:
            await finish(client.close())


def _ours(error: AzureError, operation: str, key_id: str) -> ResilienceError:
    def say(kind: type[ResilienceError], what: str, hint: str = "") -> ResilienceError:
        return kind(what, operation=operation, subject=key_id, hint=hint)

    if isinstance(error, ClientAuthenticationError):
        return say(Refused, "there is no token that the vault accepts", "is this the identity that was meant?")
    if not isinstance(error, HttpResponseError):
        return say(Unreachable, "the vault cannot be reached", "its name, the network and its firewall decide that")
    status, code = error.status_code, _code(error)
    if status == 403 and code == "KeyDisabled":
        return say(Refused, "the key is disabled", "enable it again: az keyvault key set-attributes --enabled true")
    if status in (401, 403):
        return say(
            Refused,
            f"the vault does not let this identity do that ({code or status})",
            "it needs the actions get, sign and unwrap of this key, and a way past the vault's firewall",
        )
    if status == 404:
        return say(Refused, "the vault has no such key", "a deleted one can be brought back: az keyvault key recover")
    if status == 429:
        return say(Throttled, "the vault was asked too often", "use fewer at once; the limits are the whole vault's")
    if status is not None and 400 <= status < 500:
        return say(Refused, f"the vault refuses it: {code or status}", "it takes an RSA key that may sign and unwrap")
    return say(Unavailable, f"the vault answered {status or 'nothing sensible'}")


def _code(error: HttpResponseError) -> str:
    """Return the innermost code of what the vault said; the rest of it may name what is nobody's business."""
    said = error.error
    inner = said.innererror if said is not None and isinstance(said.innererror, dict) else {}
    return str(inner.get("code") or (said.code if said is not None else "") or "")
