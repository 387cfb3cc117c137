"""A key in a file is made once, kept from others, and wraps for one place only."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from resilience.keys import KeyFile
from resilience.keys import file as key_file
from resilience.model.errors import AlreadyExists, Refused, SealBroken, StorageFailed
from resilience.primitives import KeyEncryptionKey
from resilience.testing.keys import CONTEXT, DATA_KEY, KeySuite

from .faults import at_os_call


class TestKeyFile(KeySuite):
    @pytest.fixture
    def key(self, tmp_path: Path) -> KeyEncryptionKey:
        return KeyFile.create(tmp_path / "one.key")

    @pytest.fixture
    def other(self, tmp_path: Path) -> KeyEncryptionKey:
        return KeyFile.create(tmp_path / "other.key")

    def again(self, key: KeyEncryptionKey) -> KeyEncryptionKey:
        assert isinstance(key, KeyFile)
        return KeyFile(key.path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "backup.key"


def test_only_the_owner_can_read_a_new_key_whatever_the_umask_is(path: Path) -> None:
    before = os.umask(0)
    try:
        KeyFile.create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_never_replaced(path: Path) -> None:
    first = KeyFile.create(path).id
    with pytest.raises(AlreadyExists, match=r"backup\.key.*never replaced"):
        KeyFile.create(path)
    assert KeyFile(path).id == first


def test_a_key_that_cannot_be_written_says_so_and_leaves_nothing(path: Path) -> None:
    with pytest.raises(StorageFailed, match="No such file"):
        KeyFile.create(path / "not" / "there")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_can_read_is_refused(path: Path, mode: int) -> None:
    KeyFile.create(path)
    path.chmod(mode)
    with pytest.raises(Refused, match=r"others than its owner can read .*chmod 600"):
        KeyFile(path)


@pytest.mark.parametrize(
    ("owner", "user", "mode", "refused"),
    [
        (0, 1000, 0o440, False),
        (0, 1000, 0o640, False),
        (0, 1000, 0o444, True),
        (0, 1000, 0o660, True),
        (0, 0, 0o440, True),
        (1000, 1000, 0o400, False),
        (1000, 1000, 0o440, True),
        (1001, 1000, 0o400, True),
        (1001, 0, 0o400, True),
    ],
)
def test_the_group_may_read_a_key_of_roots_as_a_mounted_secret_has_it(
    owner: int, user: int, mode: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    status = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, 0, 100, 0, 0, 0))
    assert key_file._is_open_to_others(status) is refused


def damaged(line: bytes) -> list[bytes]:
    return [
        b"",
        line[:-2],
        line + b"\n",
        line + line,
        line.upper(),
        line.replace(b"key-1", b"key-2"),
        line.replace(b" ", b"  "),
        line[:17] + (b"0" if line[17:18] != b"0" else b"1") + line[18:],
        os.urandom(32),
        b"x" * 100_000,
    ]


def test_a_file_that_is_no_key_is_refused(path: Path) -> None:
    KeyFile.create(path)
    for line in damaged(path.read_bytes()):
        path.write_bytes(line)
        with pytest.raises(Refused, match="no key file, or not all of it"):
            KeyFile(path)


def test_an_editor_may_have_taken_the_end_of_the_line(path: Path) -> None:
    key = KeyFile.create(path)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert KeyFile(path).id == key.id


def test_what_cannot_be_read_is_refused_at_once(path: Path) -> None:
    with pytest.raises(Refused, match="No such file"):
        KeyFile(path)
    path.mkdir()
    with pytest.raises(Refused, match="directory"):
        KeyFile(path)
    os.mkfifo(path / "pipe")
    with pytest.raises(Refused, match="no key file"):
        KeyFile(path / "pipe")


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_full_disk_leaves_no_half_key(path: Path, number: int) -> None:
    def full(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with at_os_call(number, full) as made, pytest.raises(StorageFailed, match="No space left"):
        KeyFile.create(path)
    assert made[:number] == ["open", "fsync", "open", "fsync"][:number]
    assert not path.exists()


async def test_the_key_is_in_no_text_that_is_shown(path: Path) -> None:
    key = KeyFile.create(path)
    secret = path.read_text().split()[1]
    assert secret not in repr(key) + str(key) + key.id
    with pytest.raises(SealBroken) as refused:
        await key.unwrap(bytes(60), context=CONTEXT)
    assert secret not in str(refused.value)
    assert DATA_KEY.hex() not in str(refused.value)


def test_only_who_uses_a_key_loads_what_it_is_made_with() -> None:
    script = "import sys, resilience.keys, resilience.archive\nassert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", script], check=True)


async def test_a_wrapped_key_can_be_opened_without_this_library(path: Path) -> None:
    wrapped = await KeyFile.create(path).wrap(DATA_KEY, context=CONTEXT)
    script = """
import hmac, sys
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
path, wrapped, context = sys.argv[1], *map(bytes.fromhex, sys.argv[2:])
key = bytes.fromhex(open(path).read().split()[1])
wrapping = hmac.digest(key, b"resilience: wrap keys 1", "sha256")
print(AESGCM(wrapping).decrypt(wrapped[:12], wrapped[12:], context).hex())
"""
    arguments = [sys.executable, "-I", "-c", script, str(path), wrapped.hex(), CONTEXT.hex()]
    opened = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert bytes.fromhex(opened) == DATA_KEY
