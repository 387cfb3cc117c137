"""Errors say one sentence, and what a program should end with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resilience.model import errors
from resilience.model.errors import ResilienceError

DESIGN = (Path(__file__).parents[1] / "docs" / "design.md").read_text()
FAMILIES = {family.__name__: family.exit_status for family in ResilienceError.__subclasses__()}


def test_exit_statuses_are_the_frozen_ones_of_the_design() -> None:
    documented = re.findall(r"^\| `(\w+)` \|[^|]+\| (\d+) \|", DESIGN, re.MULTILINE)
    assert {name: int(status) for name, status in documented} == FAMILIES
    assert len(set(FAMILIES.values())) == 6


def test_every_kind_of_error_is_documented_and_ends_like_its_family() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, ResilienceError) and kind is not ResilienceError:
            assert f"`{kind.__name__}`" in DESIGN
            (family,) = (base for base in kind.__mro__ if base.__name__ in FAMILIES)
            assert kind.exit_status == family.exit_status  # type: ignore[attr-defined]  # it is one of the six


@pytest.mark.parametrize(
    ("context", "sentence"),
    [
        ({}, "it broke"),
        ({"operation": "backup", "subject": "orders"}, "backup orders: it broke"),
        ({"subject": "orders", "hint": "mend it"}, "orders: it broke (mend it)"),
    ],
)
def test_an_error_reads_as_what_where_and_what_to_do(context: dict[str, str], sentence: str) -> None:
    assert str(ResilienceError("it broke", **context)) == sentence
