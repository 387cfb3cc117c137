"""What a store costs: prices as data, with the day they are from, where they hold and who says so."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from types import MappingProxyType
from typing import Literal

from attrs import evolve, field, frozen
from attrs.validators import ge

from .retention import Tier
from .show import Shown

GB = 1 << 30
"""Bytes: what Azure bills as a gigabyte."""

Redundancy = Literal["LRS", "ZRS", "GRS", "RA-GRS", "GZRS", "RA-GZRS"]
WITHOUT_ARCHIVE: frozenset[Redundancy] = frozenset({"ZRS", "GZRS", "RA-GZRS"})
"""Accounts that know no Archive tier, see learn.microsoft.com/azure/storage/blobs/access-tiers-overview."""

MINIMUM_DAYS: Mapping[Tier, int] = MappingProxyType({"hot": 0, "cool": 30, "cold": 90, "archive": 180})
"""For how many days a tier is paid for at least, whatever is deleted or moved on sooner."""


@frozen(kw_only=True)
class TierPrice(Shown):
    """What one tier costs, in dollars: `storage` a GB and month, `retrieval` a GB, operations per 10,000.

    `urgent_read` and `urgent_retrieval` are those of a rehydration with high priority. What is deleted or moved before
    it has lain there for `minimum` is paid for as if it had.
    """

    storage: float = field(validator=ge(0))
    write: float = field(default=0.0, validator=ge(0))
    read: float = field(default=0.0, validator=ge(0))
    list: float = field(default=0.0, validator=ge(0))
    retrieval: float = field(default=0.0, validator=ge(0))
    urgent_read: float = field(default=0.0, validator=ge(0))
    urgent_retrieval: float = field(default=0.0, validator=ge(0))
    minimum: timedelta = timedelta(0)


@frozen(kw_only=True)
class Prices(Shown):
    """The prices of one region and redundancy on one day. Look them up again before you rely on them.

    `replication` is what a GB costs to send to the other region, where there is one.
    """

    name: str
    day: date
    region: str
    redundancy: Redundancy
    source: str
    tiers: Mapping[Tier, TierPrice]
    replication: float = field(default=0.0, validator=ge(0))

    def of(self, tier: Tier) -> TierPrice:
        """Return the price of a tier. Raises ValueError if there is none, or the account cannot have that tier."""
        if tier == "archive" and self.redundancy in WITHOUT_ARCHIVE:
            raise ValueError(f"an account with {self.redundancy} has no Archive tier: only LRS, GRS and RA-GRS have")
        if tier not in self.tiers:
            raise ValueError(f"{self.name} has no price for the tier {tier}")
        return self.tiers[tier]

    @property
    def at_rest(self) -> Prices:
        """The same without minimum durations: the rent of what lies there, and not what is paid for it."""
        tiers = {tier: evolve(price, minimum=timedelta(0)) for tier, price in self.tiers.items()}
        return evolve(self, name=f"{self.name}, at rest", tiers=MappingProxyType(tiers))

    def __str__(self) -> str:
        return f"{self.name}: {self.region}, {self.redundancy}, as of {self.day} ({self.source})"


def _days(tier: Tier) -> timedelta:
    return timedelta(days=MINIMUM_DAYS[tier])


AZURE_2024 = Prices(
    name="Azure, sample prices of 2024",
    day=date(2024, 7, 26),
    region="an example; near East US",
    redundancy="LRS",
    source="learn.microsoft.com/azure/storage/blobs/blob-storage-estimate-costs and /archive-cost-estimation: what "
    "Microsoft calculates its examples with, and calls fictitious",
    tiers=MappingProxyType(
        {
            "hot": TierPrice(storage=0.0208, write=0.055, read=0.0044, list=0.055),
            "cool": TierPrice(storage=0.0115, write=0.10, read=0.01, list=0.055, retrieval=0.01, minimum=_days("cool")),
            "cold": TierPrice(storage=0.0045, write=0.18, read=0.10, list=0.065, retrieval=0.03, minimum=_days("cold")),
            "archive": TierPrice(
                storage=0.002,
                write=0.11,
                read=5.50,
                list=0.055,
                retrieval=0.022,
                urgent_read=50.0,
                urgent_retrieval=0.10,
                minimum=_days("archive"),
            ),
        }
    ),
)
"""The whole price list that Microsoft publishes as text. Your own invoice, region and redundancy differ."""
