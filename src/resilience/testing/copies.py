"""Clusters that are copied instead of made: initdb takes six times as long as a copy of what it left."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
from pathlib import Path

import crc32c

_SYSTEM = slice(0, 8)
_WAL_MAGIC = slice(0, 2)
_WAL_SYSTEM = slice(24, 32)


def keep(data: Path, folder: Path, bin_dir: Path, initdb: tuple[str, ...]) -> None:
    """Keep a copy in `folder` of what initdb with these arguments left in `data`. Nothing may have run on it yet."""
    kept = _kept(folder, bin_dir, initdb)
    new = folder / f"new-{secrets.token_hex(8)}"
    new.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _copy(data, new)
    try:
        new.rename(kept)
    except OSError:
        if not kept.exists():
            raise  # else somebody else was quicker


def copied(data: Path, folder: Path, bin_dir: Path, initdb: tuple[str, ...]) -> bool:
    """Copy to `data` what initdb with these arguments left once, as a cluster of its own; False if none was kept."""
    kept = _kept(folder, bin_dir, initdb)
    if not kept.exists():
        return False
    _copy(kept, data)
    identify(data, secrets.randbits(62))
    return True


def identify(data: Path, system: int) -> None:
    """Give a cluster that never ran another system identifier, which PostgreSQL's programs cannot do.

    It stands in pg_control, whose checksum follows the fields at another place in every major version, and in the first
    page of every WAL segment; see src/include/catalog/pg_control.h and src/include/access/xlog_internal.h.
    """
    raw = system.to_bytes(8, sys.byteorder)
    control = data / "global" / "pg_control"
    changed = bytearray(control.read_bytes())
    end = next(end for end in range(64, 1024, 4) if _checksum(changed, end) == changed[end : end + 4])
    changed[_SYSTEM] = raw
    changed[end : end + 4] = _checksum(changed, end)
    control.write_bytes(changed)
    for segment in (data / "pg_wal").iterdir():
        if segment.is_file():
            with segment.open("r+b") as file:
                if any(file.read(_WAL_MAGIC.stop)):  # not one that is still empty
                    file.seek(_WAL_SYSTEM.start)
                    file.write(raw)


def _checksum(control: bytearray, end: int) -> bytes:
    return crc32c.crc32c(bytes(control[:end])).to_bytes(4, sys.byteorder)


def _kept(folder: Path, bin_dir: Path, initdb: tuple[str, ...]) -> Path:
    """Return where the copy for these arguments is; the environment may choose the locale."""
    locale = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name == "LANG" or name[:3] == "LC_"]
    asked = "\0".join([str(bin_dir), *initdb, *locale])
    return folder / hashlib.sha256(asked.encode()).hexdigest()[:16]


def _copy(source: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(to)], check=True)  # noqa: S607  # wherever cp is
