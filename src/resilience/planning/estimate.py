"""How long a restore will take, by what this archive has shown, with the arithmetic for whoever wants to check it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from statistics import median

from attrs import frozen

from resilience.model.findings import Finding
from resilience.model.manifests import Manifest
from resilience.model.measured import RestoreMeasured
from resilience.model.rehydration import Rehydration
from resilience.model.show import as_bytes, as_span

TOO_FEW = 1 << 20
"""Bytes: what was measured on less says nothing about speed."""


@frozen(kw_only=True)
class Estimate:
    """Seconds, None if nobody can tell; how they were found; a warning if the objective will be missed."""

    seconds: float | None
    arithmetic: tuple[str, ...]
    findings: tuple[Finding, ...] = ()


@frozen
class _Rate:
    """Bytes a second, and where that was learnt."""

    rate: float
    source: str

    def line(self, what: str, size: int) -> str:
        return f"{what} {as_bytes(size)} at {as_bytes(int(self.rate))}/s ({self.source}): {as_span(size / self.rate)}"


def estimated(
    chain: Sequence[Manifest],
    replayed: int,
    *,
    shown: Sequence[RestoreMeasured] = (),
    rto: timedelta | None = None,
    waiting: Rehydration | None = None,
) -> Estimate:
    """Estimate how long it takes to unpack a chain and replay so many bytes, by the median of what was shown.

    What is `waiting` to be rehydrated takes as long as standard priority may, and nothing begins before.
    What no restore has shown is taken from how fast the backups were taken; how fast a log is replayed, from nothing.
    """
    unpack = _shown([(each.unpacked, each.unpack_seconds) for each in shown]) or _as_taken(chain)
    replay = _shown([(each.replayed, each.replay_seconds) for each in shown])
    size = sum(manifest.size for manifest in chain)
    lines, findings, seconds = _rehydrated(chain, waiting)
    known = True
    for what, count, rate in (("unpack", size, unpack), ("replay", replayed, replay)):
        if not count:
            continue
        if rate is None:
            known = False
            lines.append(f"{what} {as_bytes(count)}: unknown, no restore of this target has shown how fast")
        else:
            seconds += count / rate.rate
            lines.append(rate.line(what, count))
    if known and len(lines) > 1:
        lines.append(f"together {as_span(seconds)}")
    if rto is not None:
        line, hint = _compared(seconds, known, rto.total_seconds())
        lines.append(line)
        if hint:
            findings.append(Finding(severity="warning", subject=chain[-1].target, text=line, hint=hint))
    return Estimate(seconds=seconds if known and lines else None, arithmetic=tuple(lines), findings=tuple(findings))


def _rehydrated(chain: Sequence[Manifest], waiting: Rehydration | None) -> tuple[list[str], list[Finding], float]:
    """Return the arithmetic, the warning and the seconds of what is waited for before anything can be read."""
    if waiting is None or not waiting.objects:
        return [], [], 0.0
    seconds = waiting.standard.total_seconds()
    line = f"rehydrate {as_bytes(waiting.bytes)} in {waiting.objects} objects: up to {as_span(seconds)}"
    text = f"{waiting.objects} objects lie in the Archive tier and cannot be read before they are rehydrated"
    hint = f"rehydrate() begins it; with urgent=True it takes about {as_span(waiting.urgent)}, and costs more"
    return [line], [Finding(severity="warning", subject=chain[-1].target, text=text, hint=hint)], seconds


def _compared(seconds: float, known: bool, objective: float) -> tuple[str, str]:
    """Compare with the objective: a line, and what to do about it (empty: nothing)."""
    at_least = "" if known else "at least "
    if seconds > objective:
        hint = "take backups more often, or restore to a faster place"
        return f"{at_least}{as_span(seconds)} is over the objective (RTO) of {as_span(objective)}", hint
    if not known:
        return f"nobody can tell yet whether the objective (RTO) of {as_span(objective)} is met", "measure it: restore"
    return f"{as_span(seconds)} is within the objective (RTO) of {as_span(objective)}", ""


def _shown(measured: Sequence[tuple[int, float]]) -> _Rate | None:
    rates = [size / seconds for size, seconds in measured if size >= TOO_FEW and seconds > 0]
    if not rates:
        return None
    return _Rate(median(rates), "as the last restore did" if len(rates) == 1 else f"median of {len(rates)} restores")


def _as_taken(chain: Sequence[Manifest]) -> _Rate | None:
    rates = []
    for manifest in chain:
        seconds = (manifest.ended_at - manifest.started_at).total_seconds()
        if seconds > 0 and manifest.size >= TOO_FEW:
            rates.append(manifest.size / seconds)
    return _Rate(median(rates), "as fast as it was backed up; no restore has been measured") if rates else None
