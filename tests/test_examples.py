"""The examples run, do what they say and leave nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resilience.testing.azurite import MissingAzurite, find_azurite

from .conftest import TESTBED, missing

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("where", ["folder", "azurite"])
def test_the_quickstart_brings_the_rows_back_and_cleans_up(
    postgres_bin: Callable[[int], Path], session_folder: Path, where: str
) -> None:
    postgres_bin(18)  # skips or fails if it is missing
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--orders", "20000"]
    if where == "azurite":
        try:
            find_azurite(TESTBED)
        except MissingAzurite as error:
            missing(str(error))
        command.append("--azurite")
    temporary = session_folder / f"quickstart-{where}"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Every order that was confirmed by then is back: 20,\d{3} orders, without a hole", done.stdout)
    assert re.search(r"\d\.\d\d s of writes would have been lost", done.stdout)
    assert "level L3" in done.stdout
    assert ("https://127.0.0.1:" in done.stdout) == (where == "azurite")
    assert done.stderr == ""  # no bar where there is no terminal
    assert list(temporary.iterdir()) == []
