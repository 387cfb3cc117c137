"""A Python with this library that the account test servers run as can reach, for what they run: archive_command."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("attr", "attrs", "backports.zstd", "msgspec", "tenacity", "resilience")
SEALING = ("cryptography", "_cffi_backend")
"""What is copied if it is installed."""
UNWANTED = ("site-packages", "test", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "config-*")


def reachable_python(folder: Path) -> str:
    """Return a Python with this package that the account servers run as can reach: ours, or a copy of it."""
    ours = Path(sys.executable)
    ways = [ours, ours.resolve(), Path(sysconfig.get_path("purelib")), Path(__file__)]
    if os.geteuid() != 0 or all(each.stat().st_mode & 0o001 for way in ways for each in way.parents):
        return sys.executable
    wrapper = folder / "python"
    if not wrapper.exists():
        _copy_python(folder)
        wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={folder}/lib exec {folder}/bin/python "$@"\n')
        wrapper.chmod(0o755)
    return str(wrapper)


def _copy_python(folder: Path) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    library = folder / "lib" / version
    shutil.copytree(Path(sysconfig.get_path("stdlib")), library, ignore=shutil.ignore_patterns(*UNWANTED))
    for shared in (base / "lib").glob("libpython*.so*"):
        shutil.copy(shared, folder / "lib")
    (folder / "bin").mkdir()
    shutil.copy(Path(sys.executable).resolve(), folder / "bin/python")
    for name in (*PACKAGES, *SEALING):
        spec = find_spec(name)
        if (spec is None or spec.origin is None) and name in SEALING:
            continue
        if spec is None or spec.origin is None:
            raise RuntimeError(f"{name} is not installed")
        origin, packages = Path(spec.origin), library / "site-packages"
        if spec.submodule_search_locations is None:
            shutil.copy(origin, packages)
        else:
            shutil.copytree(origin.parent, packages / name.replace(".", "/"))
