"""Certificates for tests: an authority, and a server's of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ..conftest import missing


def certificates(folder: Path) -> dict[str, str]:
    """Make an authority and a certificate for the loopback; return them as a server's settings."""
    if shutil.which("openssl") is None:
        missing("openssl is not installed")
    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority", *out(folder, "ca"))
    run("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", *out(folder, "server", "csr"))
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    signing = ["-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key", "-CAcreateserial", "-days", "2"]
    run(
        "x509",
        "-req",
        "-in",
        f"{folder}/server.csr",
        *signing,
        "-extfile",
        f"{folder}/names",
        "-out",
        f"{folder}/server.crt",
    )
    for path in folder.iterdir():
        path.chmod(0o644)
    files = {"cert": f"{folder}/server.crt", "key": f"{folder}/server.key", "ca-cert": f"{folder}/ca.crt"}
    return {f"tls-{name}-file": path for name, path in files.items()}


def out(folder: Path, name: str, kind: str = "crt") -> list[str]:
    return ["-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.{kind}"]


def run(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stderr)
