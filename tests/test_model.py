"""Values: what they refuse, how they show themselves, how they become JSON and come back."""

from __future__ import annotations

import inspect
import json
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import msgspec
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.model import errors
from resilience.model.capture import Captured
from resilience.model.errors import ResilienceError
from resilience.model.events import Event
from resilience.model.facts import DestinationFacts, TargetFacts
from resilience.model.findings import Finding, Level, Verdict
from resilience.model.ids import checked_id, checked_name, new_id
from resilience.model.json import Offset, from_json, to_json
from resilience.model.manifests import Manifest, StoredObject, StoredPart
from resilience.model.plans import BackupPlan
from resilience.model.positions import Position, RecoveryPoint
from resilience.model.reports import BackupReport, Coverage, RestorableMoment, RestoreReport
from resilience.model.show import as_bytes
from resilience.model.targets import RecoveryTarget
from resilience.primitives import ObjectInfo

NOW = datetime(2026, 11, 21, 20, 30, 1, 250000, tzinfo=UTC)
NAIVE = NOW.replace(tzinfo=None)
HERE = Position(branch="1", offset=Offset(2**63 + 1), text="80000000/1")
POINT = RecoveryPoint(position=HERE, time=NOW)
MANIFEST = Manifest(
    id="20261121T203001.250Z-00000a",
    target="orders",
    system="memory",
    kind="base",
    lineage="18446744073709551615",
    started_at=NOW,
    ended_at=NOW + timedelta(minutes=5),
    begins=HERE,
    recovery_point=POINT,
    parts=(
        StoredPart(
            name="one",
            size=5000,
            frame_size=4096,
            objects=(StoredObject(key="memory/orders/base/x/one/000000.zst", size=30, sha256="00", frames=(20, 10)),),
        ),
        StoredPart(name="two", size=120, frame_size=4096, objects=()),
    ),
    details={"some": ["detail", 1, None, {"more": True}]},
)


class Nowhere(tzinfo):
    """A time zone that does not know its offset."""

    def utcoffset(self, _: datetime | None) -> timedelta | None:
        return None

    def dst(self, _: datetime | None) -> timedelta | None:
        return None

    def tzname(self, _: datetime | None) -> str | None:
        return None


@pytest.mark.parametrize("name", ["a", "orders", "9", "a-b_c.d", "a" * 63])
def test_names_may_become_part_of_a_key(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "A", ".a", "-a", "_a", "a/b", "a b", "a\n", "ä", "٣", "..", "a" * 64])
def test_what_cannot_become_part_of_a_key_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no name: use 1 to 63 of"):
        checked_name(name)


def test_ids_sort_by_time_in_utc_and_differ_at_the_same_time() -> None:
    later = datetime(2026, 11, 21, 22, 31, tzinfo=timezone(timedelta(hours=1)))
    assert new_id(later).startswith("20261121T213100.000Z-")
    assert new_id(NOW) < new_id(later)
    assert len({new_id(NOW) for _ in range(20)}) == 20
    assert checked_id(new_id(NOW))


@pytest.mark.parametrize(
    "each", ["", "20261121T203000.000Z", "20261121T203000.000Z-3F9A1C", "20261121T203000.000Z-3f9a1c\n", "../x"]
)
def test_what_is_no_id_is_refused(each: str) -> None:
    with pytest.raises(ValueError, match=r"one looks like 20261121T203000\.000Z-3f9a1c"):
        checked_id(each)


def test_digits_of_other_scripts_make_no_id() -> None:
    with pytest.raises(ValueError, match="is no backup id"):
        checked_id("20261121T203000.000Z-3f9a1c".replace("2", "٢"))


@pytest.mark.parametrize("moment", [NAIVE, NOW.replace(tzinfo=Nowhere())], ids=["naive", "nowhere"])
def test_a_moment_without_its_offset_from_utc_is_refused_everywhere(moment: datetime) -> None:
    with pytest.raises(ValueError, match="started_at is a naive datetime: give it a time zone"):
        evolve(MANIFEST, started_at=moment)
    with pytest.raises(ValueError, match="time is a naive datetime"):
        RecoveryPoint(position=HERE, time=moment)
    with pytest.raises(ValueError, match="modified is a naive datetime"):
        ObjectInfo(key="key", size=1, modified=moment)
    with pytest.raises(ValueError, match="made_at is a naive datetime"):
        BackupPlan(id="x", target="orders", system="memory", kind="base", lineage="1", made_at=moment)
    with pytest.raises(ValueError, match="taken_at is a naive datetime"):
        RestorableMoment(backup="x", kind="base", lineage="1", point=POINT, taken_at=moment)
    with pytest.raises(ValueError, match="now is a naive datetime"):
        new_id(moment)


def test_a_manifest_comes_back_from_its_json() -> None:
    assert from_json(to_json(MANIFEST), Manifest) == MANIFEST


def test_equal_manifests_have_equal_bytes_and_fields_in_order() -> None:
    text = to_json(MANIFEST)
    assert to_json(from_json(text, Manifest)) == text
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_offsets_and_lineages_are_strings_in_json_because_readers_keep_only_53_bits() -> None:
    decoded = json.loads(MANIFEST.to_json())
    assert decoded["begins"] == {"branch": "1", "offset": "9223372036854775809", "text": "80000000/1"}
    assert decoded["lineage"] == "18446744073709551615"
    with pytest.raises(msgspec.ValidationError):
        from_json(b'{"branch":"1","offset":5,"text":"5"}', Position)
    with pytest.raises(msgspec.ValidationError):
        from_json(b'{"branch":"1","offset":"5x","text":"5"}', Position)


def test_moments_are_iso_8601_with_their_offset_in_json() -> None:
    assert json.loads(POINT.to_json())["time"] == "2026-11-21T20:30:01.250000Z"
    east = evolve(POINT, time=NOW.astimezone(timezone(timedelta(hours=2))))
    assert json.loads(east.to_json())["time"] == "2026-11-21T22:30:01.250000+02:00"
    with pytest.raises(msgspec.ValidationError, match="naive"):
        from_json(POINT.to_json().replace("250000Z", "250000").encode(), RecoveryPoint)


@given(offset=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=50)
def test_any_64_bit_offset_comes_back_and_stays_ordered(offset: int) -> None:
    position = Position(branch="1", offset=Offset(offset), text="x")
    assert from_json(to_json(position), Position) == position
    assert from_json(to_json(position), Position).offset >= 0


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json({"value": object()})


def test_a_part_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        evolve(MANIFEST.parts[0], size=-1)
    with pytest.raises(ValueError, match="frame_size"):
        evolve(MANIFEST.parts[0], frame_size=0)


def test_a_manifest_knows_its_parts_and_their_sizes() -> None:
    assert (MANIFEST.size, MANIFEST.stored) == (5120, 30)
    assert MANIFEST.part("two") is MANIFEST.parts[1]
    with pytest.raises(KeyError, match="three"):
        MANIFEST.part("three")


def test_values_say_in_one_sentence_what_they_are() -> None:
    assert str(HERE) == "80000000/1 on 1"
    assert str(POINT) == "80000000/1 on 1, 2026-11-21 20:30:01 UTC"
    assert str(MANIFEST) == (
        "orders 20261121T203001.250Z-00000a: memory base, 5.0 KiB in 30 B, "
        "restores to 80000000/1 on 1, 2026-11-21 20:30:01 UTC"
    )
    report = BackupReport(manifest=MANIFEST, seconds=1.25)
    assert "5.0 KiB in 30 B (170.7:1), 1.2 s; restores to" in str(report)
    assert BackupReport(manifest=evolve(MANIFEST, parts=()), seconds=1).ratio == 1.0


def test_a_verdict_says_whether_it_passed_how_far_it_came_and_how_much_it_looked_at() -> None:
    finding = Finding(severity="blocker", subject="some/object", text="it is not there", hint="look for it")
    failed = Verdict(subject="orders x", passed=False, level=None, findings=(finding,))
    assert str(failed) == (
        "orders x: FAILED, no level (0 objects, 0 B examined)\n  blocker: some/object: it is not there (look for it)"
    )
    passed = Verdict(subject="orders x", passed=True, level=Level.CHECKSUMS, objects=3, bytes=3 << 20)
    assert str(passed) == "orders x: passed, level L1 (3 objects, 3.0 MiB examined)"
    assert str(Finding(severity="note", subject="", text="something")) == "note: something"


SHOWN = [
    HERE,
    POINT,
    MANIFEST,
    BackupReport(manifest=MANIFEST, seconds=1.0),
    RestoreReport(manifest=MANIFEST, destination="<there>", until=RecoveryTarget.latest(), reached=POINT, seconds=1.0),
    Coverage(target="orders"),
    Captured(begins=HERE, recovery_point=POINT),
    Event(operation="backup", subject="orders", stage="progress"),
    TargetFacts(target="orders", system="memory", kind="base", lineage="1"),
    DestinationFacts(destination="there", system="memory", empty=True),
    Verdict(subject="orders", passed=True, level=Level.EXISTS),
]


@pytest.mark.parametrize("value", SHOWN, ids=lambda value: type(value).__name__)
def test_every_value_turns_into_json_and_into_a_table_for_notebooks(value: Manifest) -> None:
    assert json.loads(value.to_json())
    table = value._repr_html_()
    assert f"<caption>{type(value).__name__}</caption>" in table
    assert table.count("<tr>") == table.count("</tr>") > 0


def test_what_a_table_shows_is_escaped() -> None:
    finding = Finding(severity="note", subject="<script>", text="&")
    assert "<script>" not in finding._repr_html_()
    assert "&lt;script&gt;" in finding._repr_html_()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 20, "1.5 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_bytes_are_written_for_people(count: int | None, text: str) -> None:
    assert as_bytes(count) == text


def test_an_error_is_one_sentence_of_what_where_and_what_to_do() -> None:
    error = ResilienceError("it is full", operation="put", subject="some/object", hint="make room")
    assert str(error) == "put some/object: it is full (make room)"
    assert str(ResilienceError("it is full")) == "it is full"
    assert (error.what, error.operation, error.subject, error.hint) == ("it is full", "put", "some/object", "make room")


def test_every_error_is_of_one_of_six_kinds() -> None:
    kinds = re.findall(r"^`(\w+)` ", errors.__doc__ or "", re.MULTILINE)
    assert len(kinds) == 6
    found = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, ResilienceError)]
    for each in set(found) - {ResilienceError}:
        assert sum(kind.__name__ in kinds for kind in each.__mro__) == 1, each
