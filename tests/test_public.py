"""What `import resilience` gives and what it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import resilience
from resilience import errors
from resilience.model import errors as model_errors

SYSTEMS = {"aiohttp", "asyncpg", "azure", "crc32c", "cryptography", "psycopg", "rich"}


def loaded_after(code: str) -> set[str]:
    """Return the names of the modules that a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    printed = subprocess.run([sys.executable, "-I", "-c", script], check=True, capture_output=True, text=True).stdout
    return set(printed.split())


def test_importing_the_library_loads_nothing_else() -> None:
    assert not loaded_after("import resilience") & {*SYSTEMS, "asyncio", "attrs", "msgspec", "resilience.archive"}


def test_the_public_names_load_no_system() -> None:
    loaded = loaded_after("from resilience import *")
    assert "resilience.archive" in loaded
    assert not loaded & SYSTEMS


def test_the_systems_room_is_what_loads_the_system() -> None:
    assert {"asyncpg", "psycopg"} <= loaded_after("from resilience.postgres import PostgresTarget")


def test_a_backup_does_not_wait_for_what_restores() -> None:
    loaded = loaded_after("from resilience.postgres import PostgresTarget")
    assert "resilience.postgres.target" in loaded
    assert not {"resilience.postgres.directory", "resilience.postgres.dumps.target"} & loaded


@pytest.mark.parametrize("name", resilience.__all__)
def test_every_public_name_can_be_had_and_says_what_it_is(name: str) -> None:
    value = getattr(resilience, name)
    assert value is getattr(resilience, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__name__ == name
        assert value.__module__.startswith("resilience.")
        assert inspect.getdoc(value)


def test_there_are_about_sixty_public_names_and_all_are_listed() -> None:
    assert len(resilience.__all__) <= 66
    assert resilience.__all__ == sorted(set(resilience.__all__))
    assert set(resilience.__all__) <= set(dir(resilience))


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="backupp"):
        resilience.backupp  # noqa: B018  # looking is the point


def test_the_errors_are_all_in_one_place_and_the_families_among_the_public_names() -> None:
    made = {
        name
        for name, value in vars(model_errors).items()
        if inspect.isclass(value) and value.__module__.endswith(".errors")
    }
    assert set(errors.__all__) == made
    assert {"Refused", "Unavailable", "Corrupt", "Conflict", "Interrupted", "Unsupported"} <= set(resilience.__all__)
