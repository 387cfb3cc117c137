"""Who asks a storage account: a token of Microsoft Entra ID, a shared access signature, or (for development) its key.

See "Authorize with Shared Key" and "Create a service SAS" in the reference of Azure's storage services.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from typing import Protocol, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from attrs import define, field, frozen

from resilience.model.errors import Refused, Unreachable

SCOPE = "https://storage.azure.com/.default"
EARLY_SECONDS = 300
"""A token is asked for anew this long before it expires."""

_SIGNED = (
    *("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date"),
    *("if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"),
)


class AccessToken(Protocol):
    """What a credential gives: azure-core's `AccessToken` is one."""

    @property
    def token(self) -> str:
        """What is sent."""
        ...

    @property
    def expires_on(self) -> int:
        """Until when, in seconds since 1970."""
        ...


class TokenCredential(Protocol):
    """Every credential of `azure.identity.aio` is one, and every other `AsyncTokenCredential`."""

    def get_token(self, *scopes: str) -> Awaitable[AccessToken]:
        """Ask for a token."""
        ...


@frozen
class Question:
    """A request that does not say yet who asks."""

    method: str
    url: str
    headers: dict[str, str] = field(factory=dict)


class Authorizer(Protocol):
    """Adds to a request what says who asks."""

    async def authorize(self, asked: Question) -> str:
        """Add headers, and return the URL to ask."""
        ...

    def rejected(self) -> bool:
        """Take note that the service did not accept it; say whether asking again can help."""
        ...


@define
class Token:
    """Asks as whom a credential stands for. Its token is kept until shortly before it expires."""

    credential: TokenCredential = field(repr=False)
    clock: Callable[[], float] = field(default=time.time, repr=False)
    _held: AccessToken | None = field(default=None, init=False, repr=False)

    async def authorize(self, asked: Question) -> str:
        """See `Authorizer`. Raises Refused if the credential gives no token, Unreachable if it has no connection."""
        held = self._held
        if held is None or held.expires_on - EARLY_SECONDS <= self.clock():
            held = self._held = await self._ask()
        asked.headers["Authorization"] = f"Bearer {held.token}"
        return asked.url

    def rejected(self) -> bool:
        """See `Authorizer`: the next request asks the credential again."""
        self._held = None
        return True

    async def _ask(self) -> AccessToken:
        try:
            return await self.credential.get_token(SCOPE)
        except Exception as error:
            raise _no_token(error) from error


def _bare(query: str) -> str:
    return query.strip().lstrip("?")


@frozen
class Signature:
    """Asks with a shared access signature: the query string that was signed."""

    query: str = field(repr=False, converter=_bare)

    @query.validator
    def _signed(self, _: object, query: str) -> None:
        if not dict(parse_qsl(query)).get("sig"):
            raise ValueError("this is no shared access signature: it has no sig=")

    async def authorize(self, asked: Question) -> str:
        """See `Authorizer`."""
        return f"{asked.url}{'&' if '?' in asked.url else '?'}{self.query}"

    def rejected(self) -> bool:
        """See `Authorizer`: it will be no better the next time."""
        return False


@frozen
class SharedKey:
    """Asks with the account's key, which may do everything: for development only."""

    account: str
    key: bytes = field(repr=False)

    async def authorize(self, asked: Question) -> str:
        """See `Authorizer`."""
        self.sign(asked)
        return asked.url

    def sign(self, asked: Question) -> None:
        """Add the date and the signature."""
        asked.headers["x-ms-date"] = formatdate(usegmt=True)
        lines = [asked.method, *_standard(asked.headers), *_special(asked.headers), self._resource(asked.url)]
        digest = base64.b64encode(hmac.new(self.key, "\n".join(lines).encode(), hashlib.sha256).digest()).decode()
        asked.headers["Authorization"] = f"SharedKey {self.account}:{digest}"

    def rejected(self) -> bool:
        """See `Authorizer`: it will be no better the next time."""
        return False

    def _resource(self, url: str) -> str:
        parts = urlsplit(url)
        query = sorted(parse_qsl(parts.query, keep_blank_values=True))
        # An emulator's URL has the account in its path; the account's secondary is signed as the account itself.
        path = parts.path.replace(f"/{self.account}-secondary/", f"/{self.account}/", 1)
        return "\n".join([f"/{self.account}{path}", *(f"{name.lower()}:{value}" for name, value in query)])


Asker: TypeAlias = Token | Signature | SharedKey
"""Whoever can be asked as."""


def _standard(headers: Mapping[str, str]) -> list[str]:
    lower = {name.lower(): value for name, value in headers.items()}
    if lower.get("content-length") == "0":
        del lower["content-length"]
    return [lower.get(name, "") for name in _SIGNED]


def _special(headers: Mapping[str, str]) -> list[str]:
    return sorted(f"{name.lower()}:{value}" for name, value in headers.items() if name.lower().startswith("x-ms-"))


def connection(text: str) -> tuple[str, SharedKey | Signature]:
    """Read a connection string: the URL of its blob service, and who asks. Raises ValueError, without its secrets."""
    found = {name.strip().lower(): value for name, _, value in (part.partition("=") for part in text.split(";"))}
    account = found.get("accountname", "")
    scheme, suffix = found.get("defaultendpointsprotocol", "https"), found.get("endpointsuffix", "core.windows.net")
    endpoint = found.get("blobendpoint") or (account and f"{scheme}://{account}.blob.{suffix}")
    if not endpoint:
        raise ValueError("the connection string names neither an account nor a BlobEndpoint")
    if signature := found.get("sharedaccesssignature"):
        return endpoint.rstrip("/"), Signature(signature)
    try:
        key = base64.b64decode(found["accountkey"], validate=True)
    except (KeyError, binascii.Error):
        text = "the connection string has neither a usable AccountKey nor a SharedAccessSignature"
        raise ValueError(text) from None
    return endpoint.rstrip("/"), SharedKey(account, key)


def _no_token(error: Exception) -> Refused | Unreachable:
    # azure-core is there if it is its error; nothing else needs it.
    names = {each.__name__ for each in type(error).__mro__}
    what = (str(error).splitlines() or [""])[0][:300]
    if isinstance(error, OSError) or names & {"ServiceRequestError", "ServiceResponseError"}:
        return Unreachable(f"the credential could not ask for a token: {what}", operation="authorize")
    return Refused(
        f"the credential gives no token: {what or type(error).__name__}",
        operation="authorize",
        hint="check that this identity exists here and may ask for tokens of storage.azure.com",
    )
