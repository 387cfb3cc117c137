"""Azurite over TLS for a bench: one port and one certificate, on folders that are found again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import define, field
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from resilience.testing.azurite import ACCOUNT, KEY, Azurite, find_azurite, make_certificate
from resilience.testing.postgres import free_port

CONTAINER = "bench"


@define
class Emulator:
    """One Azurite at a time; `folder` has its certificate."""

    folder: Path
    command: list[str]
    port: int = field(factory=free_port)
    running: Azurite = field(init=False)

    def __attrs_post_init__(self) -> None:
        make_certificate(self.folder)
        self.running = Azurite(self.folder, self.command, port=self.port)

    @classmethod
    @contextmanager
    def over_tls(cls, folder: Path, testbed: Path) -> Iterator[Emulator]:
        """Make one; stopped on leaving."""
        folder.mkdir()
        emulator = cls(folder, find_azurite(testbed))
        try:
            yield emulator
        finally:
            emulator.stop()

    @property
    def certificate(self) -> Path:
        """What to trust."""
        return self.folder / "certificate.pem"

    @property
    def url(self) -> str:
        """The container's URL, without anything secret."""
        return f"{self.running.url}/{CONTAINER}"

    @property
    def connection(self) -> str:
        """How the SDK's tools are told of the account; the key is every Azurite's."""
        return self.running.connection_string()

    @property
    def shared_url(self) -> str:
        """The container's URL with a signature for a day."""
        allowed = ContainerSasPermissions(read=True, add=True, create=True, write=True, delete=True, list=True)
        until = datetime.now(UTC) + timedelta(days=1)
        return f"{self.url}?{generate_container_sas(ACCOUNT, CONTAINER, KEY, permission=allowed, expiry=until)}"

    def begin(self, folder: Path) -> None:
        """Start anew with an empty container."""
        self.stop()
        shutil.rmtree(folder, ignore_errors=True)
        self.start(folder)
        self.running.create_container(CONTAINER)

    def start(self, folder: Path) -> None:
        """Start on a folder, whatever it holds, stopping what runs on another."""
        self.stop()
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("certificate.pem", "key.pem"):
            shutil.copy(self.folder / name, folder)
        self.running = Azurite(folder, self.command, port=self.port)
        self.running.start()

    def stop(self) -> None:
        """Stop it, if it runs; it writes what it knows of its blobs first."""
        self.running.stop()
