"""A dump that creates its database under another name. Pure.

pg_restore creates a database under the name it had, and nothing half-restored may be found under that name. So the
name is replaced wherever the table of contents says it: in the entry DATABASE, its properties, its comment, its
privileges and its security label (PostgreSQL, pg_restore, --create).
"""

from __future__ import annotations

import attrs
from attrs import define

from resilience.model.errors import Corrupt

from .custom import Entry
from .sql_text import Statement, quoted, spliced, statements

# Bytes of every server encoding that are ASCII mean ASCII, so one byte a character finds names in any of them.
_ENCODING = "latin-1"
_ABOUT_DATABASE = "DATABASE "
_KINDS = ("COMMENT", "ACL", "SECURITY LABEL")


@define(kw_only=True)
class Renaming:
    """An edit of a table of contents: its database is to be called `name`, which is plain ASCII.

    Without `tablespaces` it is created where the destination's default is. `was` is the name found, None until then.
    """

    name: str
    tablespaces: bool = True
    was: str | None = None

    def __call__(self, entry: Entry) -> Entry:
        """Return the entry with the name replaced if it is about the database itself."""
        tag, kind = _decoded(entry.tag), _decoded(entry.kind)
        if kind == "DATABASE":
            self.was = tag
        elif kind != "DATABASE PROPERTIES" and not (kind in _KINDS and tag.startswith(_ABOUT_DATABASE)):
            return entry
        if self.was is None:
            raise Corrupt("the dump describes its database before it names it")
        return attrs.evolve(
            entry,
            tag=(self.name if kind.startswith("DATABASE") else _ABOUT_DATABASE + self.name).encode(_ENCODING),
            definition=self._rewritten(entry.definition),
            drop=self._rewritten(entry.drop),
        )

    def _rewritten(self, script: bytes | None) -> bytes | None:
        if not script:
            return script
        return "".join(f"{self._statement(each)};\n" for each in statements(_decoded(script))).encode(_ENCODING)

    def _statement(self, statement: Statement) -> str:
        tokens = statement.tokens
        replaced = {}
        for at in range(1, len(tokens)):
            if statement.word(at - 1) == "DATABASE" and tokens[at].identifier == self.was:
                replaced[at] = quoted(self.name)
        tablespace = statement.find("TABLESPACE")
        if not self.tablespaces and statement.begins(2) == "CREATE DATABASE" and tablespace < len(tokens):
            replaced |= dict.fromkeys(range(tablespace, tablespace + 3), "")  # TABLESPACE = name
        return spliced(statement, replaced)


def _decoded(text: bytes | None) -> str:
    return (text or b"").decode(_ENCODING)
