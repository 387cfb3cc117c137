"""What the documents say is true: their code runs and has the right types, their tables and commands match the code."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from inspect import CO_COROUTINE
from pathlib import Path
from types import CodeType
from typing import cast

import attrs
import pytest

from resilience import FailoverGroup, FailoverPlan, FailoverPolicy, FailoverReport, StateRecorder, plan_failover
from resilience.archive.entries import Head
from resilience.concurrency import stop_tasks
from resilience.model import errors
from resilience.model.json import from_json, to_json
from resilience.model.manifests import FORMAT, Manifest, StoredObject, StoredPart
from resilience.model.show import as_span
from resilience.postgres import LocalFencer, PostgresPromoter
from resilience.reference import DRILLS
from resilience.stores import MemoryStore
from resilience.testing.replication import running_group

from .conftest import NewServer

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = """
from pathlib import Path
from resilience import *
from resilience.postgres import *
from resilience.stores import *
dsn = other = "host=db.example"
path = bin_dir = Path("somewhere")
archive = Archive(MemoryStore())
from datetime import UTC, datetime
from resilience.progress import ProgressBar
beside, moment = PostgresDataDirectory(path, bin_dir=bin_dir), datetime.now(UTC)
import asyncio
from azure.identity.aio import DefaultAzureCredential
credential = DefaultAzureCredential()
store = AzureBlobStore("https://account.blob.core.windows.net/backups", credential=credential)
group = FailoverGroup("orders", promoter=PostgresPromoter("orders", members=[]), journal=store)
"""


def blocks(document: Path, language: str) -> list[str]:
    """Return the blocks of code of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def compiled(code: str) -> CodeType:
    """Compile code that may await at its top level, as a notebook does."""
    program: CodeType = compile(code, "document", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return program


def rows(document: Path, head: str) -> Iterator[list[str]]:
    """Yield the rows of the table whose first heading is `head`."""
    _, found, table = document.read_text().partition(f"| {head} |")
    assert found, f"{document.name} has no table {head!r}"
    for line in table.splitlines()[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_documents_code_has_the_right_types(tmp_path: Path) -> None:
    snippets = [code for document in DOCUMENTS for code in blocks(document, "python")]
    functions = [
        f"async def snippet_{n}() -> None:\n{textwrap.indent(code, '    ')}" for n, code in enumerate(snippets)
    ]
    module = tmp_path / "snippets.py"
    module.write_text(NAMES + "\n".join(functions))
    # A process of its own: what mypy remembers would slow down the rest of the session.
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(module)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert len(snippets) >= 4


async def test_the_readmes_code_runs(
    new_server: NewServer, tmp_path: Path, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    origin, other = new_server(17), new_server(17)
    origin.psql("create table orders as select 7 as id")
    names: dict[str, object] = {
        "dsn": origin.dsn(),
        "other": other.dsn(),
        "path": tmp_owned / "data",
        "bin_dir": origin.bin_dir,
        "store": MemoryStore(),
        "print": lambda *values: printed.extend(map(str, values)),
    }
    printed: list[str] = []
    for code in blocks(ROOT / "README.md", "python"):
        if "failover" in code:  # see the next test
            continue
        program = compiled(code)
        assert program.co_flags & CO_COROUTINE
        await eval(program, names)  # noqa: S307  # our own README
    backed_up, verified, archiving, covered, diagnosed, planned, kept = printed
    assert backed_up.startswith("backed up orders as")
    assert "passed, level L1" in verified
    assert archiving.startswith("orders: connected")
    assert covered.startswith("orders: from ")
    assert diagnosed.startswith("orders: ")
    assert planned.startswith("restore orders to the latest moment")
    assert "nothing" in kept
    assert (tmp_owned / "data" / "PG_VERSION").read_text() == "17\n"
    assert other.psql("select id from orders") == "7"


async def test_the_readmes_failover_happens(
    postgres_bin: Callable[[int], Path], tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [code for code in blocks(ROOT / "README.md", "python") if "failover" in code]
    with running_group(tmp_owned / "group", postgres_bin(17), sync="FIRST 1 (b)") as servers:
        members = servers.members()
        async with PostgresPromoter("orders", members=members) as promoter:
            group = FailoverGroup("orders", promoter=promoter, fencers=[LocalFencer(members)], journal=MemoryStore())
            recorder = StateRecorder(group, every=timedelta(seconds=0.1))
            recording = asyncio.create_task(recorder.run())
            while recorder.last is None or recorder.last.sync is None:
                await asyncio.sleep(0.02)
            await stop_tasks([recording])
            servers.kill("a")
            while (await plan_failover(group, policy=FailoverPolicy())).blockers:
                await asyncio.sleep(0.02)
            printed: list[object] = []
            names: dict[str, object] = {
                "group": group,
                "print": printed.append,
                "input": lambda: cast("FailoverPlan", printed[-1]).confirmation,
            }
            await eval(compiled(code), names)  # noqa: S307  # our own README
    assert cast("FailoverReport", names["report"]).ending == "completed"


def test_every_session_the_documents_name_exists() -> None:
    noxfile = (ROOT / "noxfile.py").read_text()
    sessions = set(re.findall(r"^@nox\.session\ndef (\w+)", noxfile, re.MULTILINE))
    named = {
        name for document in DOCUMENTS for name in re.findall(r"(?:noxfile\.py|nox|`) ?-s (\w+)", document.read_text())
    }
    assert named >= {"quickstart", "tests", "lint", "bench"}
    assert named <= sessions


def test_ci_runs_the_readmes_test_command() -> None:
    (command,) = [code.strip() for code in blocks(ROOT / "README.md", "sh") if "-s tests" in code]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if not link.startswith(("https://", "#")):
            assert (document.parent / link.partition("#")[0]).exists(), link


def test_the_table_of_errors_is_the_code() -> None:
    documented = {
        (name.strip("`"), kind)
        for name, _, _, kinds in rows(ROOT / "docs" / "design.md", "error")
        for kind in [None, *re.findall(r"`(\w+)`", kinds)]
    }
    families = errors.ResilienceError.__subclasses__()
    assert documented == {
        (family.__name__, kind)
        for family in families
        for kind in [None, *(each.__name__ for each in family.__subclasses__() if each.__module__ == errors.__name__)]
    }


def test_the_example_manifest_is_one_and_every_field_is_explained() -> None:
    specification = ROOT / "docs" / "archive-format.md"
    (example,) = [code for code in blocks(specification, "json") if '"parts"' in code]
    manifest = from_json(example.encode(), Manifest)
    assert manifest.format == FORMAT
    assert json.loads(to_json(manifest)) == json.loads(example)

    explained = {name for cells in rows(specification, "field") for name in re.findall(r"`(\w+)`", cells[0])}
    assert explained == {field.name for field in attrs.fields(Manifest)}
    text = specification.read_text()
    for kind in (StoredPart, StoredObject):
        assert all(f"`{field.name}`" in text for field in attrs.fields(kind))


def test_the_example_head_of_an_entry_is_one_and_every_field_is_explained() -> None:
    specification = ROOT / "docs" / "archive-format.md"
    (example,) = [code for code in blocks(specification, "json") if '"frame_size"' in code and '"parts"' not in code]
    head = from_json(example.encode(), Head)
    assert json.loads(to_json(head)) == json.loads(example)
    explained = {name for cells in rows(specification, "in the head") for name in re.findall(r"`(\w+)`", cells[0])}
    assert explained == {field.name for field in attrs.fields(Head)}


def test_the_runbook_says_what_to_do_about_every_error_of_a_failover() -> None:
    runbook = ROOT / "docs" / "failover.md"
    named = {name.strip("`") for name, *_ in rows(runbook, "it says")}
    assert all(issubclass(getattr(errors, name), errors.ResilienceError) for name in named)
    assert named >= {
        "FencedOff",
        "FencingUnproven",
        "Interrupted",
        "JournalConflict",
        "LossTooGreat",
        "NoCandidate",
        "NotConfirmed",
        "NotFollowing",
        "RouteMoved",
        "StalePlan",
    }


def test_the_calendar_of_the_runbook_is_the_reference_platforms() -> None:
    shown = {kind: (rto, lost) for kind, _, rto, lost in rows(ROOT / "docs" / "failover.md", "what")}
    assert shown == {
        kind: (as_span(each.criterion.rto), as_span(each.criterion.rpo) if each.criterion.rpo else "none")
        for kind, each in DRILLS.items()
    }
