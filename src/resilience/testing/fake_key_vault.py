"""A fake of Azure Key Vault: the part of its REST API that keys are used by, over TLS on this machine.

There is no emulator of Key Vault, so this one keeps what the reference says of keys that wrap and sign:
https://learn.microsoft.com/rest/api/keyvault/keys. The real client library is used against it. It holds RSA keys in
versions, asks for a token as a vault does (401 with a challenge), and knows who may do what (403), keys that are
disabled (403 KeyDisabled) or deleted (404), too many questions (429 with Retry-After) and tokens that expire (401). It
proves nothing about Azure's identities, networks, limits or hardware.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web
from attrs import define, field
from azure.core.credentials import AccessToken
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

RESOURCE = "https://vault.azure.net"
TENANT = "11111111-2222-3333-4444-555555555555"
EVERYTHING = frozenset({"get", "wrapKey", "unwrapKey", "sign", "verify"})
OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
_NEEDED = {"wrapkey": "wrapKey", "unwrapkey": "unwrapKey", "sign": "sign", "verify": "verify"}


@define
class FakeCredential:
    """An AsyncTokenCredential whose tokens this fake knows; `tokens` are those it has handed out."""

    lifetime: float = 3600.0
    tokens: list[str] = field(factory=list)

    async def get_token(self, *scopes: str, **_: object) -> AccessToken:
        """Hand out a token for the vault, as azure-identity would."""
        if scopes != (f"{RESOURCE}/.default",):
            raise AssertionError(f"a token for {scopes} is not for a vault")
        self.tokens.append(secrets.token_urlsafe(16))
        return AccessToken(self.tokens[-1], int(time.time() + self.lifetime))

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


@define
class FakeKey:
    """One version of a key, as a vault keeps it."""

    name: str
    version: str
    private: rsa.RSAPrivateKey = field(repr=False)
    operations: frozenset[str]
    enabled: bool = True
    deleted: bool = False


class _Answer(Exception):
    def __init__(self, status: int, code: str, inner: str = "", **headers: str) -> None:
        self.status, self.code, self.inner = status, code, inner
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@define
class FakeKeyVault:
    """A vault; `with FakeKeyVault.running(folder) as vault`. It answers from a thread of its own.

    `asked` are the operations that it carried out. `throttle` makes it answer 429 so many times; `failing` is the
    status of every answer while it is set; with `silent` it answers nothing for a while.
    """

    ca_file: Path
    url: str = ""
    keys: dict[tuple[str, str], FakeKey] = field(factory=dict)
    asked: list[str] = field(factory=list)
    failing: int | None = None
    silent: bool = False
    _allowed: dict[int, tuple[FakeCredential, frozenset[str]]] = field(factory=dict)
    _expired: set[str] = field(factory=set)
    _throttled: int = 0
    _retry_after: str = "0"

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[FakeKeyVault]:
        """Start a vault on a free port; its certificate is written into `folder`."""
        vault = cls(ca_file=folder / "vault-ca.pem")
        context = _certified(vault.ca_file)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="fake-key-vault")
        thread.start()
        runner = web.AppRunner(vault._application(), shutdown_timeout=1.0)
        try:
            port = asyncio.run_coroutine_threadsafe(_serve(runner, context), loop).result(30)
            vault.url = f"https://localhost:{port}"
            yield vault
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()

    def create(self, name: str, *, operations: frozenset[str] = EVERYTHING, bits: int = 2048) -> str:
        """Make a new version of a key; return its id."""
        made = FakeKey(name, secrets.token_hex(16), rsa.generate_private_key(65537, bits), operations)
        self.keys[made.name, made.version] = made
        return f"{self.url}/keys/{made.name}/{made.version}"

    def key(self, key_id: str) -> FakeKey:
        """Return a key by its id, to disable it or to delete it."""
        name, version = key_id.rsplit("/", 2)[1:]
        return self.keys[name, version]

    def credential(self, *allowed: str) -> FakeCredential:
        """Return an identity that may do so much with every key; all, if nothing is said."""
        made = FakeCredential()
        self._allowed[id(made)] = made, frozenset(allowed) or EVERYTHING
        return made

    def expire_tokens(self) -> None:
        """Accept none of the tokens any more that were handed out so far."""
        self._expired.update(token for made, _ in self._allowed.values() for token in made.tokens)

    def throttle(self, times: int, *, retry_after: str = "0") -> None:
        """Answer the next questions with 429."""
        self._throttled, self._retry_after = times, retry_after

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/keys/{name}/{version}", self._handle)
        application.router.add_post("/keys/{name}/{version}/{operation}", self._handle)
        return application

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            return web.json_response(await self._answer(request))
        except _Answer as answer:
            said = {"code": answer.code, "message": f"{answer.code}: this is a fake"}
            body = {"error": said | ({"innererror": {"code": answer.inner}} if answer.inner else {})}
            return web.json_response(body, status=answer.status, headers=answer.headers)

    async def _answer(self, request: web.Request) -> dict[str, object]:
        if self.silent:
            await asyncio.sleep(1.0)
        if "api-version" not in request.query:
            raise _Answer(400, "BadParameter")
        operation = request.match_info.get("operation", "get")
        allowed = self._identified(request)
        if self._throttled > 0:
            self._throttled -= 1
            raise _Answer(429, "Throttled", Retry_After=self._retry_after)
        if self.failing is not None:
            raise _Answer(self.failing, "InternalServerError")
        if _NEEDED.get(operation, "get") not in allowed:
            raise _Answer(403, "Forbidden", "ForbiddenByRbac")
        key = self.keys.get((request.match_info["name"], request.match_info["version"]))
        if key is None or key.deleted:
            raise _Answer(404, "KeyNotFound")
        self.asked.append(operation)
        kid = f"{self.url}/keys/{key.name}/{key.version}"
        if operation == "get":
            return {"key": _jwk(key, kid), "attributes": {"enabled": key.enabled, "recoveryLevel": "Recoverable"}}
        if operation not in _NEEDED or not key.enabled or _NEEDED[operation] not in key.operations:
            raise _Answer(403, "Forbidden", "KeyDisabled" if not key.enabled else "KeyOperationForbidden")
        value = _carry_out(key.private, operation, await request.json())
        return {"value": value} if isinstance(value, bool) else {"kid": kid, "value": _text(value)}

    def _identified(self, request: web.Request) -> frozenset[str]:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        for made, allowed in self._allowed.values():
            if token in made.tokens and token not in self._expired:
                return allowed
        challenge = f'Bearer authorization="https://login.microsoftonline.com/{TENANT}", resource="{RESOURCE}"'
        raise _Answer(401, "Unauthorized", WWW_Authenticate=challenge)


async def _serve(runner: web.AppRunner, context: ssl.SSLContext) -> int:
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0, ssl_context=context)
    await site.start()
    port: int = runner.addresses[0][1]
    return port


def _carry_out(private: rsa.RSAPrivateKey, operation: str, body: dict[str, str]) -> bytes | bool:
    wanted = "RSA-OAEP-256" if operation in ("wrapkey", "unwrapkey") else "PS256"
    if body.get("alg") != wanted:
        raise _Answer(400, "BadParameter")
    digest = _bytes(body.get("digest", body["value"]))
    try:
        if operation == "wrapkey":
            return private.public_key().encrypt(_bytes(body["value"]), OAEP)
        if operation == "unwrapkey":
            return private.decrypt(_bytes(body["value"]), OAEP)
        if operation == "sign":
            return private.sign(digest, PSS, Prehashed(hashes.SHA256()))
        private.public_key().verify(_bytes(body["value"]), digest, PSS, Prehashed(hashes.SHA256()))
    except InvalidSignature:
        return False
    except ValueError as error:
        raise _Answer(400, "BadParameter") from error
    return True


def _jwk(key: FakeKey, kid: str) -> dict[str, object]:
    numbers = key.private.public_key().public_numbers()
    n = _text(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8))
    return {"kid": kid, "kty": "RSA", "key_ops": sorted(key.operations), "n": n, "e": _text(b"\x01\x00\x01")}


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _bytes(value: str) -> bytes:
    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))


def _certified(ca_file: Path) -> ssl.SSLContext:
    """Make a certificate for this machine, valid for a day, and a context that serves with it."""
    private, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake-key-vault")])
    hosts = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(hosts, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    ca_file.write_bytes(certificate)
    both = ca_file.with_suffix(".both")
    both.touch(mode=0o600)
    both.write_bytes(secret + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    both.unlink()
    return context
