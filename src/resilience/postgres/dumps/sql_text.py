"""SQL as text, taken apart just far enough to find statements and names in what PostgreSQL's programs write. Pure.

The lexical rules are those of PostgreSQL 4.1, with standard_conforming_strings on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from attrs import frozen

from resilience.model.errors import Corrupt

Kind = Literal["word", "name", "string", "symbol"]

_TOKEN = re.compile(
    r"""
    (?P<space>   \s+ | --[^\n]* )
  | (?P<escaped> [eE]'(?:[^'\\]|\\.|'')*' )
  | (?P<string>  '[^']*(?:''[^']*)*' )
  | (?P<name>    "[^"]*(?:""[^"]*)*" )
  | (?P<dollar>  \$(?P<tag>[^\W\d]\w*)?\$ .*? \$(?(tag)(?P=tag))\$ )
  | (?P<word>    [^\W\d][\w$]* )
  | (?P<number>  \d[\w.]* )
  | (?P<symbol>  (?! \$ (?:[^\W\d]\w*)? \$ ) [^'"] )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"/\*|\*/")
_KINDS: dict[str, Kind] = {"escaped": "string", "string": "string", "dollar": "string", "name": "name", "word": "word"}


@frozen
class Token:
    """One token: `text` as it was written, `at` where."""

    kind: Kind
    text: str
    at: int

    @property
    def identifier(self) -> str:
        """The name it stands for: folded to lower case unless it is quoted."""
        return self.text[1:-1].replace('""', '"') if self.kind == "name" else self.text.lower()

    @property
    def end(self) -> int:
        """Where what follows begins."""
        return self.at + len(self.text)


@frozen
class Statement:
    """One statement without its semicolon. Its text may hold a password: it never shows itself."""

    tokens: Sequence[Token]
    source: str

    def __repr__(self) -> str:
        return f"Statement({self.begins(2)!r}, …)"

    @property
    def text(self) -> str:
        """The statement as it was written."""
        return self.source[self.tokens[0].at : self.tokens[-1].end]

    def begins(self, count: int) -> str:
        """Return the first words, in upper case, at most `count`, none of which is quoted."""
        words = []
        for token in self.tokens[:count]:
            if token.kind != "word":
                break
            words.append(token.text.upper())
        return " ".join(words)

    def word(self, index: int) -> str:
        """Return the word at an index in upper case; empty if there is none, or if it is quoted."""
        token = self.tokens[index] if index < len(self.tokens) else None
        return token.text.upper() if token is not None and token.kind == "word" else ""

    def find(self, *words: str) -> int:
        """Return the index of the first of these words; the number of tokens if none is there."""
        return next((at for at in range(len(self.tokens)) if self.word(at) in words), len(self.tokens))


def statements(text: str) -> Iterator[Statement]:
    """Yield the statements of a script; psql's own commands, which begin with a backslash, are dropped.

    Raises Corrupt if the script ends inside a quotation, a comment or a statement.
    """
    held: list[Token] = []
    for token in tokens(text):
        if token.text != ";":
            held.append(token)
        elif held:
            yield Statement(held, text)
            held = []
    if held:
        raise Corrupt(f"the script ends inside a statement that begins with {Statement(held, text).begins(2)!r}")


def tokens(text: str) -> Iterator[Token]:
    """Yield the tokens of a script; raises as `statements` does."""
    at = 0
    fresh = True
    while at < len(text):
        if text.startswith("/*", at):
            at = _after_comment(text, at)
            continue
        if fresh and text[at] == "\\":
            at = _after_line(text, at)
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            raise Corrupt(f"the script ends inside a quotation that begins at character {at}")
        if match.lastgroup != "space":
            yield Token(_KINDS.get(match.lastgroup or "", "symbol"), match[0], at)
            fresh = match[0] == ";"
        at = match.end()


def spliced(statement: Statement, replacements: Mapping[int, str]) -> str:
    """Return a statement's text with some of its tokens, by their index, replaced."""
    pieces, at = [], statement.tokens[0].at
    for index, token in enumerate(statement.tokens):
        if index in replacements:
            pieces += [statement.source[at : token.at], replacements[index]]
            at = token.end
    return "".join(pieces) + statement.source[at : statement.tokens[-1].end]


def quoted(name: str) -> str:
    """Return a name as a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def _after_comment(text: str, at: int) -> int:
    """Return where a comment ends; they nest."""
    depth = 0
    for mark in _COMMENT.finditer(text, at):
        depth += 1 if mark[0] == "/*" else -1
        if not depth:
            return mark.end()
    raise Corrupt(f"the script ends inside a comment that begins at character {at}")


def _after_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end
