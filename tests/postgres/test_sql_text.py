"""Scripts are taken apart where the server would take them apart."""

from __future__ import annotations

import pytest

from resilience import Corrupt
from resilience.postgres.dumps.sql_text import quoted, spliced, statements

SCRIPT = r"""
-- a comment; with a 'quote
\restrict abc'def
create role "a;""b" /* one /* in; another */ still */;
alter role x password E'a\';b' valid until 'it''s; late';;
do $$ begin; end $$; do $tag$ $$ ; $$ $tag$;
select 1.5, $1;
\unrestrict abc'def
"""


def test_a_script_falls_into_its_statements() -> None:
    assert [statement.text for statement in statements(SCRIPT)] == [
        'create role "a;""b"',
        r"alter role x password E'a\';b' valid until 'it''s; late'",
        "do $$ begin; end $$",
        "do $tag$ $$ ; $$ $tag$",
        "select 1.5, $1",
    ]


@pytest.mark.parametrize(
    "script", ["select 'a", 'select "a', "select 1", "/* a /* b */", "select $$ a", r"select E'a\'"]
)
def test_a_script_that_ends_early_is_corrupt(script: str) -> None:
    with pytest.raises(Corrupt, match="the script ends inside"):
        list(statements(script))


def test_a_statement_shows_its_first_words_only() -> None:
    (statement,) = statements("alter role x password 'secret';")
    assert repr(statement) == "Statement('ALTER ROLE', …)"


def test_a_quoted_word_is_no_keyword() -> None:
    (statement,) = statements('grant "to" to Somebody;')
    assert statement.find("TO") == 2
    assert statement.tokens[1].identifier == "to"
    assert statement.tokens[3].identifier == "somebody"
    assert statement.word(1) == statement.word(99) == ""


def test_tokens_are_replaced_where_they_stand() -> None:
    (statement,) = statements('create  database "old" /* x */ owner "old";')
    assert spliced(statement, {2: quoted('n"ew'), 4: ""}) == 'create  database "n""ew" /* x */ owner '
