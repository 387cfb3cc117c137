"""What is damaged in an archive is named and refused, whatever happened to it; and what is not needs no library."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import msgspec
import pytest
from attrs import evolve

from resilience import Archive, backup, verify
from resilience.archive import layout
from resilience.archive.envelope import unwrap, wrap
from resilience.model.errors import Conflict, Corrupt, ManifestInvalid, ObjectMissing, Refused, Unsupported
from resilience.model.findings import Level
from resilience.model.manifests import Manifest, StoredObject, StoredPart
from resilience.stores import LocalStore, MemoryStore
from resilience.testing import archivers
from resilience.testing.archivers import PARTS, plan, read_all, write
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.faults import Change, change, changed, flipped, gone, truncated
from resilience.testing.memory import MemoryTarget
from resilience.testing.stores import content, listed, read

from .conftest import missing
from .faults import small_archive
from .test_model import MANIFEST

DAMAGE: dict[str, Change] = {
    "first byte flipped": flipped(0),
    "early byte flipped": flipped(9),
    "middle byte flipped": lambda data: flipped(len(data) // 2)(data),
    "last byte flipped": flipped(-1),
    "last byte cut off": truncated(-1),
    "first byte only": truncated(1),
    "nothing in it": truncated(0),
    "a byte more": lambda data: data + b"\0",
    "twice": lambda data: data + data,
    "gone": gone,
}


async def objects(archive: Archive) -> list[tuple[str, str]]:
    """Every object of every part in a fresh backup: part and key."""
    manifest = await write(archive, plan())
    return [(part.name, stored.key) for part in manifest.parts for stored in part.objects]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_every_damaged_object_is_named_and_only_its_part_refused(damage: Change) -> None:
    archive = small_archive()
    known = await objects(archive)
    (manifest,) = [each async for each in archive.manifests("orders")]
    assert len(known) > 12
    async with nothing_left_running():
        for part, key in known:
            async with changed(archive.store, key, damage), archive.open(manifest) as stored:
                for name in PARTS:
                    if name != part:
                        assert await archivers.read(stored, name) == PARTS[name]
                with pytest.raises(Corrupt, match=key):
                    await archivers.read(stored, part)
                verdict = await verify(archive, manifest)
            assert not verdict.passed
            assert [each.subject for each in verdict.findings if each.severity == "blocker"] == [key]
    assert await read_all(archive, manifest) == PARTS


async def test_two_objects_in_each_others_place_are_both_named() -> None:
    archive = small_archive()
    known = [key for part, key in await objects(archive) if part == "one"]
    (manifest,) = [each async for each in archive.manifests("orders")]
    first, second = [await read(archive.store, key) for key in known[:2]]
    assert len(first) == len(second)
    async with changed(archive.store, known[0], lambda _: second), changed(archive.store, known[1], lambda _: first):
        with pytest.raises(Corrupt, match=known[0]):
            await read_all(archive, manifest)
        verdict = await verify(archive, manifest)
        assert [each.subject for each in verdict.findings if each.severity == "blocker"] == known[:2]


async def test_an_object_that_is_gone_is_missing_not_merely_corrupt() -> None:
    archive = small_archive()
    manifest = await write(archive, plan())
    key = manifest.parts[0].objects[1].key
    await archive.store.delete(key)
    with pytest.raises(ObjectMissing, match=f"get {key}: there is no such object"):
        await read_all(archive, manifest)


async def test_a_retired_or_altered_manifest_fails_the_verdict() -> None:
    archive = small_archive()
    manifest = await write(archive, plan())
    key = layout.manifest("memory", "orders", manifest.id)
    for how, sentence in ((gone, "does not exist"), (flipped(-9), "cannot be read|does not match")):
        async with changed(archive.store, key, how):
            verdict = await verify(archive, manifest)
        (finding,) = [each for each in verdict.findings if each.severity == "blocker"]
        assert finding.subject == key
        assert any(words in finding.text for words in sentence.split("|"))
    assert (await verify(archive, manifest)).passed
    another = evolve(manifest, writer="somebody else")
    assert not (await verify(archive, another)).passed


def with_part(manifest: Manifest, part: StoredPart) -> Manifest:
    """Put another first part into a manifest."""
    return evolve(manifest, parts=(part, *manifest.parts[1:]))


def with_object(manifest: Manifest, number: int, stored: StoredObject) -> Manifest:
    """Put another object into the first part of a manifest."""
    objects = list(manifest.parts[0].objects)
    objects[number] = stored
    return with_part(manifest, evolve(manifest.parts[0], objects=tuple(objects)))


async def test_a_part_that_contradicts_itself_is_refused() -> None:
    archive = small_archive()
    manifest = await write(archive, plan())
    part = manifest.parts[0]
    wrong = [evolve(part, size=size) for size in (0, 1, part.size - 1, part.size + 1, part.size * 9)]
    wrong += [evolve(part, frame_size=1), evolve(part, frame_size=9999), evolve(part, objects=part.objects[1:])]
    async with nothing_left_running():
        for each in wrong:
            with pytest.raises(Corrupt, match="one"):
                await read_all(archive, with_part(manifest, each))


@pytest.mark.parametrize("number", [0, 1, -1], ids=["first", "second", "last"])
async def test_an_object_whose_index_contradicts_its_bytes_is_refused(number: int) -> None:
    archive = small_archive()
    manifest = await write(archive, plan())
    stored = manifest.parts[0].objects[number]
    lengths = stored.frames
    indexes = [lengths[:-1], (*lengths, 1), (*lengths[:-1], lengths[-1] + 1), tuple(each + 1 for each in lengths)]
    wrong = [evolve(stored, frames=each) for each in indexes]
    wrong += [evolve(stored, frames=each, size=sum(each)) for each in indexes]
    wrong.append(evolve(stored, sha256="0" * 64))
    async with nothing_left_running():
        for each in wrong:
            with pytest.raises(Corrupt, match="one"):
                await read_all(archive, with_object(manifest, number, each))


def test_every_changed_or_missing_byte_of_a_manifest_is_refused() -> None:
    data = wrap(MANIFEST)
    assert unwrap(data, "some/key", Manifest) == MANIFEST
    for at in range(len(data)):
        for changed_byte in {data[at] ^ 1, data[at] ^ 0x20, data[at] ^ 0x80, 0x20, 0x22, 0x30, 0x39, 0} - {data[at]}:
            with pytest.raises((ManifestInvalid, Unsupported), match="read manifest some/key"):
                unwrap(data[:at] + bytes([changed_byte]) + data[at + 1 :], "some/key", Manifest)
        with pytest.raises(ManifestInvalid, match="read manifest some/key"):
            unwrap(data[:at], "some/key", Manifest)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null", b"[]", b'{"format":1}', b'{"format":"1"}', b'{"format":-1}', b"\xff", b"{" * 5000]
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalid, match="read manifest some/key: it cannot be read"):
        unwrap(data, "some/key", Manifest)


def sealed(format: int, body: bytes) -> bytes:  # as in the format
    digest = hashlib.sha256(body).hexdigest()
    return b'{"format":%d,"sha256":"%s","manifest":%s}' % (format, digest.encode(), body)


@pytest.mark.parametrize("number", [3, 4, 99, 2**70])
def test_a_newer_format_is_refused_with_what_to_do_whatever_else_is_in_it(number: int) -> None:
    sentence = (
        f"read manifest some/key: it is written in archive format {number}, this version reads up to 2 "
        "(install a newer resilience)"
    )
    for body in (b"{}", b'"something else entirely"', b'{"format":%d,"parts":{}}' % number):
        with pytest.raises(Unsupported) as refused:
            unwrap(sealed(number, body), "some/key", Manifest)
        assert str(refused.value) == sentence


def test_an_envelope_around_another_format_or_no_manifest_is_refused() -> None:
    body = json.loads(wrap(MANIFEST))["manifest"]
    with pytest.raises(ManifestInvalid, match="its format numbers disagree"):
        unwrap(sealed(1, msgspec.json.encode({**body, "format": 2})), "some/key", Manifest)
    with pytest.raises(ManifestInvalid, match="its format numbers disagree"):
        unwrap(sealed(0, msgspec.json.encode({**body, "format": 0})), "some/key", Manifest)
    for lacking in ("id", "parts", "begins", "recovery_point", "lineage"):
        less = {name: value for name, value in body.items() if name != lacking}
        with pytest.raises(ManifestInvalid, match=f"it cannot be read: .*{lacking}"):
            unwrap(sealed(1, msgspec.json.encode(less)), "some/key", Manifest)
    with pytest.raises(ManifestInvalid, match="it cannot be read"):
        unwrap(sealed(1, msgspec.json.encode({**body, "sealing": {"kind": "unknown"}})), "some/key", Manifest)


def test_fields_that_a_later_version_of_this_format_adds_are_passed_over() -> None:
    body = json.loads(wrap(MANIFEST))["manifest"]
    assert unwrap(sealed(1, msgspec.json.encode({**body, "added": [1, 2]})), "some/key", Manifest) == MANIFEST


async def test_a_manifest_under_another_name_is_refused() -> None:
    archive = small_archive()
    manifest = await write(archive, plan(1))
    data = await read(archive.store, layout.manifest("memory", "orders", manifest.id))
    elsewhere = layout.manifest("memory", "orders", plan(2).id)
    await archive.store.put(elsewhere, [data])
    with pytest.raises(ManifestInvalid, match=f"{elsewhere}: it belongs under another name"):
        await archivers.listed(archive)
    assert await archive.manifest("orders", manifest.id) == manifest
    with pytest.raises(ManifestInvalid, match="it belongs under another name"):
        await archive.manifest("orders", plan(2).id)
    assert await archive.manifest("orders", plan(3).id) is None
    assert await archive.manifest("others", plan(3).id) is None


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"system":"../x"}', b'{"system":1}', b"\xff\xff"])
async def test_a_damaged_registration_is_named(data: bytes) -> None:
    archive = small_archive()
    await write(archive, plan())
    await change(archive.store, "targets/orders.json", lambda _: data)
    with pytest.raises(ManifestInvalid, match="targets/orders.json: it does not name a system"):
        await archivers.listed(archive)
    with pytest.raises(ManifestInvalid, match="targets/orders.json"):
        await write(archive, plan(2))


async def test_a_name_belongs_to_the_system_that_took_it_first() -> None:
    archive = small_archive()
    first = await write(archive, plan(1))
    with pytest.raises(Refused, match=r"orders: the name belongs to a memory target .* \(give this target another"):
        await write(archive, evolve(plan(2), system="other"))
    assert await archivers.listed(archive) == [first.id]
    assert await archive.targets() == ["orders"]


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "../x"},
        {"system": "A"},
        {"system": "targets"},
        {"kind": "runs"},
        {"kind": "manifests"},
        {"kind": "a/b"},
        {"id": "20261121T203000Z"},
    ],
    ids=str,
)
async def test_a_plan_whose_names_cannot_be_part_of_a_key_is_misuse(changes: dict[str, str]) -> None:
    archive = small_archive()
    with pytest.raises(ValueError, match="is no "):
        await write(archive, evolve(plan(), **changes))  # type: ignore[arg-type]
    assert await listed(archive.store) == []


async def test_keys_are_laid_out_as_documented() -> None:
    archive = small_archive()
    manifest = await write(archive, plan())
    keys = [info.key for info in await listed(archive.store)]
    prefix = "memory/orders"
    assert keys[-1] == "targets/orders.json"
    assert f"{prefix}/manifests/{manifest.id}.json" in keys
    assert [key for key in keys if "/runs/" in key] == [
        f"{prefix}/runs/{manifest.id}/ended.json",
        f"{prefix}/runs/{manifest.id}/started.json",
    ]
    data = [key for key in keys if key.startswith(f"{prefix}/base/")]
    assert len(data) == len(keys) - 4
    assert data == sorted(stored.key for part in manifest.parts for stored in part.objects)
    for part in manifest.parts:
        for number, stored in enumerate(part.objects):
            assert stored.key == f"{prefix}/base/{manifest.id}/{part.name}/{number:06d}.zst"


async def test_objects_are_runs_of_whole_frames_of_about_the_wanted_size() -> None:
    archive = Archive(MemoryStore(), frame_size=100, object_size=1000)
    manifest = await write(archive, plan(), {"part": content(12_345)})
    (part,) = manifest.parts
    assert sum(len(stored.frames) for stored in part.objects) == 124
    for stored in part.objects:
        assert sum(stored.frames) == stored.size
        assert hashlib.sha256(await read(archive.store, stored.key)).hexdigest() == stored.sha256
    assert {stored.size < 1000 + max(stored.frames) for stored in part.objects} == {True}
    assert all(stored.size >= 1000 for stored in part.objects[:-1])


@pytest.mark.parametrize("options", [{"workers": 0}, {"object_size": 0}, {"frame_size": 0}], ids=str)
def test_an_archive_that_could_not_work_is_misuse(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be >= 1"):
        Archive(MemoryStore(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", [-5, 3, 19])
async def test_any_level_of_compression_is_read_back(compression: int) -> None:
    archive = Archive(MemoryStore(), compression=compression, frame_size=700, object_size=300)
    assert await read_all(archive, await write(archive, plan())) == PARTS


def piped(folder: Path, *command: str) -> bytes:
    """Run `cat folder/* | zstd -d | command`, as a person without this library would."""
    for program in ("zstd", command[0]):
        if shutil.which(program) is None:
            missing(f"{program} is not installed")
    script = f"cat {folder}/* | zstd -q -d | {' '.join(command)}"
    return subprocess.run(["bash", "-o", "pipefail", "-c", script], check=True, capture_output=True).stdout


async def test_a_part_comes_back_with_cat_and_zstd(tmp_path: Path) -> None:
    archive = small_archive(LocalStore(tmp_path))
    manifest = await write(archive, plan())
    for name, data in PARTS.items():
        assert piped(tmp_path / "memory" / "orders" / "base" / manifest.id / name, "cat") == data


async def test_a_tar_comes_back_with_cat_and_zstd_and_tar(tmp_path: Path) -> None:
    files = {f"directory/{number}": content(number * 500, number) for number in range(9)}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as packed:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    target = MemoryTarget("orders", {"data.tar": stream.getvalue()}, chunk_size=1000)
    report = await backup(target, small_archive(LocalStore(tmp_path / "store")))
    (tmp_path / "out").mkdir()
    folder = tmp_path / "store" / "memory" / "orders" / "base" / report.manifest.id / "data.tar"
    piped(folder, "tar", "-x", "-C", str(tmp_path / "out"))
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files


async def test_an_object_that_goes_while_it_is_examined_is_named() -> None:
    archive = small_archive()
    manifest = await write(archive, plan())
    key = manifest.parts[0].objects[0].key
    async with changed(archive.store, key, gone), archive.open(manifest) as stored:
        problems = [(each.key, each.problem) async for each in stored.examine(Level.CHECKSUMS) if each.problem]
    assert problems == [(key, "there is no such object")]


async def test_a_backup_of_the_same_id_without_its_run_record_is_still_a_conflict() -> None:
    archive = small_archive()
    first = await write(archive, plan())
    for moment in ("started", "ended"):
        await archive.store.delete(layout.run("memory", "orders", first.id, moment))
    with pytest.raises(Conflict, match=f"publish {first.id}: a backup of this id exists"):
        await write(archive, plan(), {})
    record = json.loads(await read(archive.store, layout.run("memory", "orders", first.id, "ended")))
    assert record["outcome"] == "failed"
    assert await read_all(archive, first) == PARTS
