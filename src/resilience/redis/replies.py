"""What redis-py, the system or a server says is wrong, turned into our errors; here and nowhere else."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from resilience.model.errors import Refused, ResilienceError, TimedOut, Unavailable, Unreachable, Unsupported

_LATER = ("LOADING", "MASTERDOWN", "NOMASTERLINK", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MISCONF", "OOM", "NOREPLICAS")


@contextmanager
def mapped(where: str, operation: str) -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except redis.RedisError as error:
        raise _from_driver(error, where, operation) from error
    except TimeoutError as error:
        raise TimedOut("no answer within the deadline", operation=operation, subject=where) from error
    except OSError as error:
        raise _from_system(error, where, operation) from error


def _from_driver(error: redis.RedisError, where: str, operation: str) -> ResilienceError:
    under = error.__cause__ or error.__context__
    if isinstance(error, redis.ResponseError | redis.AuthenticationError | redis.BusyLoadingError):
        return from_server(_said(error), where=where, operation=operation)
    if isinstance(error, redis.TimeoutError):
        return TimedOut("no answer within the deadline", operation=operation, subject=where)
    if isinstance(under, OSError):
        return _from_system(under, where, operation)
    kind = Unreachable if isinstance(error, redis.ConnectionError) else Refused
    return kind(_one_line(error), operation=operation, subject=where)


def _said(error: redis.RedisError) -> str:
    """Return what the server said: redis-py takes its first word away where it has a class for it."""
    words = {
        redis.exceptions.BusyLoadingError: "LOADING",
        redis.exceptions.ReadOnlyError: "READONLY",
        redis.exceptions.NoPermissionError: "NOPERM",
        redis.exceptions.MasterDownError: "MASTERDOWN",
        redis.exceptions.ClusterDownError: "CLUSTERDOWN",
        redis.exceptions.OutOfMemoryError: "OOM",
        redis.AuthenticationError: "WRONGPASS",
    }
    word, text = words.get(type(error), ""), _one_line(error)
    return text if text.startswith(word) else f"{word} {text}"


def _from_system(error: OSError, where: str, operation: str) -> ResilienceError:
    """Choose our error for what the system or the TLS library said."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text, hint = f"the server's certificate is not trusted: {error.verify_message}", "check host and ssl_ca_certs"
        return Refused(text, operation=operation, subject=where, hint=hint)
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "it failed").replace("_", " ").lower()
        return Unreachable(f"no TLS: {reason}", operation=operation, subject=where, hint="does the port speak TLS?")
    if isinstance(error, TimeoutError):
        return TimedOut("no answer within the deadline", operation=operation, subject=where)
    text = f"no connection: {error.strerror or _one_line(error)}"
    return Unreachable(text, operation=operation, subject=where, hint="is the server up?")


def from_server(said: str, *, where: str, operation: str) -> ResilienceError:
    """Choose our error for an error reply, by its first word."""
    word, _, rest = said.partition(" ")
    kind: type[ResilienceError] = Refused
    hint = ""
    if word in ("NOAUTH", "WRONGPASS", "DENIED") or "AUTH" in rest[:40]:
        hint = "check the user and the password in the url"
    elif word == "NOPERM":
        hint = "grant the user what it lacks with ACL SETUSER"
    elif word in _LATER:
        kind = Unavailable
    elif "BGSAVE failed" in said:
        kind, hint = Unavailable, "its log says why; where memory is short, set vm.overcommit_memory = 1 on the host"
    elif "unknown command" in said or "nknown subcommand" in said or "unknown option" in said.lower():
        kind = Unsupported
    return kind(_one_line(said), operation=operation, subject=where, hint=hint)


def _one_line(text: object) -> str:
    return " ".join(str(text).split()) or type(text).__name__
