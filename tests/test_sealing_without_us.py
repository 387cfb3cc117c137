"""A sealed archive can be brought back without this library: the script in docs/encryption.md is run as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resilience import Archive
from resilience.archive import layout
from resilience.keys import KeyFile
from resilience.stores import LocalStore
from resilience.testing.archivers import PARTS, plan, write
from resilience.testing.faults import changed, flipped
from resilience.testing.log_entries import opened, piece, plain, whole

from .conftest import missing
from .test_docs import ROOT, blocks

Unseal = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def unseal(tmp_path: Path) -> Unseal:
    """Run the documented script in the folder of the archive, and `zstd -d` after it."""
    if shutil.which("zstd") is None:
        missing("zstd is not installed")
    (code,) = blocks(ROOT / "docs" / "encryption.md", "py")
    script = tmp_path / "unseal.py"
    script.write_text(code)

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = '"$0" "$@" | zstd -q -d'
        shell = ["bash", "-o", "pipefail", "-c", command, sys.executable]
        words = [*shell, str(script), str(tmp_path / "key"), *arguments]
        return subprocess.run(words, cwd=tmp_path / "archive", capture_output=True, check=False)

    return run


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    store = LocalStore(tmp_path / "archive")
    return Archive(store, key=KeyFile.create(tmp_path / "key"), frame_size=700, object_size=3000)


async def test_a_part_comes_back_with_the_documented_script(archive: Archive, unseal: Unseal) -> None:
    manifest = await write(archive, plan())
    key = layout.manifest("memory", "orders", manifest.id)
    for name, data in PARTS.items():
        done = unseal(key, name)
        assert (done.returncode, done.stdout) == (0, data), done.stderr
    async with changed(archive.store, key, lambda data: data.replace(b'"orders"', b'"others"')):
        assert b"the seal is broken" in unseal(key, "one").stderr
    async with changed(archive.store, manifest.part("one").objects[-1].key, flipped(-1)):
        assert b"InvalidTag" in unseal(key, "one").stderr


async def test_an_entry_of_the_log_comes_back_with_the_documented_script(archive: Archive, unseal: Unseal) -> None:
    async with opened(archive, whole(0), piece(1, 10, 2000)):
        pass
    root = Path(str(archive.store.root)) if isinstance(archive.store, LocalStore) else Path()
    for folder, expected in (("log", plain(whole(0))), ("slices", plain(piece(1, 10, 2000)))):
        (path,) = (root / "memory" / "orders" / folder).rglob("*.zst")
        done = unseal(str(path.relative_to(root)))
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
