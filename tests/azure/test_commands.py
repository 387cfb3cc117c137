"""archive_command and restore_command with a container, keys in files and in a vault: named, and never a secret."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

import resilience.keys
from resilience.commands.config import load
from resilience.commands.keeping import keeping
from resilience.commands.wal import get, push
from resilience.keys import KeyFile, KeyVaultKey
from resilience.model.errors import Refused
from resilience.model.moments import utc_now
from resilience.stores import AzureBlobStore, azure_identity
from resilience.testing.azurite import ACCOUNT, KEY
from resilience.testing.fake_key_vault import FakeKeyVault
from resilience.testing.postgres import TestServer
from resilience.testing.stores import listed

from ..conftest import NewServer

SETTINGS = {"archive_mode": "on", "archive_command": "'false'", "wal_keep_size": "1GB"}


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKeyVault]:
    """A vault that the commands find as they find Azure's, asked by an identity that they find too."""
    with FakeKeyVault.running(tmp_path) as running:
        found = partial(KeyVaultKey, ca_file=running.ca_file, verify_challenge_resource=False)
        monkeypatch.setattr(resilience.keys, "KeyVaultKey", found, raising=False)
        monkeypatch.setattr(azure_identity, "DefaultAzureCredential", running.credential)
        yield running


@pytest.fixture
def cluster(new_server: NewServer) -> TestServer:
    """A server whose segments nobody archives."""
    server = new_server(17, "--wal-segsize=1", settings=SETTINGS)
    server.psql("create table t (i int)")
    return server


def finished(cluster: TestServer) -> str:
    """Finish a segment and return its name."""
    cluster.psql("insert into t values (1)")
    return cluster.psql("select pg_walfile_name(pg_switch_wal())")


def signed(folder: Path, store: AzureBlobStore, *, mode: int = 0o600) -> Path:
    """Write down who may read, list and add."""
    path = folder / "signature"
    path.write_text(
        generate_container_sas(
            ACCOUNT,
            store.container_url.rpartition("/")[2],
            account_key=KEY,
            permission=ContainerSasPermissions(read=True, list=True, create=True, write=True),
            expiry=utc_now() + timedelta(hours=1),
        )
        + "\n"
    )
    path.chmod(mode)
    return path


def written(folder: Path, store: AzureBlobStore, *lines: str) -> Path:
    path = folder / "wal.toml"
    text = [f'target = "orders"\ncontainer = "{store.container_url}"', f'signature_file = "{folder}/signature"', *lines]
    path.write_text("\n".join(text))
    path.chmod(0o600)
    return path


async def test_wal_goes_into_a_container_and_back_sealed_by_a_vault_and_after_it_by_a_file(
    behind: AzureBlobStore, vault: FakeKeyVault, cluster: TestServer, tmp_path: Path
) -> None:
    signed(tmp_path, behind)
    vaults, name = vault.create("backups"), finished(cluster)
    where = f'data = "{cluster.data}"\nspool = "{tmp_path}/spool"'
    path = written(tmp_path, behind, f'vault_key = "{vaults}"', where)
    assert await push(load(path), f"pg_wal/{name}") == 0
    assert await push(load(path), f"pg_wal/{name}") == 0
    keys = [info.key for info in await listed(behind, "postgresql/orders/keys/")]
    assert keys and all("/vault-backups-" in key for key in keys)

    key = KeyFile.create(tmp_path / "key")
    path = written(tmp_path, behind, f'key_file = "{tmp_path}/key"\nolder = ["{vaults}"]', where)
    assert await get(load(path), name, f"{tmp_path}/fetched", absent=1) == 0
    assert (tmp_path / "fetched").read_bytes() == (cluster.data / "pg_wal" / name).read_bytes()
    assert await push(load(path), f"pg_wal/{name}") == 0
    assert await push(load(path), f"pg_wal/{finished(cluster)}") == 0
    assert any(key.id in info.key for info in await listed(behind, "postgresql/orders/keys/"))


async def test_a_signature_is_in_a_file_that_others_cannot_read(behind: AzureBlobStore, tmp_path: Path) -> None:
    path = written(tmp_path, behind)
    for mode, says in ((0o644, "is open to others"), (0o600, "")):
        signature = signed(tmp_path, behind, mode=mode)
        if says:
            with pytest.raises(Refused, match=says):
                async with keeping(load(path)):
                    pass
    async with keeping(load(path)) as archive:
        assert "sig=" not in repr(archive)
        assert await archive.lineages("orders") == ()
    for text, says in (("nonsense", "no shared access signature"), (None, "cannot be read: No such file")):
        signature.unlink() if text is None else signature.write_text(text)
        with pytest.raises(Refused, match=says):
            async with keeping(load(path)):
                pass


async def test_without_a_signature_the_identity_is_found_and_closed(
    behind: AzureBlobStore, vault: FakeKeyVault, tmp_path: Path
) -> None:
    path = tmp_path / "wal.toml"
    path.write_text('target = "orders"\ncontainer = "https://account.blob.core.windows.net/backups"')
    async with keeping(load(path)) as archive:
        assert "account.blob.core.windows.net/backups" in repr(archive)
    path.write_text('target = "orders"\ncontainer = "backups"')
    with pytest.raises(Refused, match="container: 'backups' is no container's URL"):
        async with keeping(load(path)):
            pass
    path.write_text(f'target = "orders"\ndirectory = "{tmp_path}"\nvault_key = "https://vault/keys/backups"')
    with pytest.raises(Refused, match="is no key of a vault in one version"):
        async with keeping(load(path)):
            pass
