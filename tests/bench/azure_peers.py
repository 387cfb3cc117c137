"""Those who keep PostgreSQL's backups on Azure Blob Storage beside us: barman-cloud and pgBackRest, against Azurite."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

from emulator import CONTAINER, Emulator
from resilience.postgres.tools import Account
from resilience.testing.azurite import ACCOUNT, KEY
from resilience.testing.postgres import TestServer, owned_folder, unprivileged

# Barman asks for psycopg2, which wants a compiler; the same module also comes built.
BARMAN = {(3, 12): "barman==3.20.1", (3, 11): "barman==3.19.1"}
BESIDE_BARMAN = ("azure-identity", "azure-storage-blob", "psycopg2-binary", "python-dateutil", "zstandard")
NEWER_PYTHONS = ("python3.14", "python3.13", "python3.12")


@frozen(kw_only=True)
class Peer:
    """Somebody who backs a server up to a container.

    `archives` is what the server's archive_command runs meanwhile; `prepares` runs untimed on the empty container. The
    lines are for bash; those of `account` None run as whoever runs the bench.
    """

    name: str
    backs_up: str
    restores: str
    archives: str = "true"
    prepares: str = ""
    environment: Mapping[str, str]
    account: Account | None


def pgbackrest(folder: Path, server: TestServer, emulator: Emulator) -> list[Peer]:
    """Return pgBackRest with zstd 1 and two processes, as it is installed; nothing where it is not."""
    program = shutil.which("pgbackrest")
    if program is None:
        return []
    home = owned_folder(folder / "pgbackrest")
    config = folder / "pgbackrest.conf"
    config.write_text(
        f"[global]\nrepo1-type=azure\nrepo1-path=/pgbackrest\nrepo1-azure-account={ACCOUNT}\n"
        f"repo1-azure-key={KEY}\nrepo1-azure-container={CONTAINER}\nrepo1-azure-uri-style=path\n"
        f"repo1-storage-host=localhost\nrepo1-storage-port={emulator.port}\nrepo1-storage-ca-file={emulator.certificate}\n"
        f"log-path={home}\nlock-path={home}\nspool-path={home}\nlog-level-file=off\nlog-level-console=warn\n"
        "compress-type=zst\ncompress-level=1\nprocess-max=2\nstart-fast=y\nrepo1-retention-full=99\n"
        f"[bench]\npg1-path={server.data}\npg1-port={server.port}\npg1-socket-path={server.folder}\npg1-user=postgres\n"
    )
    config.chmod(0o600)
    if account := unprivileged():
        os.chown(config, account.uid, account.gid)
    call = f"{program} --config={config} --stanza=bench"
    return [
        Peer(
            name="pgbackrest zst1",
            backs_up=f"{call} --type=full backup",
            restores=f"{call} --pg1-path={{data}} --type=immediate --target-action=promote restore",
            archives=f'{call} archive-push "$1"',
            prepares=f"{call} stanza-create",
            environment={},
            account=account,
        )
    ]


def barman(folder: Path, server: TestServer, emulator: Emulator, *, environment: Path) -> list[Peer]:
    """Return barman-cloud with every compression worth a run that this version knows; nothing without one.

    Its WAL goes to a local folder, by cp: an archive_command of its own starts a Python for each segment, and what it
    needs for that is not what is compared here. Its figures are the better for it.
    """
    program = environment / "bin" / "barman-cloud-backup"
    if not program.exists():
        return []
    known = subprocess.run([program, "--help"], check=True, capture_output=True, text=True).stdout
    fast = "--zstd" if "--zstd" in known else "--lz4"
    segments = owned_folder(folder / "barman-wal")
    recovery = folder / "barman-recovery.conf"
    recovery.write_text(
        f"restore_command = 'cp {segments}/%f %p'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n"
    )
    account = unprivileged()
    owned = f"chown -R {account.uid}:{account.gid} {{data}} && " if account else ""
    peers = []
    for option in (fast, ""):
        where = f"--cloud-provider azure-blob-storage {emulator.url}/barman bench"
        connect = f"-h {server.folder} -p {server.port} -U postgres"
        restore = f"{program.with_name('barman-cloud-restore')} {where} bench {{data}} && chmod 700 {{data}}"
        recover = f"cat {recovery} >> {{data}}/postgresql.auto.conf && touch {{data}}/recovery.signal"
        peers.append(
            Peer(
                name=f"barman-cloud {option.strip('-') or 'plain'}",
                backs_up=f"{program} {option} -J 2 --immediate-checkpoint {connect} -n bench {where}",
                restores=f"{restore} && {recover} && {owned}sync -f {{data}}",
                archives=f'cp "$1" "{segments}/$2"',
                environment={
                    "AZURE_STORAGE_CONNECTION_STRING": emulator.connection,
                    "REQUESTS_CA_BUNDLE": str(emulator.certificate),
                },
                account=None,
            )
        )
    return peers


def install_barman(folder: Path, constraints: Path) -> str:
    """Make a virtual environment with barman-cloud in `folder`, unless it is there; return why it is not, or nothing.

    The newest Barman wants Python 3.12: where one is found it is taken, else the last Barman for ours.
    """
    if (folder / "bin" / "barman-cloud-backup").exists():
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    python = newest_python()
    new = folder.with_name("new-barman")
    shutil.rmtree(new, ignore_errors=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = BARMAN[min(max(version_of(python), (3, 11)), (3, 12))]
    steps: list[Sequence[str]] = [
        [python, "-m", "venv", str(folder)],
        [*pip, "-c", str(constraints), *BESIDE_BARMAN],
        [*pip, "--no-deps", wanted],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            return (done.stderr or done.stdout).strip().splitlines()[-1]
    return ""


def newest_python() -> str:
    """Return the newest Python that answers, by its path: of those on the PATH, of pyenv's, and ours."""
    found = [shutil.which(name) for name in NEWER_PYTHONS]
    found += sorted(map(str, (Path.home() / ".pyenv" / "versions").glob("3.1[2-4].*/bin/python3")), reverse=True)
    works = [path for path in found if path and version_of(path) >= (3, 12)]
    return works[0] if works else sys.executable


def version_of(python: str) -> tuple[int, int]:
    """Return which Python this is; (0, 0) for one that does not start."""
    code = "import ssl, sys, venv; print(*sys.version_info[:2])"
    asked = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    if asked.returncode:
        return (0, 0)
    major, minor = map(int, asked.stdout.split())
    return (major, minor)
