"""Every figure in docs/cost.md is computed again from the policy, the load and the prices that it names."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from resilience.model.loads import Load, LogLoad
from resilience.model.prices import AZURE_2024, GB
from resilience.model.retention import RetentionPolicy
from resilience.planning.cost import estimate_cost
from resilience.reference import COLD, LOAD, NINETY_DAYS, PRICES, RETENTION

from .test_docs import ROOT, rows

DOCUMENT = ROOT / "docs" / "cost.md"
DUMPS = evolve(
    LOAD, backups=tuple(evolve(each, size=50 * GB) if each.kind == "incremental" else each for each in LOAD.backups)
)
IN_COLD = RetentionPolicy(rules=tuple(evolve(rule, tiers=COLD) for rule in NINETY_DAYS.rules))
MEANT = (
    (NINETY_DAYS, LOAD, PRICES.at_rest),
    (NINETY_DAYS, LOAD, PRICES),
    (RETENTION, LOAD, PRICES),
    (NINETY_DAYS, DUMPS, PRICES.at_rest),
    (NINETY_DAYS, LOAD, AZURE_2024),
    (IN_COLD, LOAD, AZURE_2024),
)


def test_the_table_of_policies_is_what_they_cost() -> None:
    written = [cells[2:] for cells in rows(DOCUMENT, "policy")]
    costs = [estimate_cost(*meant) for meant in MEANT]
    assert written == [[f"${cost.monthly:,.2f}", f"${cost.yearly:,.2f}"] for cost in costs]


def test_what_is_paid_and_not_used_is_said_as_it_is() -> None:
    wasted = estimate_cost(NINETY_DAYS, LOAD, PRICES).of("paid but not used")
    assert f"Of the $179.85 these are ${wasted:,.2f}." in DOCUMENT.read_text()


def test_the_table_of_slices_is_what_they_cost() -> None:
    written = list(rows(DOCUMENT, "slices every"))
    assert len(written) == 3
    for every, dollars in written:
        interval = timedelta(seconds=int(every.removesuffix(" s")))
        log = LogLoad(system="postgresql", size=0, interval=interval)
        cost = estimate_cost(NINETY_DAYS, Load(backups=LOAD.backups, logs=(log,)), AZURE_2024)
        assert dollars == f"${cost.of('writes', subject='postgresql log, slices'):,.2f}"


def test_high_priority_costs_what_the_page_says() -> None:
    price = AZURE_2024.of("archive")
    assert price.urgent_retrieval / price.retrieval == pytest.approx(5, abs=0.5)
    assert AZURE_2024.of("cold").retrieval == 0.03
