"""PgBouncer's configuration as PgBouncer 1.18 reads it (each case was tried), changed in two words and no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.pgbouncer.config import includes, moved, places
from resilience.postgres.addresses import Address

NEW = Address("10.0.0.9", 6000)


@pytest.mark.parametrize(
    ("line", "host", "port", "changed"),
    [
        ("orders = host=h port=1", "h", 1, "orders = host=10.0.0.9 port=6000"),
        ("orders=host = h port =1", "h", 1, "orders=host=10.0.0.9 port=6000"),
        ("orders = port=7 dbname=x", "", 7, "orders = host=10.0.0.9 port=6000 dbname=x"),
        ("orders = host=/run/pg", "/run/pg", 5432, "orders = port=6000 host=10.0.0.9"),
        ("orders = host=::1 port=8", "::1", 8, "orders = host=10.0.0.9 port=6000"),
        ("orders = host=a,b", "a,b", 5432, "orders = port=6000 host=10.0.0.9"),
        ("orders = host=a host=b", "b", 5432, "orders = port=6000 host=10.0.0.9 host=10.0.0.9"),
        ("orders = host='q' port='9'", "q", 9, "orders = host=10.0.0.9 port=6000"),
        (
            "orders = password='host=x port=1 ''' host=h",
            "h",
            5432,
            "orders = port=6000 password='host=x port=1 ''' host=10.0.0.9",
        ),
        ("orders =", "", 5432, "orders =host=10.0.0.9 port=6000"),
    ],
)
def test_host_and_port_are_replaced_and_nothing_else(line: str, host: str, port: int, changed: str) -> None:
    text = f"; head\n[databases]\n# orders = host=no\nother = host=h port=1\n{line}\n[pgbouncer]\norders = host=no\n"
    assert places(text)["orders"] == Address(host, port)
    assert moved(text, {"orders": NEW}) == text.replace(f"\n{line}\n", f"\n{changed}\n")
    assert places(moved(text, {"orders": NEW}))["orders"] == NEW


def test_of_two_lines_for_a_database_the_later_one_counts_and_both_are_changed() -> None:
    text = "[databases]\norders = host=a\n[users]\n[databases]\norders = host=b\n"
    assert places(text) == {"orders": Address("b")}
    assert "host=a" not in moved(text, {"orders": NEW})


def test_a_database_without_a_line_is_an_error() -> None:
    with pytest.raises(KeyError, match="orders"):
        moved("[databases]\n", {"orders": NEW})


def test_a_file_that_is_included_goes_on_in_the_section_it_is_included_in() -> None:
    text = "%include first.ini\n[databases]\n ; %include no.ini\n  %include   a folder/second.ini  \n"
    assert includes(text) == [("first.ini", ""), ("a folder/second.ini", "databases")]
    assert places("orders = host=a", "databases") == {"orders": Address("a")}
    assert places("orders = host=a") == {}


@pytest.mark.parametrize("text", ["", ":1", "h:0", "h:65536", "h:x", "a b", "::1", "a,b:1", "h;x", "h'x", "[::1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a host and a port"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["10.0.0.4:5433", "[fd00::4]:5432", "/run/postgresql:6000", "db.example.org:5432"])
def test_addresses_are_written_as_they_are_read(text: str) -> None:
    assert str(Address.parse(text)) == text
    assert Address.parse(text.rpartition(":")[0]).port == 5432


@given(st.text(alphabet="[]databsespgbouncer \n\t='\";#%hostport123,", max_size=200))
def test_any_text_is_read_without_harm(text: str) -> None:
    there = places(text)
    assert moved(text, {}) == text
    assert places(moved(text, dict.fromkeys(there, NEW))) == dict.fromkeys(there, NEW)
