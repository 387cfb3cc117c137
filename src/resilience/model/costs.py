"""What keeping backups costs, line by line, and what would make it cheaper."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from .findings import Finding
from .prices import Prices
from .retention import Tier
from .show import Shown

Item = Literal["storage", "paid but not used", "writes", "tier changes", "reads", "lists", "retrieval", "replication"]


@frozen(kw_only=True)
class CostLine(Shown):
    """`amount` of something at `price` dollars each, every month: GB, or operations (whose price is per 10,000)."""

    subject: str
    item: Item
    tier: Tier
    amount: float
    unit: str
    price: float
    dollars: float

    def __str__(self) -> str:
        amount = f"{self.amount:,.0f} {self.unit}" if self.amount >= 100 else f"{self.amount:.3g} {self.unit}"
        each = f"${self.price:g}" + (" per 10,000" if self.unit == "operations" else "")
        return f"{self.subject}, {self.tier}, {self.item}: {amount} at {each}: ${self.dollars:,.2f}"


@frozen(kw_only=True)
class Cost(Shown):
    """What a month costs once as much goes as comes, in dollars. `held` are the GB that lie there then."""

    prices: Prices
    lines: tuple[CostLine, ...]
    held: float
    findings: tuple[Finding, ...] = ()

    @property
    def monthly(self) -> float:
        """Dollars a month."""
        return sum(line.dollars for line in self.lines)

    @property
    def yearly(self) -> float:
        """Dollars a year."""
        return 12 * self.monthly

    def of(self, item: Item | None = None, *, tier: Tier | None = None, subject: str | None = None) -> float:
        """Return the dollars a month of some lines: of an item, a tier, a subject."""
        return sum(
            line.dollars
            for line in self.lines
            if item in (None, line.item) and tier in (None, line.tier) and subject in (None, line.subject)
        )

    def __str__(self) -> str:
        head = f"${self.monthly:,.2f} a month, ${self.yearly:,.2f} a year, for {self.held:,.0f} GB; {self.prices}"
        lines = [str(line) for line in self.lines if line.dollars >= 0.005]
        return "\n  ".join([head, *lines, *map(str, self.findings)])


@frozen(kw_only=True)
class Saving(Shown):
    """Something that makes it cheaper: what a month costs `before` and `after` it, and what speaks against it."""

    what: str
    before: float
    after: float
    caution: str = ""

    @property
    def monthly(self) -> float:
        """Dollars a month that are saved."""
        return self.before - self.after

    @property
    def share(self) -> float:
        """Which part of all that is."""
        return self.monthly / self.before if self.before else 0.0

    def __str__(self) -> str:
        saved = f"saves ${self.monthly:,.2f} of ${self.before:,.2f} a month ({self.share:.0%})"
        return f"{self.what}: {saved}" + (f"; but {self.caution}" if self.caution else "")
