"""The file that says where PgBouncer's databases are: found, and replaced whole or not at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from attrs import define, frozen

from resilience.model.errors import Refused, RouteMoved
from resilience.postgres.addresses import Address

from .config import includes, moved, places

DEPTH = 10
NEW = ".resilience-new"


@frozen
class ConfigFile:
    """One configuration file as it was read."""

    path: Path
    data: bytes
    section: str = ""

    @property
    def text(self) -> str:
        """Its text; bytes that are no UTF-8 come back as they were."""
        return self.data.decode(errors="surrogateescape")

    @property
    def places(self) -> dict[str, Address]:
        """Where it says that the databases are."""
        return places(self.text, self.section)


def find(config: Path, databases: Collection[str], *, subject: str) -> ConfigFile:
    """Return the file, this one or one that it includes, that has the lines of all these databases.

    A relative %include is looked for beside the file that has it; one that cannot be read is passed over. Raises
    Refused; so that all lines change at once, they have to be in one file.
    """
    read = _read(config, "databases", DEPTH)  # a file that is included may begin with lines
    try:
        found = [file for file in read if not file.places.keys().isdisjoint(databases)]
    except OSError as error:
        text = f"{config} cannot be read: {error.strerror}"
        hint = "run this where PgBouncer runs, as somebody who may read it"
        raise Refused(text, operation="switch", subject=subject, hint=hint) from error
    if not found:
        text = f"{config} has no line for {', '.join(sorted(databases))}"
        raise Refused(text, operation="switch", subject=subject, hint="name the file that has it, with config=")
    lacking = sorted(set(databases) - found[0].places.keys())
    if len(found) > 1 or lacking:
        where = " and ".join(str(file.path) for file in found)
        absent = f" and {', '.join(lacking)} in none of them" if lacking and len(found) == 1 else ""
        text = f"the lines of {', '.join(sorted(databases))} are in {where}{absent}"
        raise Refused(text, operation="switch", subject=subject, hint="put them into one file, or switch them apart")
    return found[0]


def _read(path: Path, section: str, depth: int) -> Iterator[ConfigFile]:
    real = path.resolve(strict=True)  # the file itself is replaced, not a link that leads to it
    file = ConfigFile(real, real.read_bytes(), section)
    yield file
    for name, inside in includes(file.text, section) if depth else []:
        with suppress(OSError):
            yield from _read(real.parent / name, inside, depth - 1)


@define
class Replacement:
    """A new text for a file, written and durable beside it."""

    file: ConfigFile
    subject: str
    _folder: int
    _new: Path
    there: bool = False

    def put(self) -> None:
        """Put it in the file's place, if that is as it was read. Raises RouteMoved."""
        if self.file.path.read_bytes() != self.file.data:
            text = f"{self.file.path} was changed by somebody else meanwhile"
            raise RouteMoved(text, operation="switch", subject=self.subject)
        self._new.replace(self.file.path)
        self.there = True
        os.fsync(self._folder)

    def undo(self) -> None:
        """Put the old text back."""
        _write(self._new, self.file.data, like=self.file.path)
        self._new.replace(self.file.path)
        os.fsync(self._folder)

    def close(self) -> None:
        """Remove what was not put anywhere."""
        with suppress(OSError):
            self._new.unlink()
        os.close(self._folder)


def replacement(file: ConfigFile, to: Mapping[str, Address], *, subject: str) -> Replacement:
    """Write the new text beside the file, to be put in its place; close it afterwards.

    Only one of us does so at a time: RouteMoved says that another is at it. Raises Refused if it cannot be written.
    """
    folder = os.open(file.path.parent, os.O_RDONLY | os.O_DIRECTORY)
    new = file.path.with_name(f".{file.path.name}{NEW}")
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write(new, moved(file.text, to, file.section).encode(errors="surrogateescape"), like=file.path)
    except BlockingIOError:
        os.close(folder)
        raise RouteMoved(f"another switch is at {file.path}", operation="switch", subject=subject) from None
    except OSError as error:
        os.close(folder)
        text = f"{new} cannot be written: {error.strerror}"
        hint = "the file is replaced whole, so its folder must be writable (a Kubernetes ConfigMap is not)"
        raise Refused(text, operation="switch", subject=subject, hint=hint) from error
    return Replacement(file, subject, folder, new)


def _write(path: Path, data: bytes, *, like: Path) -> None:
    """Write a file durably, with the owner and the mode of another: it may hold passwords."""
    with suppress(FileNotFoundError):
        path.unlink()
    status = like.stat()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, status.st_uid, status.st_gid)
        os.fchmod(descriptor, status.st_mode & 0o7777)
        os.fsync(descriptor)
